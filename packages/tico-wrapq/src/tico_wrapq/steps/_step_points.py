"""The points of the steps of one module, which keeps its class and its forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Final, final

from torch import Tensor, nn
from typing_extensions import Self

from tico_config import CalibrationError, Problem, QuantSpec, no_quant
from tico_modules import (
    ActivationGrid,
    Edit,
    Layout,
    PackedWeight,
    child_path,
    children,
    named_modules,
    parameter,
    select_below,
)
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
from tico_wrapq.steps._kept_scores import moved_but, moved_within_reach
from tico_wrapq.steps._owned_weight import OwnedWeight, OwnedWeights
from tico_wrapq.steps._score_tracing import ScoreTracing, StepRole
from tico_wrapq.steps._step_findings import StepFindings
from tico_wrapq.steps._step_mode import steps_of
from tico_wrapq.steps._step_problems import FOREIGN, foreign_step, unknown_step, unseen_step
from tico_wrapq.steps._stepped_class import STEPS, Forward, code_of, leave, run_by_steps, take_weights
from tico_wrapq.steps._weight_uses import WeightUse
from tico_wrapq.steps._weight_watch import WeightWatch

_WEIGHTS: Final = "integers"
_NO_WEIGHTS: Final[Mapping[str, QuantSpec]] = MappingProxyType({})

_HEADS: Final = -3
"""The axis of the heads in attention scores (samples, heads, queries, keys), whose keys are no channels."""
_AXES_OF_ATTENTION: Final = 4


def _float(path: str) -> QuantSpec:
    return no_quant()


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ParameterList | nn.ParameterDict)


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
        weights: the specs of the parameters of floats that the module owns, by name.
    """

    kind: ClassVar[str] = "ptq.steps"
    stands_beside: ClassVar[bool] = True

    def __init__(
        self,
        module: nn.Module,
        path: str,
        resolve: Resolve,
        is_named: Callable[[str], bool] = _never,
        weights: Mapping[str, QuantSpec] = _NO_WEIGHTS,
    ) -> None:
        super().__init__(module, path, resolve)
        self.weight_specs = dict(weights)
        self._watch: WeightWatch | None = None
        self._lists: tuple[tuple[str, StepPoints], ...] | None = None
        self._count: Callable[[int], None] | None = None
        self._resolve = resolve
        self._is_named = is_named
        self._passage: Passage | None = None
        self.findings = StepFindings()

    def adopt(self, module: nn.Module) -> None:
        """Keep nothing: the module stays."""

    def forward(self, x: object) -> object:
        """Return `x`: where a module goes through all that it holds, the points do nothing."""
        return x

    def join(self, served: nn.Module, edit: Edit) -> None:
        """Become a child of `served`, whose forward then passes its steps through the points."""
        run_by_steps(served, self, edit)
        if self.weights:
            take_weights(served, tuple(self.weights), edit)
        else:
            self._watch = WeightWatch(self.path, served, self.weight_specs)

    @property
    def weights(self) -> dict[str, OwnedWeight]:
        """The integers that stand for weights of the module, by the names of the parameters."""
        found = children(self).get(_WEIGHTS)
        return found.by_name() if isinstance(found, OwnedWeights) else {}

    def rounded_from(self, original: nn.Module) -> Mapping[PackedWeight, Tensor]:
        """Return what the integers stand for, of the parameters of `original`."""
        found: dict[PackedWeight, Tensor] = {}
        for name, owned in self.weights.items():
            weight = parameter(original, name)
            if weight is not None and tuple(weight.shape) == owned.shape:
                found |= owned.rows_of(weight.detach())
        return found

    def read_weight(self, name: str) -> Tensor:
        """Return the weight that stood under `name`, computed where it is used, and read-only."""
        return self.weights[name].read()

    def count_work(self, count: Callable[[int], None]) -> None:
        """Have `count` told how many multiply-accumulates steps take, one after the other."""
        self._count = count

    def note_work(self, count: int) -> None:
        """Take note of `count` multiply-accumulates."""
        if count and self._count is not None:
            self._count(count)

    @property
    def multiplies_integers(self) -> bool:
        """Whether every step has a grid, but for statistics of norms, and every weight that steps read."""
        points = (point for name, point in self.named_points() if name not in self.findings.statistics)
        uses = self.findings.uses.items()
        read = {name for name, each in uses if "." not in name and not all(use.is_added for use in each)}
        asked = {name for name, spec in self.weight_specs.items() if spec.is_quantized}
        weights = read <= (self.weights.keys() if self.mode is Mode.QUANT else asked)
        return weights and not self.findings.unknown and all(point.is_quantized for point in points)

    def note_weight(self, weight: nn.Parameter, use: WeightUse) -> None:
        """Take note of how a step reads a weight, if it is one of the module's own."""
        for name in () if self._watch is None else self._watch.names_of(weight):
            self._note_use(name, use)
        for path, points in self._parameter_lists():
            for name in () if points._watch is None else points._watch.names_of(weight):
                points._note_use(name, use)
                self._note_use(f"{path}.{name}", use)

    def _note_use(self, name: str, use: WeightUse) -> None:
        if use not in self.findings.uses.get(name, ()):
            self.findings = self.findings.with_use(name, use)

    def _parameter_lists(self) -> tuple[tuple[str, StepPoints], ...]:
        """Return what holds the weights of the lists of parameters below the module, by their paths there.

        They have no forward in which their weights could be read.
        """
        if self._lists is None and self._watch is not None:
            below = named_modules(self._watch.served)
            lists = ((path, children(each).get(STEPS)) for path, each in below if _is_list(each) and path)
            self._lists = tuple((path, each) for path, each in lists if isinstance(each, StepPoints))
        return self._lists or ()

    @property
    def lists_read(self) -> tuple[str, ...]:
        """The paths, from the module, of the lists of parameters below it that its steps read."""
        dotted = (name.rpartition(".")[0] for name in self.findings.uses)
        return tuple(sorted({path for path in dotted if path}))

    def named_points(self) -> Iterator[tuple[str, QuantPoint]]:
        """Yield the point of each step that data have reached, by the step's name, in alphabetical order."""
        points = children(self)
        found = ((name, points[name]) for name in sorted(points))
        return ((name, each) for name, each in found if isinstance(each, QuantPoint) and not each.lacks_data)

    def enable_calibration(self, passage: Passage | None = None) -> None:
        """Find the steps in the forward passes that follow, and watch them."""
        self._passage = passage
        super().enable_calibration(passage)

    @property
    def passage(self) -> Passage | None:
        """The forward pass of a calibration in which some tokens are padding; None without padding."""
        return self._passage if self._passage is not None and self._passage.has_padding else None

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
        with steps_of(self, code, module, (args, kwargs)) as mode:
            output = forward(module, *args, **kwargs)
            mode.end(output)
            return output

    def pass_through(self, name: str, result: Tensor, tracing: ScoreTracing) -> Tensor:
        """Return the `result` of the step `name`, held back to be seen, or moved to the step's grid.

        Raises:
            CalibrationError: the model is quantized, and no calibration data have reached the step.
        """
        known: dict[str, nn.Module | None] = self._modules
        point = known.get(name)
        if self.mode is Mode.CALIB:
            watching = point if isinstance(point, QuantPoint) else self._new_point(name)
            see = watching if self._passage is None else self._passage.later(watching)
            tracing.hold(result, see, partial(self._note, watching, result.ndim))
            return result
        if not isinstance(point, QuantPoint):
            raise CalibrationError(unseen_step(self.path, name))
        if name in self.findings.scores and point.fixed is not None:
            return moved_within_reach(result, point, by_row=point.is_dynamic)
        moved: Tensor = point(result)
        return moved

    def waits_for_mask(self, name: str) -> bool:
        """Whether the grid of the step `name` follows from each row, and a mask is applied later."""
        point = self._modules.get(name) if name in self.findings.unmasked else None
        return isinstance(point, QuantPoint) and point.fixed is not None and point.is_dynamic

    def move_apart(self, name: str, result: Tensor, left_out: Tensor | None) -> Tensor:
        """Return the `result` of a step that waited, moved to its grid but for what is `left_out`."""
        point = self.point(name)
        return point(result) if left_out is None else moved_but(result, point, left_out)

    def _note(self, point: QuantPoint, axes: int, role: StepRole) -> None:
        name = point.declaration.name
        if not self.findings.has_role(name, role):
            self.findings = self.findings.with_role(name, role)
        if role is StepRole.SCORES and axes == _AXES_OF_ATTENTION and name not in self.findings.by_head:
            self.findings = self.findings.with_heads(name)
            point.tell_apart(_HEADS)

    def leave_float(self, name: str, function: str) -> None:
        """Note that the step `name` calls `function`, which no table knows, so that it has no point.

        Raises:
            CalibrationError: the model is quantized, and no calibration data have reached the step.
        """
        if self.mode is Mode.CALIB:
            self.findings = self.findings.with_unknown(name, function)
        elif name not in self.findings.unknown:
            raise CalibrationError(unseen_step(self.path, name))

    def note_foreign(self, name: str) -> None:
        """Note that the step `name` reads nothing but what no function of torch has handed on."""
        if self.mode is Mode.CALIB:
            self.findings = self.findings.with_foreign(name)

    def note_need(self, name: str, needed: bool) -> None:
        """Take note whether a result of the step `name` was needed as a number, or to decide only."""
        self.findings = self.findings.with_need(name, needed)

    def leave_unfit(self, edit: Edit) -> str:
        """Leave steps float to which no grid does justice, and say which and why; empty without any."""
        unfit = dict(self._unfit())
        for name in unfit.keys() - self.findings.unknown.keys():
            edit.set_attribute(self.point(name), "spec", no_quant())
            self.point(name).fix(None, edit)
        unfit |= {} if self._watch is None else self._watch.left_float(self.findings.uses)
        notes = [f"{name} stays float: {why}" for name, why in sorted(unfit.items())]
        foreign = ", ".join(sorted(self.findings.foreign))
        return "; ".join([*notes, *([f"what {foreign} reads was {FOREIGN}"] if foreign else [])])

    def _unfit(self) -> Mapping[str, str]:
        """Return the steps that are to stay float although a grid is asked for, each with the reason."""
        asked = {name: point for name, point in self.named_points() if point.is_quantized}
        unfit = {name: f"{function} is in no table" for name, function in self.findings.unknown.items()}
        for name, point in asked.items():
            if point.largest >= LARGEST_PLAUSIBLE:
                unfit[name] = "it holds a mask"
            elif point.is_dynamic and name in self.findings.rewritten:
                unfit[name] = "a mask is applied later, in place, which a grid per token can't know"
            elif not self._is_named(point.path) and (why := self._why_unasked(name)):
                unfit[name] = why
        return unfit

    def _why_unasked(self, name: str) -> str:
        """Return why the step `name` has a grid only where an override speaks of it; empty without reason."""
        if name in self.findings.statistics:
            return "it is a statistic of a norm"
        return "only comparisons and indices read it" if name in self.findings.deciding_only else ""

    def problems(self) -> list[Problem]:
        """Return why steps can't have a point, or what they read none, unless overrides speak of them."""
        return [*self._unknown_problems(), *self._foreign_problems()]

    def _foreign_problems(self) -> Iterator[Problem]:
        paths = (child_path(self.path, name) for name in sorted(self.findings.foreign))
        return (foreign_step(path) for path in paths if not self._is_named(path))

    def _unknown_problems(self) -> Iterator[Problem]:
        found = ((child_path(self.path, name), each) for name, each in sorted(self.findings.unknown.items()))
        return (unknown_step(path, function) for path, function in found if self._resolve(path).is_quantized)

    def _new_point(self, name: str) -> QuantPoint:
        path = child_path(self.path, name)
        point = QuantPoint(path, PointDeclaration(name, Role.OTHER, channels=None), self._resolve(path))
        self._modules[name] = point
        point.watch(self._passage)
        return point

    def _pack_weights(self, codes: WeightCodes, edit: Edit) -> None:
        """Put integers in the place of the weights that steps read."""
        made = {} if self._watch is None else self._watch.packed(codes, self.findings.uses)
        edit.set_attribute(self, "weight_specs", {name: self.weight_specs[name] for name in made})
        if self._watch is not None and made:
            modules: dict[str, nn.Module | None] = self._modules
            edit.put(modules, _WEIGHTS, OwnedWeights(made))
            take_weights(self._watch.served, tuple(made), edit)

    @property
    def is_idle(self) -> bool:
        """Whether nothing of the module has a point, integers, or a note: it only hands tensors on."""
        found = any(True for _ in self.named_points())
        return not (found or self.weights or self.findings.unknown or self.findings.uses)

    def leave(self, edit: Edit) -> None:
        """Let the module run its forward again as if nothing had stood beside it."""
        if self._watch is not None:
            leave(self._watch.served, edit)

    def known_findings(self) -> Mapping[str, object]:
        """Return the names of all steps, and what they turned out to be, as JSON values."""
        return {"steps": [name for name, _ in self.named_points()], **self.findings.to_values()}

    def adopt_findings(self, layout: Layout, edit: Edit) -> None:
        """Have found also what `known_findings` of another calibration tells.

        Raises:
            ArtifactError: a value is missing or of another type.
        """
        modules: dict[str, nn.Module | None] = self._modules
        edit.set_attribute(self, "findings", self.findings.merge(StepFindings.read(layout)))
        for name in layout.texts("steps"):
            if name not in modules:
                edit.on_undo(partial(modules.pop, name, None))
                self._new_point(name)
            if name in self.findings.by_head:
                self.point(name).tell_apart(_HEADS)

    def float_weights(self) -> Mapping[str, Tensor]:
        """Return the weights of the module that steps with data read, by name."""
        served = None if self._watch is None else self._watch.served
        held = {name: None if served is None else parameter(served, name) for name in self.findings.uses}
        return {name: weight for name, weight in held.items() if weight is not None}

    def waiting_points(self) -> Iterator[QuantPoint]:
        """Yield the points of steps, those without data too."""
        return (each for each in children(self).values() if isinstance(each, QuantPoint))

    def finish(self, weights: WeightCodes, edit: Edit) -> nn.Module:
        """Freeze the points, without those of steps that only passes that failed have reached."""
        modules: dict[str, nn.Module | None] = self._modules
        for name in children(self).keys() - {name for name, _ in self.named_points()}:
            edit.drop(modules, name)
        self._pack_weights(weights, edit)
        edit.set_attribute(self, "_watch", None)
        edit.set_attribute(self, "_lists", None)
        edit.set_attribute(self, "_count", None)
        edit.set_attribute(self, "_passage", None)
        edit.set_attribute(self, "_resolve", _float)
        edit.set_attribute(self, "_is_named", _never)
        return super().finish(weights, edit)

    def layout(self) -> Mapping[str, object]:
        """Return the grids of the steps and which of them are attention scores, as JSON values."""
        weights = {name: each.layout() for name, each in self.weights.items()}
        return {"points": super().layout(), "weights": weights, "findings": self.findings.to_values()}

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
        weights = {
            name: OwnedWeight.restore(entry, select_below(tensors, f"{_WEIGHTS}.{name}"))
            for name, entry in layout.child("weights").children()
        }
        if weights:
            steps._modules[_WEIGHTS] = OwnedWeights(weights)
        steps.findings = StepFindings.read(layout.child("findings"))
        steps.mode = Mode.QUANT
        return steps
