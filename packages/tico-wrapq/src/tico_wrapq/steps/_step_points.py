"""The points of the steps of one module, which keeps its class and its forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import ClassVar, Final, final

from torch import Tensor, nn
from typing_extensions import Self, assert_never

from tico_config import CalibrationError, Found, Problem, QuantSpec, no_quant
from tico_modules import ActivationGrid, Edit, Layout, child_path, children, select_below
from tico_observers import LARGEST_PLAUSIBLE
from tico_wrapq.base import (
    Mode,
    Passage,
    PointDeclaration,
    QuantModuleBase,
    QuantPoint,
    Resolve,
    Role,
    WeightCodes,
)
from tico_wrapq.steps._kept_scores import moved_within_reach
from tico_wrapq.steps._score_tracing import ScoreTracing, StepRole
from tico_wrapq.steps._step_mode import steps_of
from tico_wrapq.steps._stepped_class import Forward, code_of, run_by_steps

_HEADS: Final = -3
"""The axis of the heads in attention scores (samples, heads, queries, keys), whose keys are no channels."""
_AXES_OF_ATTENTION: Final = 4


def _float(path: str) -> QuantSpec:
    return no_quant()


def _never(path: str) -> bool:
    return False


@final
class StepPoints(QuantModuleBase):
    """The points of the functional steps in a module's own `forward`, made as they are reached.

    It stands beside the other children of the module, which goes on to run its own forward.

    Args:
        module: the module whose forward is run.
        path: its full path in the model.
        resolve: gives the spec of each point by its full path.
        is_named: tells whether an override speaks of the point at a path.
    """

    kind: ClassVar[str] = "ptq.steps"
    stands_beside: ClassVar[bool] = True

    def __init__(
        self, module: nn.Module, path: str, resolve: Resolve, is_named: Callable[[str], bool] = _never
    ) -> None:
        super().__init__(module, path, resolve)
        self._resolve = resolve
        self._is_named = is_named
        self._passage: Passage | None = None
        self.scores: set[str] = set()
        self.statistics: set[str] = set()
        self.unknown: dict[str, str] = {}

    def adopt(self, module: nn.Module) -> None:
        """Keep nothing: the module stays."""

    def join(self, served: nn.Module, edit: Edit) -> None:
        """Become a child of `served`, whose forward then passes its steps through the points."""
        run_by_steps(served, self, edit)

    def named_points(self) -> Iterator[tuple[str, QuantPoint]]:
        """Yield the point of each step that data have reached, by the step's name, in alphabetical order."""
        points = children(self)
        found = ((name, points[name]) for name in sorted(points))
        return ((name, each) for name, each in found if isinstance(each, QuantPoint) and not each.lacks_data)

    def enable_calibration(self, passage: Passage | None = None) -> None:
        """Find the steps in the forward passes that follow, and watch them."""
        self._passage = passage
        super().enable_calibration(passage)

    def run(
        self,
        forward: Forward,
        module: nn.Module,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> object:
        """Return what `forward` returns for `module`, with each of its steps passed through its point."""
        code = code_of(forward)
        if self.mode is Mode.NO_QUANT or code is None:
            return forward(module, *args, **kwargs)
        with steps_of(self, code, (args, kwargs)):
            return forward(module, *args, **kwargs)

    def pass_through(self, name: str, result: Tensor, tracing: ScoreTracing) -> Tensor:
        """Return the `result` of the step `name`, held back to be seen, or moved to the step's grid.

        Raises:
            CalibrationError: the model is quantized, and no calibration data have reached the step.
        """
        known: dict[str, nn.Module | None] = self._modules
        point = known.get(name)
        if self.mode is Mode.CALIB:
            watching = point if isinstance(point, QuantPoint) else self._new_point(name)
            tracing.hold(result, watching, partial(self._note, watching, result.ndim))
            return result
        if not isinstance(point, QuantPoint):
            raise CalibrationError(self._unseen(name))
        if name in self.scores and point.fixed is not None:
            return moved_within_reach(result, point, by_row=point.is_dynamic)
        moved: Tensor = point(result)
        return moved

    def _note(self, point: QuantPoint, axes: int, role: StepRole) -> None:
        name = point.declaration.name
        match role:
            case StepRole.SCORES:
                self.scores.add(name)
                if axes == _AXES_OF_ATTENTION:
                    point.tell_apart(_HEADS)
            case StepRole.STATISTIC:
                self.statistics.add(name)
            case unreachable:
                assert_never(unreachable)

    def leave_float(self, name: str, function: str) -> None:
        """Note that the step `name` calls `function`, which no table knows, so that it has no point.

        Raises:
            CalibrationError: the model is quantized, and no calibration data have reached the step.
        """
        if self.mode is Mode.CALIB:
            self.unknown[name] = function
        elif name not in self.unknown:
            raise CalibrationError(self._unseen(name))

    def leave_unfit(self, edit: Edit) -> str:
        """Leave steps float to which no grid does justice, and say which and why; empty without any."""
        unfit = self._unfit()
        for name in unfit.keys() - self.unknown.keys():
            edit.set_attribute(self.point(name), "spec", no_quant())
            self.point(name).fix(None, edit)
        return "; ".join(f"{name} stays float: {why}" for name, why in sorted(unfit.items()))

    def _unfit(self) -> Mapping[str, str]:
        """Return the steps that are to stay float although a grid is asked for, each with the reason."""
        asked = {name: point for name, point in self.named_points() if point.is_quantized}
        masks = {name: "it holds a mask" for name, each in asked.items() if each.largest >= LARGEST_PLAUSIBLE}
        norms = {name: "it is a statistic of a norm" for name in asked if name in self.statistics}
        named = {name for name, point in asked.items() if self._is_named(point.path)}
        unknown = {name: f"{function} is in no table" for name, function in self.unknown.items()}
        return {**unknown, **masks, **{name: why for name, why in norms.items() if name not in named}}

    def unknown_problems(self) -> list[Problem]:
        """Return why steps can't have a point, unless an override leaves them float."""
        found = ((name, function) for name, function in sorted(self.unknown.items()))
        asked = ((child_path(self.path, name), function) for name, function in found)
        return [
            Problem(
                module=path,
                value=Found(function),
                expected="a function in the table of steps",
                sentence=f"it calls {function}, and whether that is a step is not known",
                remedy=f"leave it float by overrides={{{path!r}: no_quant()}}, or set strict_wrap=False"
                " to leave all such steps float and have them reported",
            )
            for path, function in asked
            if self._resolve(path).is_quantized
        ]

    def _new_point(self, name: str) -> QuantPoint:
        path = child_path(self.path, name)
        point = QuantPoint(path, PointDeclaration(name, Role.OTHER, channels=None), self._resolve(path))
        self._modules[name] = point
        point.watch(self._passage)
        return point

    def _unseen(self, name: str) -> Problem:
        path = child_path(self.path, name)
        return Problem(
            module=self.path,
            field=name,
            value=Found("a step that calibration never reached"),
            expected="one of the steps that calibration data have reached",
            sentence=f"its step {name} is reached now, and was reached by no calibration data",
            remedy="calibrate with data that take this way through the model too, "
            f"or leave the step float by overrides={{{path!r}: no_quant()}}",
        )

    def finish(self, weights: WeightCodes, edit: Edit) -> nn.Module:
        """Freeze the points, without those of steps that only passes that failed have reached."""
        modules: dict[str, nn.Module | None] = self._modules
        for name in children(self).keys() - {name for name, _ in self.named_points()}:
            edit.drop(modules, name)
        edit.set_attribute(self, "_passage", None)
        edit.set_attribute(self, "_resolve", _float)
        edit.set_attribute(self, "_is_named", _never)
        return super().finish(weights, edit)

    def layout(self) -> Mapping[str, object]:
        """Return the grids of the steps and which of them are attention scores, as JSON values."""
        names = {"scores": sorted(self.scores), "unknown": sorted(self.unknown)}
        return {"points": super().layout(), **names}

    @classmethod
    def restore(cls, original: nn.Module, layout: Layout, tensors: Mapping[str, Tensor]) -> Self:
        """Return the points of `original` with the grids that `layout` and `tensors` hold.

        Raises:
            ArtifactError: they do not fit each other.
        """
        steps = cls(original, layout.where, _float)
        with Edit() as edit:
            points = layout.child("points")
            for name in points.values:
                grid = points.optional_child(name)
                declaration = PointDeclaration(name, Role.OTHER, channels=None)
                point = QuantPoint(child_path(layout.where, name), declaration, no_quant())
                steps._modules[name] = point
                if grid is not None:
                    point.fix(ActivationGrid.restore(grid, select_below(tensors, f"{name}.fixed")), edit)
        steps.scores = set(layout.texts("scores"))
        steps.unknown = dict.fromkeys(layout.texts("unknown"), "a function")
        steps.mode = Mode.QUANT
        return steps
