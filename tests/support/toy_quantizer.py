"""An algorithm in a few lines that keeps the promises, and what it is made of, to be broken one at a time."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from tico_config import DType, Found, ModuleConfig, NumericsError, PerChannel, Problem, register_config
from tico_modules import Edit, LayerReport, PackedWeight, Report, named_modules
from tico_observers import params_from_range
from tico_quantizers import BaseQuantizer, Calibration, Converted, Example, Recorder, require_watched
from tico_quantizers.calibration import before_call
from tico_quantizers.layers import Layer, LayerPlan, matrix, plan_layers, shape, with_weight


@register_config
@attrs.frozen(kw_only=True)
class ToyConfig(ModuleConfig):
    """Codes of `bits` bits over the range of each row, less what the data say."""

    name: ClassVar[str] = "toy"

    bits: int = 4


class Maxima(Recorder):
    """The largest magnitude of what each layer has read."""

    def __init__(self) -> None:
        self.known: dict[str, Tensor] = {}
        self.fresh: dict[str, Tensor] = {}
        self.merged: dict[str, Tensor] = {}

    def note(self, path: str, x: Tensor) -> None:
        """Take the input of the layer at `path`."""
        if not bool(torch.isfinite(x).all()):
            raise NumericsError(Problem(module=path, field="x", value=Found("NaN"), expected="finite"))
        largest = x.detach().abs().amax().float()
        self.fresh[path] = torch.maximum(self.fresh.get(path, largest), largest)

    def drop_unfinished(self) -> None:
        """Forget the pass that goes on."""
        self.fresh = {}

    def digest(self) -> None:
        """Compute what will be known, as that may fail."""
        merged = {
            path: torch.maximum(self.known.get(path, largest), largest)
            for path, largest in self.fresh.items()
        }
        self.merged = self.known | merged

    def accept(self) -> None:
        """Count the pass that has ended."""
        self.known, self.fresh = self.merged, {}


@attrs.frozen(eq=False)
class _Tap:
    maxima: Maxima
    calibration: Calibration
    path: str

    def note(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Take the first argument of a call."""
        if isinstance(args[0], Tensor):
            self.maxima.note(self.path, args[0])
            self.calibration.accept_unless_in_forward()


class ToyCalibration(Calibration):
    """The plan and the maxima."""

    def __init__(self, plan: LayerPlan[ToyConfig], maxima: Maxima) -> None:
        super().__init__(maxima)
        self.plan = plan
        self.maxima = maxima

    def watch(self) -> None:
        """Set the hooks."""
        for path, layer in self.plan.layers.items():
            self.handles.append(before_call(layer, _Tap(self.maxima, self, path).note, self))


class ToyQuantizer(BaseQuantizer[ToyConfig, ToyCalibration]):
    """Rounds to nearest; the larger the inputs of a layer, the narrower its grid, by a hair."""

    maxima: ClassVar[type[Maxima]] = Maxima
    calibration: ClassVar[type[ToyCalibration]] = ToyCalibration

    def plan(self, model: nn.Module) -> LayerPlan[ToyConfig]:
        """Return which layers to quantize."""
        return plan_layers(model, self.config)

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, ToyCalibration]:
        """Watch the layers of the plan."""
        calibration = self.calibration(self.plan(model), self.maxima())
        calibration.watch()
        return model, calibration

    def share(self, path: str, maxima: Maxima) -> Tensor:
        """Return by what share the grid of a layer is narrower than its weights."""
        return 1 - maxima.known[path] / (1 + maxima.known[path]) / 64

    def packed(self, layer: Layer, share: Tensor, bits: int) -> PackedWeight:
        """Return the codes of a layer's weight."""
        weight = matrix(layer)
        low, high = weight.amin(1) * share, weight.amax(1) * share
        unit = PerChannel(0)
        params = params_from_range(low, high, DType.uint(bits), symmetric=False, granularity=unit)
        return PackedWeight.on_grid(weight.view(shape(layer)), params)

    def replacement(self, layer: Layer, packed: PackedWeight) -> nn.Module:
        """Return the integer layer."""
        return with_weight(layer, packed)

    def line(self, path: str, module: nn.Module) -> LayerReport:
        """Return the line of a module."""
        return LayerReport(path=path, module=type(module).__name__, algorithm="toy", weight="uint4 per row")

    def lines(self, model: nn.Module, plan: LayerPlan[ToyConfig]) -> list[LayerReport]:
        """Return a line for each module that has parameters of its own."""
        return [self.line(path, module) for path, module in named_modules(model) if module._parameters]

    def convert(self, model: nn.Module, calibration: ToyCalibration, edit: Edit) -> Converted:
        """Put integer layers in the place of those of the plan."""
        require_watched({*calibration.maxima.known}, tuple(calibration.plan.targets))
        root, modules = model, []
        lines = self.lines(model, calibration.plan)
        for path, target in calibration.plan.targets.items():
            share = self.share(path, calibration.maxima)
            new = self.replacement(target.layer, self.packed(target.layer, share, target.config.bits))
            modules.append(new)
            root = self.put(root, path, new, edit)
        return Converted(root=root, modules=tuple(modules), report=Report(layers=tuple(lines)))

    def put(self, root: nn.Module, path: str, new: nn.Module, edit: Edit) -> nn.Module:
        """Put a module at a path."""
        return edit.replace(root, root.get_submodule(path), new)
