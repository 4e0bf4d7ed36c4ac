"""How HQQ meets a model: layer by layer, each by its weight alone."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import final

from tico_config import HQQConfig, Problem, integer_format
from tico_modules import LayerReport, PackedWeight
from tico_observers import products
from tico_quantizers.conversion import WeightQuantizer
from tico_quantizers.layers import QuantizedWeight, Target, group_size_problem, matrix, shape
from tico_quantizers.solvers import Grid, LpGrid, half_quadratic


@final
class HQQQuantizer(WeightQuantizer[HQQConfig]):
    """HQQ over every linear layer and convolution; data change nothing."""

    def quantize(self, target: Target[HQQConfig]) -> QuantizedWeight:
        """Return the codes of a layer on the grids that were found for it."""
        start, config, weight = time.perf_counter(), target.config, matrix(target.layer)
        dtype, size = integer_format(config.weight_format().dtype), config.group_size
        grid = Grid(dtype=dtype, symmetric=config.symmetric, group_size=size)
        found = half_quadratic(weight, grid, lp_norm=config.lp_norm, steps=config.steps)
        packed = PackedWeight.on_grid(weight.view(shape(target.layer)), found.params, group_size=size)
        return QuantizedWeight(packed, _line(target, packed, found, time.perf_counter() - start))

    def problems(self, target: Target[HQQConfig]) -> Iterable[Problem]:
        """Return why the groups that are asked for do not fit the weight of a layer."""
        size, ragged = target.config.group_size, target.config.ragged_groups
        return filter(None, [group_size_problem(target.path, target.layer, size, ragged=ragged)])

    def shows_progress(self) -> bool:
        """Return whether a bar is shown."""
        return self.config.show_progress


def _line(target: Target[HQQConfig], packed: PackedWeight, found: LpGrid, seconds: float) -> LayerReport:
    act_in = getattr(target.layer, "act_in", None)
    losses = {"loss": found.loss, "loss if rounded to nearest": found.rounded_loss}
    return LayerReport(
        path=target.path,
        module=type(target.layer).__name__,
        algorithm="hqq",
        weight=f"{packed.dtype} {'symmetric' if target.config.symmetric else 'asymmetric'} {packed.unit}",
        activation="float" if act_in is None else act_in.label,
        bits=packed.bits,
        group_size=packed.group_size,
        seconds=seconds,
        figures=tuple((name, float(products.total(each))) for name, each in losses.items()),
    )
