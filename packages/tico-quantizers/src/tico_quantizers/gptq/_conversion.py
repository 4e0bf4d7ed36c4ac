"""Layers replaced by integer ones, one after the other."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from tico_config import TicoError
from tico_observers import GramStatistic
from tico_quantizers._input_grams import located
from tico_quantizers._module_tree import Edit
from tico_quantizers._packed_weight import PackedWeight
from tico_quantizers._report import LayerReport
from tico_quantizers._weight_view import Layer, matrix, shape, with_weight
from tico_quantizers.gptq._core import Solution, quantize_weight
from tico_quantizers.gptq._plan import Target


class Conversion:
    """The layers replaced so far."""

    def __init__(self, model: nn.Module, edit: Edit) -> None:
        self.root = model
        self.done: list[LayerReport] = []
        self.modules: list[nn.Module] = []
        self._edit = edit

    def quantize(self, targets: tuple[Target, ...], statistics: Mapping[str, GramStatistic]) -> None:
        """Quantize `targets` and put the integer layers into the model."""
        for target in targets:
            solution = _solve(target, statistics[target.path])
            new = with_weight(target.layer, _packed(target.layer, solution))
            self.root = self._edit.replace(self.root, target.layer, new)
            self.modules.append(new)
            self.done.append(_layer_report(target, new, solution))


def _solve(target: Target, statistic: GramStatistic) -> Solution:
    config = target.config
    try:
        return quantize_weight(
            matrix(target.layer),
            statistic.matrix(),
            bits=config.bits,
            group_size=config.group_size,
            symmetric=config.symmetric,
            act_order=config.act_order,
            damping=config.damping,
        )
    except TicoError as error:
        raise located(error, target.path) from None


def _packed(layer: Layer, solution: Solution) -> PackedWeight:
    return PackedWeight.from_codes(
        solution.codes,
        solution.scale,
        solution.zero_point,
        dtype=solution.dtype,
        shape=shape(layer),
        group_size=solution.group_size,
        group_index=solution.group_index,
    )


def _layer_report(target: Target, new: nn.Module, solution: Solution) -> LayerReport:
    config = target.config
    unit = "per row" if config.group_size is None else f"group {config.group_size}"
    scheme = "symmetric" if config.symmetric else "asymmetric"
    grid = getattr(new, "act_in", None)
    return LayerReport(
        path=target.path,
        module=type(target.layer).__name__,
        algorithm="gptq",
        weight=f"{solution.dtype} {scheme} {unit}",
        activation="float" if grid is None else grid.label,
        reason="no damping sufficed, so rounded to nearest" if solution.rounded_only else "",
        figures=(
            ("loss", solution.loss),
            ("damping", solution.damping),
            ("dead columns", float(solution.dead_columns)),
        ),
    )
