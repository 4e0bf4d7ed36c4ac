"""Quantization points: the places of a wrapper where a tensor can be watched or moved to a grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias, final

import attrs
from torch import Tensor, nn
from typing_extensions import assert_never

from tico_config import (
    FP8,
    CalibrationError,
    FloatFormat,
    Found,
    Granularity,
    LifecycleError,
    NumericsError,
    PerChannel,
    PerGroup,
    PerTensor,
    Problem,
    QuantSpec,
    UnsupportedError,
)
from tico_modules import ActivationGrid, Edit, is_fixed, needs_calibration
from tico_observers import LARGEST_PLAUSIBLE, AnyObserver, MinMaxObserver, observer_for
from tico_observers.float_formats import tensor_scale_of
from tico_wrapq.base._declaration import PointDeclaration, Role, spec_problem
from tico_wrapq.base._passage import Passage
from tico_wrapq.base._point_statistics import PointStatistics, ToldPoint


@final
@attrs.frozen
class Passing:
    """The tensor goes through as it is."""


@final
@attrs.frozen(eq=False)
class Watching:
    """The tensor goes through, and is shown to `statistics`; `passage` says when that counts."""

    statistics: PointStatistics
    passage: Passage


@final
@attrs.frozen(eq=False)
class Frozen:
    """The tensor is moved to a grid."""

    grid: ActivationGrid


State: TypeAlias = Passing | Watching | Frozen
_PASSING = Passing()


class QuantPoint(nn.Module):
    """A quantization point: passing at first, watching after `watch`, frozen after `fix`.

    `state` is one of the three, with what belongs to it. The grid of a frozen point is also its child
    `fixed`, so that torch moves and saves it. Only `fix` sets either of the two.

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
    state: State
    fixed: ActivationGrid | None

    def __init__(self, path: str, declaration: PointDeclaration, spec: QuantSpec) -> None:
        super().__init__()
        # There are many points: what is no parameter, buffer or module goes past the checks of `__setattr__`.
        vars(self).update(path=path, declaration=declaration, spec=spec, state=_PASSING)
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
        """Whether the grid is taken from each tensor as it comes."""
        # A saved model has its grids, and no spec.
        if self.fixed is not None:
            return not is_fixed(self.fixed.dtype, self.fixed.granularity)
        return not is_fixed(self.spec.dtype, self.granularity)

    @property
    def needs_data(self) -> bool:
        """Whether calibration determines the grid, or the scale of the tensor that a dynamic one is under."""
        return self.spec.is_quantized and needs_calibration(self.spec.dtype, self.granularity)

    @property
    def granularity(self) -> Granularity:
        """The units that have a grid each; those of a grid per channel go along the channels."""
        asked, axis = self.spec.granularity_or(self.declaration.granularity), self.declaration.channels
        return PerChannel(axis) if isinstance(asked, PerChannel) and axis is not None else asked

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, seen or moved to the grid as the state says."""
        # Without `match`, which the compiler of the oldest torch supported cannot trace; and by the child, at
        # whose name tracers find its buffers. Straight from the dict, since this is done at each of many
        # points.
        modules: dict[str, nn.Module | None] = self._modules
        fixed = modules["fixed"]
        if fixed is not None:
            moved: Tensor = fixed(x)
            return moved
        state = self.state
        if isinstance(state, Watching):
            state.passage.see(state.statistics, x)
        return x

    def watch(self, passage: Passage | None = None) -> None:
        """Start to watch, where the spec needs data; what was seen before is forgotten.

        `passage` says when a forward pass counts; without one, each tensor counts at once.

        Raises:
            LifecycleError: the point is frozen.
        """
        match self.state:
            case Frozen(grid=grid):
                found, expected = Found(f"one frozen to {grid.label}"), "a point that is not frozen yet"
                sentence = f"it is frozen to {grid.label} and no longer watches"
                raise LifecycleError(
                    Problem(module=self.path, value=found, expected=expected, sentence=sentence)
                )
            case Passing() | Watching():
                if self.needs_data:
                    channels, heads = self.declaration.channels, self.declaration.role is Role.OTHER
                    statistics = PointStatistics(self._new_observer(), channels, of_heads=heads)
                    vars(self)["state"] = Watching(statistics, passage or Passage())
            case unreachable:
                assert_never(unreachable)

    def _new_observer(self) -> AnyObserver:
        units = self.granularity
        if isinstance(units, PerGroup):
            # The scales of its blocks are e4m3 numbers under one of the tensor, which follows from its range.
            ignored = self.spec.on_nonfinite
            return MinMaxObserver(self.path, FP8(), granularity=PerTensor(), on_nonfinite=ignored)
        spec = attrs.evolve(self.spec, granularity=units) if isinstance(units, PerChannel) else self.spec
        return observer_for(spec, self.path, units)

    def tell_apart(self, channels: int) -> None:
        """Tell channels along the axis `channels` apart, where the declaration and the grid leave that open.

        Nothing changes once data were seen.
        """
        state, known = self.state, self.declaration.channels
        if known is None and isinstance(state, Watching) and state.statistics.is_unseen_range:
            vars(self)["declaration"] = attrs.evolve(self.declaration, channels=channels)
            self.watch(state.passage)

    def resume(self, statistics: PointStatistics) -> None:
        """Watch on, where the point watches, having seen what `statistics` have."""
        if isinstance(self.state, Watching):
            vars(self)["state"] = attrs.evolve(self.state, statistics=statistics)

    def hear(self, told: Sequence[ToldPoint], edit: Edit) -> None:
        """Have seen, where the point watches, what it has seen on all ranks, until `edit` is undone.

        Raises:
            UnsupportedError: the statistic depends on the order of the data.
        """
        state = self.state
        if isinstance(state, Watching):
            seen = state.statistics.after(told)
            edit.set_attribute(self, "state", attrs.evolve(state, statistics=seen))

    def fix(self, grid: ActivationGrid | None, edit: Edit) -> None:
        """Move tensors to `grid` from now on; None lets them pass."""
        children: dict[str, nn.Module | None] = self._modules
        if grid is not None:
            edit.set_attribute(grid, "training", self.training)
        edit.put(children, "fixed", grid)
        edit.set_attribute(self, "state", _PASSING if grid is None else Frozen(grid))

    @property
    def statistics(self) -> PointStatistics | None:
        """What has been seen, where the point watches."""
        return self.state.statistics if isinstance(self.state, Watching) else None

    @property
    def taken_by_one(self) -> float | None:
        """The share of the range seen that one channel has to itself; None where that is not known."""
        return None if self.statistics is None else self.statistics.channels.dominance

    @property
    def uneven_calls(self) -> tuple[tuple[float, float], ...]:
        """The range of each call in a pass, where one grid serves calls whose ranges differ by a lot."""
        return () if self.statistics is None else self.statistics.calls.uneven

    @property
    def largest(self) -> float:
        """The largest magnitude seen; 0 where that is not known."""
        return 0.0 if self.statistics is None else self.statistics.largest

    @property
    def lacks_data(self) -> bool:
        """Whether the point waits for data that never came."""
        return self.statistics is not None and self.statistics.is_empty

    @property
    def label(self) -> str:
        """What happens to tensors here, for reports: the grid, or the spec that will determine it."""
        match self.state:
            case Frozen(grid=grid):
                return grid.label
            case Passing() | Watching():
                return str(self.spec)
            case unreachable:
                assert_never(unreachable)

    def determine_grid(self) -> ActivationGrid | None:
        """Return the grid that the point is to have, or has; None where there is to be none.

        Raises:
            CalibrationError: the point watches and has seen no data.
            NumericsError: the range seen is none that a trained network computes, or needs a scale that
                float32 cannot hold.
        """
        match self.state:
            case Frozen(grid=grid):
                return grid
            case Watching(statistics=statistics):
                params = statistics.params()
                if not self.is_dynamic:
                    return ActivationGrid.static(params)
                return self._dynamic_grid(tensor_scale_of(params.scale.new_tensor(statistics.largest)))
            case Passing():
                if not self.spec.is_quantized or self.needs_data:
                    return None
                return self._dynamic_grid()
            case unreachable:
                assert_never(unreachable)

    def _dynamic_grid(self, tensor_scale: Tensor | None = None) -> ActivationGrid:
        dtype, units = self.spec.dtype, self.granularity
        if isinstance(dtype, FloatFormat) and isinstance(units, PerGroup):
            return ActivationGrid.per_block(dtype, axis=units.axis, tensor_scale=tensor_scale)
        return ActivationGrid.per_token(dtype, symmetric=self.spec.is_symmetric)

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
            sentence="no calibration data have reached it",
            remedy="run data that reach it through the prepared model, give it no_quant() by an override, or"
            " set on_uncalibrated='skip' to leave all such activations float",
        )
        for point in points
        if point.lacks_data
    ]
    if missing:
        raise CalibrationError(*missing)


def require_grids(points: Iterable[QuantPoint]) -> None:
    """Refuse to fix grids while points have seen no data, or data that determine none.

    Raises:
        CalibrationError: with every point without data.
        NumericsError: with every point whose range no trained network means.
    """
    every = list(points)
    require_data(every)
    problems: list[Problem] = []
    for point in every:
        if point.largest < LARGEST_PLAUSIBLE:
            continue
        try:
            point.determine_grid()
        except NumericsError as error:
            problems += error.problems
    if problems:
        raise NumericsError(*problems)
