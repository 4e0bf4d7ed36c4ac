"""The base of every wrapper."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, TypeAlias

from torch import Tensor, nn
from typing_extensions import Self

from tico_config import LifecycleError, Problem, QuantSpec, no_quant
from tico_modules import (
    ActivationGrid,
    Edit,
    Layout,
    PackedWeight,
    RestorableModule,
    carry_over,
    child_path,
    children,
    named_modules,
    parameter,
    select_below,
)
from tico_wrapq.base._declaration import PointDeclaration, Role
from tico_wrapq.base._mode import Mode
from tico_wrapq.base._passage import Passage
from tico_wrapq.base._point import QuantPoint

Resolve: TypeAlias = Callable[[str], QuantSpec]


class WeightCodes:
    """The integer weights made during one conversion: weights that are tied stay tied."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, QuantSpec], tuple[Tensor, PackedWeight]] = {}

    def get(self, weight: Tensor, spec: QuantSpec, make: Callable[[], PackedWeight]) -> PackedWeight:
        """Return the codes of `weight` for `spec`, made at the first request."""
        key = (id(weight), spec)
        if key not in self._made:
            self._made[key] = (weight, make())
        return self._made[key][1]


class QuantModuleBase(RestorableModule):
    """A module in the place of a float one, with quantization points.

    Subclasses list their points in `points`, take over what they need of the float module in `adopt`, and
    pass tensors through `self.point(name)` in `forward`. With every point passing, `forward` is the float
    function, bit for bit.

    Args:
        module: the float module.
        path: its full path in the model.
        resolve: gives the spec of each point by its full path.
    """

    points: ClassVar[tuple[PointDeclaration, ...]] = ()
    takes_hooks: ClassVar[bool] = False
    """Whether hooks of a module that stays whole move to the wrapper, which then calls its `forward`."""
    replaces_forward: ClassVar[bool] = False
    """Whether `forward` is that of the class it is registered for, so that it cannot serve another one."""
    makes_parts: ClassVar[bool] = False
    """Whether `adopt` makes modules that the float one has not; these get wrappers of their own too."""
    writes_to_input: ClassVar[bool] = False
    """Whether `forward` leaves in its input what the float module does, in every mode, if it writes to it."""

    def __init__(self, module: nn.Module, path: str, resolve: Resolve) -> None:
        super().__init__()
        self.path = path
        self.source: str = module.source if isinstance(module, QuantModuleBase) else type(module).__name__
        self.mode = Mode.NO_QUANT
        self.adopt(module)
        self.kept = next((name for name, child in children(self).items() if child is module), None)
        self.training = module.training
        if not self.stands_beside and (self.kept is None or self.takes_hooks):
            modes = [(part, part.training) for _, part in named_modules(module)]
            carry_over(module, self)
            for part, training in modes:
                part.training = training
        self.weight_specs: dict[str, QuantSpec] = {}
        for declaration in self.points_of(module):
            point_path = child_path(path, declaration.name)
            spec = resolve(point_path)
            if declaration.role is Role.WEIGHT:
                self.weight_specs[declaration.name] = spec
            else:
                point = QuantPoint(point_path, declaration, spec)
                vars(point)["training"] = module.training
                vars(self).pop(declaration.name, None)  # a point goes before an answer of the same name
                self._modules[declaration.name] = point

    @property
    def is_calibrating(self) -> bool:
        """Whether its points watch."""
        return self.mode is Mode.CALIB

    @property
    def stands_for(self) -> nn.Module:
        """The float module, where it stays whole; else this one."""
        return self if self.kept is None else children(self)[self.kept]

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """Return a parameter, buffer or module; where there is none, what the float module answers."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            kept: nn.Module | None = vars(self).get("_modules", {}).get(vars(self).get("kept"))
            if kept is None or name.startswith("_"):
                raise
            answer: Tensor | nn.Module = getattr(kept, name)
            return answer

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Take in a buffer, also one of a name that the float module answers for, as counters have."""
        kept, self.kept = vars(self).get("kept"), None
        try:
            super().register_buffer(name, tensor, persistent)
        finally:
            self.kept = kept

    @abstractmethod
    def adopt(self, module: nn.Module) -> None:
        """Keep what `forward` needs of the float module: itself as a child, or its children by their names.

        A wrapper that keeps the children is handed a wrapper of its own class when a model is quantized
        again: the names are the same.
        """

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return why this wrapper cannot serve `module` although it serves its class, or None."""
        return None

    @classmethod
    def pass_reason(cls, module: nn.Module) -> str | None:
        """Return why `module` needs no quantization although others of its class do, or None."""
        return None

    @classmethod
    def points_of(cls, module: nn.Module) -> tuple[PointDeclaration, ...]:
        """Return the points that the wrapper of `module` has: those of its class that `forward` reaches."""
        return cls.points

    def named_points(self) -> Iterator[tuple[str, QuantPoint]]:
        """Yield each activation point of this wrapper (not of its children) with its name."""
        return (
            (declaration.name, self.point(declaration.name))
            for declaration in self.points
            if declaration.name in self._modules and declaration.role is not Role.WEIGHT
        )

    def point(self, name: str) -> QuantPoint:
        """Return the activation point `name`.

        Raises:
            LifecycleError: the wrapper has no such point.
        """
        found: dict[str, nn.Module | None] = self._modules
        point = found.get(name)
        if not isinstance(point, QuantPoint):
            names = ", ".join(d.name for d in self.points)
            raise LifecycleError(
                Problem(
                    module=self.path,
                    field="point",
                    value=name,
                    expected=f"one of {names}",
                    sentence=f"it has no point {name!r}, but {names}",
                )
            )
        return point

    def enable_calibration(self, passage: Passage | None = None) -> None:
        """Start to watch every point of this wrapper; its children have their own.

        `passage` says when a forward pass of the model counts; without one, each tensor counts at once.

        Raises:
            LifecycleError: a point is frozen.
        """
        self.mode = Mode.CALIB
        for _, point in self.named_points():
            point.watch(passage)

    def float_weights(self) -> Mapping[str, Tensor]:
        """Return the weights that `finish` makes integers of, by name, to find those that several hold."""
        weight = parameter(self.stands_for, "weight")
        return {} if weight is None else {"weight": weight}

    def waiting_points(self) -> Iterator[QuantPoint]:
        """Yield the points that a calibration file may tell of."""
        return (point for _, point in self.named_points())

    def known_findings(self) -> Mapping[str, object]:
        """Return what calibration has told besides ranges, as JSON values; by default nothing."""
        return {}

    def adopt_findings(self, layout: Layout, edit: Edit) -> None:  # most have found nothing
        """Have found also what `known_findings` of another calibration tells."""

    def finish(self, weights: WeightCodes, edit: Edit) -> nn.Module:
        """Freeze every point and return what takes the place of this wrapper: itself, unless overridden.

        Raises:
            CalibrationError: a point saw no data.
        """
        for _, point in self.named_points():
            point.fix(point.determine_grid(), edit)
        edit.set_attribute(self, "mode", Mode.QUANT)
        return self

    @property
    def is_quantized(self) -> bool:
        """Whether the config asks for a grid at any point."""
        points = [point.is_quantized for _, point in self.named_points()]
        return any(points) or any(spec.is_quantized for spec in self.weight_specs.values())

    def work(self, args: tuple[object, ...], kwargs: Mapping[str, object], output: object) -> int:
        """Return the multiply-accumulates of one call with these arguments, those of children left out.

        A subclass that multiplies tensors itself says how often; they are done in integers where every point
        that is a weight or an activation coming in has a grid.
        """
        return 0

    @property
    def multiplies_integers(self) -> bool:
        """Whether everything that comes in is moved to a grid, and every weight is."""
        ins = [point for _, point in self.named_points() if point.declaration.role is Role.ACTIVATION_IN]
        weights = self.weight_specs.values()
        return all(point.is_quantized for point in ins) and all(spec.is_quantized for spec in weights)

    def layout(self) -> Mapping[str, object]:
        """Return the grids of the points, as JSON values."""
        grids = {name: point.fixed for name, point in self.named_points()}
        return {name: grid and grid.layout() for name, grid in grids.items()}

    @classmethod
    def restore(cls, original: nn.Module, layout: Layout, tensors: Mapping[str, Tensor]) -> Self:
        """Return the wrapper around `original` with the grids that `layout` and `tensors` hold.

        Raises:
            ArtifactError: they do not fit each other.
        """
        wrapper = cls(original, layout.where, lambda path: no_quant())
        with Edit() as edit:
            for name, point in wrapper.named_points():
                grid = layout.optional_child(name)
                if grid is not None:
                    point.fix(ActivationGrid.restore(grid, select_below(tensors, f"{name}.fixed")), edit)
        wrapper.mode = Mode.QUANT
        return wrapper

    def extra_repr(self) -> str:
        """Return the mode."""
        return f"mode={self.mode.name}"
