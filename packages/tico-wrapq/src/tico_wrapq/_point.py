"""Quantization points: the places of a wrapper where a tensor can be watched or moved to a grid."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TypeAlias

import attrs
from torch import Tensor, nn

from tico_config import (
    CalibrationError,
    Found,
    Granularity,
    MXSpec,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    Problem,
    QuantSpec,
    UnsupportedError,
)
from tico_modules import ActivationGrid, Edit
from tico_observers import observer_for
from tico_wrapq._passage import Passage
from tico_wrapq._watching import Watching


class Role(enum.Enum):
    """What passes through a point."""

    WEIGHT = "weight"
    ACTIVATION_IN = "activation in"
    ACTIVATION_OUT = "activation out"
    OTHER = "other"


@attrs.frozen
class PointDeclaration:
    """One point of a wrapper class: name, role, and the granularity it has unless the config says more.

    `channels` is the axis whose channels are told apart, to find one that takes the range for itself.
    """

    name: str
    role: Role
    granularity: Granularity = PerTensor()
    channels: int = -1


ACT_IN = PointDeclaration("act_in", Role.ACTIVATION_IN)
ACT_OUT = PointDeclaration("act_out", Role.ACTIVATION_OUT)


def spec_problem(path: str, declaration: PointDeclaration, spec: QuantSpec) -> Problem | None:
    """Return why the point at `path` cannot have the grid that `spec` asks for, or None."""
    if not spec.is_quantized:
        return None
    if declaration.role is not Role.WEIGHT:
        expected, fits = "an integer grid or no_quant()", not isinstance(spec.observer, MXSpec)
    else:
        expected = "an integer grid of at most 16 bits per tensor, per channel 0, or per group of axis 1"
        granularity = spec.granularity_or(declaration.granularity)
        along_groups = isinstance(granularity, PerGroup) and granularity.axis in (1, -1)
        along_rows = isinstance(granularity, PerTensor) or granularity == PerChannel(0)
        integer = not isinstance(spec.observer, MXSpec) and spec.dtype.bits <= 16
        fits = integer and (along_rows or along_groups)
    return None if fits else Problem(module=path, field="spec", value=Found(str(spec)), expected=expected)


@attrs.frozen
class Passing:
    """The tensor goes through as it is."""


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

    path: str
    declaration: PointDeclaration
    spec: QuantSpec
    fixed: ActivationGrid | None
    _watching: Watching | None
    _passage: Passage | None

    def __init__(self, path: str, declaration: PointDeclaration, spec: QuantSpec) -> None:
        super().__init__()
        # There are many points: what is no parameter, buffer or module goes past the checks of `__setattr__`.
        vars(self).update(path=path, declaration=declaration, spec=spec, _watching=None, _passage=None)
        self.register_module("fixed", None)
        problem = spec_problem(path, declaration, spec)
        if problem is not None:
            raise UnsupportedError(problem)

    @property
    def is_quantized(self) -> bool:
        """Whether the config asks for a grid here, or a saved model has one."""
        return self.fixed is not None or self.spec.is_quantized

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
        # Without `match`, which the compiler of the oldest torch supported cannot trace.
        # Straight from the dict, since this is done at each of many points.
        modules: dict[str, nn.Module | None] = self._modules
        fixed = modules["fixed"]
        if fixed is not None:
            moved: Tensor = fixed(x)
            return moved
        if self._watching is not None:
            if self._passage is None:
                self._passage = Passage()
            self._passage.see(self.path, self._watching, x)
        return x

    def watch(self) -> None:
        """Start to watch, where the spec needs data; what was seen before is forgotten."""
        if self.is_quantized and not self.is_dynamic:
            observer = observer_for(self.spec, self.path, self.declaration.granularity)
            self._watching = Watching(observer, self.declaration.channels)

    def follow(self, passage: Passage) -> None:
        """Leave it to `passage` when a forward pass of the model counts."""
        self._passage = passage

    @property
    def watching(self) -> Watching | None:
        """What has been seen, where the point watches."""
        return self._watching

    def resume(self, watching: Watching) -> None:
        """Watch on, having seen what `watching` has."""
        self._watching = watching

    @property
    def taken_by_one(self) -> float | None:
        """The share of the range seen that one channel has to itself; None where that is not known."""
        channels = None if self._watching is None else self._watching.channels
        return None if channels is None else channels.taken_by_one()

    @property
    def label(self) -> str:
        """What happens to tensors here, for reports: the grid, or the spec that will determine it."""
        return self.fixed.label if self.fixed is not None else str(self.spec)

    @property
    def lacks_data(self) -> bool:
        """Whether the point waits for data that never came."""
        return self._watching is not None and self._watching.is_empty

    def determined(self) -> ActivationGrid | None:
        """Return the grid that the data seen determine, None where there is to be none.

        Raises:
            CalibrationError: no data were seen.
        """
        if not self.is_quantized:
            return None
        if self.is_dynamic:
            return ActivationGrid.per_token(self.spec.dtype, symmetric=self.spec.is_symmetric)
        params = None if self._watching is None else self._watching.params()
        return self.fixed if params is None else ActivationGrid.static(params)

    def fix(self, grid: ActivationGrid | None, edit: Edit) -> None:
        """Move tensors to `grid` from now on; None lets them pass."""
        children: dict[str, nn.Module | None] = self._modules
        edit.put(children, "fixed", grid)
        edit.set_attribute(self, "_watching", None)
        edit.set_attribute(self, "_passage", None)

    def extra_repr(self) -> str:
        """Return the spec and the state."""
        return f"{self.spec}, {type(self.state).__name__.lower()}"


def require_data(points: Iterable[QuantPoint]) -> None:
    """Refuse to fix grids while points have seen no data.

    Raises:
        CalibrationError: with every such point.
    """
    missing = [
        Problem(
            module=point.path,
            value=Found("none"),
            expected="calibration data",
            remedy="run data through the prepared model that reach it, or give it no_quant() by an override",
        )
        for point in points
        if point.lacks_data
    ]
    if missing:
        raise CalibrationError(*missing)
