"""The points of the steps of one module, which keeps its class and its forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import ClassVar, final

from torch import Tensor, nn
from typing_extensions import Self

from tico_config import CalibrationError, Found, Problem, QuantSpec, no_quant
from tico_modules import ActivationGrid, Edit, Layout, child_path, children, select_below
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
from tico_wrapq.steps._score_tracing import ScoreTracing, moved_within_reach
from tico_wrapq.steps._step_mode import steps_of
from tico_wrapq.steps._stepped_class import code_of, run_by_steps

def _float(path: str) -> QuantSpec:
    return no_quant()


@final
class StepPoints(QuantModuleBase):
    """The points of the functional steps in a module's own `forward`, made as they are reached.

    It stands beside the other children of the module, which goes on to run its own forward.
    """

    kind: ClassVar[str] = "ptq.steps"
    stands_beside: ClassVar[bool] = True

    def __init__(self, module: nn.Module, path: str, resolve: Resolve) -> None:
        super().__init__(module, path, resolve)
        self._resolve = resolve
        self._passage: Passage | None = None
        self.scores: set[str] = set()
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
        forward: Callable[..., object],
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
            tracing.hold(result, watching, partial(self.scores.add, name))
            return result
        if not isinstance(point, QuantPoint):
            raise CalibrationError(self._unseen(name))
        if name in self.scores and point.fixed is not None:
            return moved_within_reach(result, point)
        moved: Tensor = point(result)
        return moved

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
        return super().finish(weights, edit)

    def layout(self) -> Mapping[str, object]:
        """Return the grids of the steps and which of them are attention scores, as JSON values."""
        return {"points": super().layout(), "scores": sorted(self.scores)}

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
        steps.mode = Mode.QUANT
        return steps

