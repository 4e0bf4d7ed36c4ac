"""PTQ: every module of a model in a wrapper, every point on the grid that calibration gives it."""

from __future__ import annotations

from typing import final

from torch import nn

from tico_config import CalibrationError, Found, Problem, PTQConfig
from tico_quantizers import (
    BaseQuantizer,
    Calibration,
    Converted,
    Edit,
    Example,
    LayerReport,
    QuantizedModule,
    Recorder,
    Report,
    named_modules,
)
from tico_wrapq._point import QuantPoint
from tico_wrapq._quant_module_base import QuantModuleBase, WeightCodes
from tico_wrapq._registry import REGISTRY
from tico_wrapq._wrapping import Wrapped, wrap


class _Points(Recorder):
    """Every point of a model."""

    def __init__(self, points: list[QuantPoint]) -> None:
        self._points = points

    def drop_unfinished(self) -> None:
        for point in self._points:
            point.drop_unfinished()

    def accept(self) -> None:
        for point in self._points:
            point.accept()


@final
class PTQCalibration(Calibration):
    """The wrappers of a model, each with its points."""

    def __init__(self, wrapped: Wrapped) -> None:
        self.wrapped = wrapped
        self.points = [point for wrapper in wrapped.wrappers.values() for _, point in wrapper.named_points()]
        super().__init__(_Points(self.points))


@final
class PTQQuantizer(BaseQuantizer[PTQConfig, PTQCalibration]):
    """Wraps a model, watches its points, and leaves integer layers and frozen points."""

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, PTQCalibration]:
        """Put the wrappers into the model and start to watch."""
        wrapped = wrap(model, self.config, REGISTRY.with_installed(), edit)
        for wrapper in wrapped.wrappers.values():
            wrapper.enable_calibration()
        return wrapped.root, PTQCalibration(wrapped)

    def convert(self, model: nn.Module, calibration: PTQCalibration, edit: Edit) -> Converted:
        """Put integer layers in the place of wrappers, and fix the points of the others."""
        _require_data(calibration.points)
        weights = WeightCodes()
        root, lines, modules = model, list(calibration.wrapped.left), []
        for path, wrapper in calibration.wrapped.wrappers.items():
            new = wrapper.finished(weights, edit)
            root = edit.replace(root, wrapper, new) if new is not wrapper else root
            modules.append(new)
            lines.append(_line(path, wrapper, new))
        by_path = {line.path: line for line in lines}
        ordered = [by_path[path] for path, _ in named_modules(root) if path in by_path]
        return Converted(root=root, modules=tuple(modules), report=Report(layers=tuple(ordered)))


def _require_data(points: list[QuantPoint]) -> None:
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


def _line(path: str, wrapper: QuantModuleBase, new: nn.Module) -> LayerReport:
    return LayerReport(
        path=path,
        module=wrapper.source,
        algorithm="ptq",
        weight=_weight_label(wrapper, new),
        activation=_activation_label(wrapper, new),
    )


def _weight_label(wrapper: QuantModuleBase, new: nn.Module) -> str:
    if not isinstance(new, QuantizedModule):
        return "float"
    unit = "per row" if new.group_size is None else f"group {new.group_size}"
    kept = "" if wrapper.weight_specs else ", codes kept"
    return f"{new.packed.dtype} {unit}{kept}"


def _activation_label(wrapper: QuantModuleBase, new: nn.Module) -> str:
    if isinstance(new, QuantizedModule):
        grids = {"act_in": new.act_in, "act_out": new.act_out}
    else:
        grids = {name: point.fixed for name, point in wrapper.named_points()}
    named = [f"{name} {grid.label}" for name, grid in grids.items() if grid is not None]
    return ", ".join(named) or "float"
