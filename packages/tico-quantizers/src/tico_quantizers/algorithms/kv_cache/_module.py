"""How a quantized cache meets a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn

from tico_config import CalibrationError, KVCacheConfig, Problem
from tico_modules import KV_CACHE, Edit, KeyValueCache, LayerCache, LayerReport, Report
from tico_quantizers.algorithms.kv_cache._attention import CachedLayers, cached_layers
from tico_quantizers.algorithms.kv_cache._calibration import KVCacheCalibration
from tico_quantizers.algorithms.kv_cache._grids import placeholder_grids, static_grids
from tico_quantizers.algorithms.kv_cache._recorder import RangeRecorder
from tico_quantizers.protocol import BaseQuantizer, Converted, Example, Planned


@final
class KVCacheQuantizer(BaseQuantizer[KVCacheConfig, KVCacheCalibration]):
    """Keys and values of a language model as codes; its modules and weights stay as they are."""

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, KVCacheCalibration]:
        """Find the layers, and start to watch where grids are static."""
        found = cached_layers(model, self.config)
        static = {number: found.paths[number] for number, each in found.configs.items() if each.static}
        calibration = KVCacheCalibration(model, RangeRecorder(static) if static else None)
        calibration.watch()
        return model, calibration

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        """Return what would become of `model`; only the numbers of static grids are up to the data."""
        found = cached_layers(model, self.config)
        layers = {n: LayerCache(each, *placeholder_grids(each)) for n, each in found.configs.items()}
        static = any(each.static for each in found.configs.values())
        return Planned(
            converted=_converted(model, found, layers, edit, figures=False),
            undecided={KV_CACHE: "the scales"} if static else {},
            unsized=frozenset({KV_CACHE}) if static else frozenset(),
        )

    def convert(self, model: nn.Module, calibration: KVCacheCalibration, edit: Edit) -> Converted:
        """Give the model its cache.

        Raises:
            CalibrationError: a layer saw no data, or a static grid only zeros; with every one.
        """
        found = cached_layers(model, self.config)
        seen = {} if calibration.recorder is None else calibration.recorder.seen
        layers: dict[int, LayerCache] = {}
        problems: list[Problem] = []
        for number, config in found.configs.items():
            grids, wrong = static_grids(number, found.paths[number], config, seen)
            problems += wrong
            if not wrong:
                layers[number] = LayerCache(config, *grids)
        if problems:
            raise CalibrationError(*problems)
        return _converted(model, found, layers, edit)


def _converted(
    model: nn.Module,
    found: CachedLayers,
    layers: Mapping[int, LayerCache],
    edit: Edit,
    *,
    figures: bool = True,
) -> Converted:
    cache = KeyValueCache([layers.get(number) for number in range(len(found.paths))])
    cache.join(model, edit)
    line = _line(found, layers, figures=figures)
    return Converted(root=model, modules=(cache,), report=Report(layers=(line,)))


def _line(found: CachedLayers, layers: Mapping[int, LayerCache], *, figures: bool) -> LayerReport:
    """Return the line of the cache: formats, layers left in float, and the ends of static scales."""
    formats: dict[str, list[int]] = {}
    for number, layer in layers.items():
        formats.setdefault(layer.describe(), []).append(number)
    texts = [
        text if len(formats) == 1 else f"layers {_numbers(these)}: {text}" for text, these in formats.items()
    ]
    left = [f"{found.paths[number]}: {why}" for number, why in found.reasons.items()]
    return LayerReport(
        path=KV_CACHE,
        module=KeyValueCache.__name__,
        algorithm=KVCacheConfig.name,
        activation=" | ".join(texts),
        reason="; ".join(left),
        figures=_figures(layers) if figures else (),
    )


def _numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _figures(layers: Mapping[int, LayerCache]) -> tuple[tuple[str, float], ...]:
    found: list[tuple[str, float]] = [("layers", float(len(layers)))]
    for name in ("key", "value"):
        scales = [getattr(layer, f"{name}_scale") for layer in layers.values()]
        ends = [each.aminmax() for each in scales if isinstance(each, Tensor)]
        if ends:
            found.append((f"least {name} scale", min(float(low) for low, _ in ends)))
            found.append((f"largest {name} scale", max(float(high) for _, high in ends)))
    return tuple(found)
