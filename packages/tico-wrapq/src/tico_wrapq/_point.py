"""Quantization points: the places of a wrapper where a tensor can be watched or moved to a grid."""

from __future__ import annotations

import copy
import enum
from typing import TypeAlias

import attrs
from torch import Tensor, nn
from typing_extensions import assert_never

from tico_config import Found, Granularity, MXSpec, PerTensor, PerToken, Problem, QuantSpec, UnsupportedError
from tico_observers import AnyObserver, Observer, observer_for
from tico_quantizers import ActivationGrid, Edit


class Role(enum.Enum):
    """What passes through a point."""

    WEIGHT = "weight"
    ACTIVATION_IN = "activation in"
    ACTIVATION_OUT = "activation out"
    OTHER = "other"


@attrs.frozen
class PointDeclaration:
    """One point of a wrapper class: name, role, and the granularity it has unless the config says more."""

    name: str
    role: Role
    granularity: Granularity = PerTensor()


ACT_IN = PointDeclaration("act_in", Role.ACTIVATION_IN)
ACT_OUT = PointDeclaration("act_out", Role.ACTIVATION_OUT)


@attrs.frozen
class Passing:
    """The tensor goes through as it is."""


@attrs.frozen(eq=False)
class Watching:
    """The tensor goes through and is seen; `accepted` has seen the passes that have ended."""

    observer: AnyObserver
    accepted: AnyObserver


@attrs.frozen(eq=False)
class Frozen:
    """The tensor is moved to a grid."""

    grid: ActivationGrid


State: TypeAlias = Passing | Watching | Frozen


class QuantPoint(nn.Module):
    """A quantization point in one of its three states.

    Args:
        path: full path, for errors and reports.
        declaration: name and role.
        spec: what is asked for here.

    Raises:
        UnsupportedError: the spec asks for a format that this point cannot have.
    """

    fixed: ActivationGrid | None

    def __init__(self, path: str, declaration: PointDeclaration, spec: QuantSpec) -> None:
        super().__init__()
        self.path = path
        self.declaration = declaration
        self.spec = spec
        self._watching: Watching | None = None
        self.register_module("fixed", None)
        if isinstance(spec.observer, MXSpec):
            found = Found(str(spec))
            raise UnsupportedError(
                Problem(module=path, field="spec", value=found, expected="an integer grid or no_quant()")
            )

    @property
    def is_quantized(self) -> bool:
        """Whether the config asks for a grid here."""
        return self.spec.is_quantized

    @property
    def is_dynamic(self) -> bool:
        """Whether the grid is taken from each tensor as it comes, so that no calibration is needed."""
        return isinstance(self.granularity, PerToken)

    @property
    def granularity(self) -> Granularity:
        """The units that have a grid each."""
        return self.spec.granularity_or(self.declaration.granularity)

    @property
    def state(self) -> State:
        """Whether tensors pass, are watched, or are moved to a grid."""
        if self.fixed is not None:
            return Frozen(self.fixed)
        return self._watching or Passing()

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, seen or moved to the grid as the state says."""
        match self.state:
            case Passing():
                return x
            case Watching(observer=observer):
                observer.collect(x)
                return x
            case Frozen(grid=grid):
                moved: Tensor = grid(x)
                return moved
            case _:
                assert_never(self.state)

    def watch(self) -> None:
        """Start to watch, where the spec needs data."""
        if self.is_quantized and not self.is_dynamic:
            observer = observer_for(self.spec, self.path, self.declaration.granularity)
            self._watching = Watching(observer, copy.copy(observer))

    def drop_unfinished(self) -> None:
        """Forget what a forward pass that did not end has shown."""
        if self._watching is not None:
            self._watching = attrs.evolve(self._watching, observer=copy.copy(self._watching.accepted))

    def accept(self) -> None:
        """Count what the forward pass that has just ended has shown."""
        if self._watching is not None:
            self._watching = attrs.evolve(self._watching, accepted=copy.copy(self._watching.observer))

    @property
    def lacks_data(self) -> bool:
        """Whether the point waits for data that never came."""
        return self._watching is not None and self._watching.accepted.statistics.is_empty

    def determined(self) -> ActivationGrid | None:
        """Return the grid that the data seen determine, None where there is to be none.

        Raises:
            CalibrationError: no data were seen.
        """
        if not self.is_quantized:
            return None
        if self.is_dynamic:
            return ActivationGrid.per_token(self.spec.dtype, symmetric=self.spec.is_symmetric)
        if self._watching is not None and isinstance(self._watching.accepted, Observer):
            return ActivationGrid.static(self._watching.accepted.params)
        return self.fixed

    def fix(self, grid: ActivationGrid | None, edit: Edit) -> None:
        """Move tensors to `grid` from now on; None lets them pass."""
        children: dict[str, nn.Module | None] = self._modules
        edit.put(children, "fixed", grid)
        edit.set_attribute(self, "_watching", None)

    def extra_repr(self) -> str:
        """Return the spec and the state."""
        return f"{self.spec}, {type(self.state).__name__.lower()}"
