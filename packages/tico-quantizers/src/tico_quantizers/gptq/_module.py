"""How GPTQ meets a model: which layers, whose inputs, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import attrs
import torch
from torch import Tensor, nn

from tico_config import ConfigError, Found, GPTQConfig, NumericsError, Problem, TicoError, unmatched_problems
from tico_observers import GramStatistic
from tico_quantizers._block_calls import BlockCalls
from tico_quantizers._blocks import find_blocks
from tico_quantizers._forward_watch import Calibration, require_watched
from tico_quantizers._input_grams import InputGrams, located
from tico_quantizers._module_tree import Edit, named_modules
from tico_quantizers._packed_weight import PackedWeight
from tico_quantizers._progress import progress
from tico_quantizers._quantizer import BaseQuantizer, Converted, Example
from tico_quantizers._reached_layers import ReachedLayers
from tico_quantizers._report import LayerReport, Report
from tico_quantizers._weight_view import (
    Layer,
    as_layer,
    columns,
    matrix,
    reason_against,
    shape,
    tied_paths,
    with_weight,
)
from tico_quantizers.gptq._core import Solution, quantize_weight


@attrs.frozen(eq=False)
class _Target:
    """A layer to quantize, the config that holds for it, and the number of the one block that holds it."""

    path: str
    layer: Layer
    config: GPTQConfig
    block: int | None


@attrs.frozen(eq=False, kw_only=True)
class _Plan:
    """The layers to quantize, those left alone with the reason, and the blocks."""

    targets: tuple[_Target, ...]
    left: tuple[LayerReport, ...]
    blocks: tuple[nn.Module, ...]

    def of_block(self, number: int | None) -> tuple[_Target, ...]:
        """Return the targets of one block; of None, those that no block or more than one holds."""
        return tuple(target for target in self.targets if target.block == number)


@final
class GPTQCalibration(Calibration):
    """The calls of every block, and the Gram matrices of what layers have read outside of their block."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.calls = BlockCalls(plan.blocks)
        self.reached = ReachedLayers({target.path: target.layer for target in plan.targets})
        self.outside = InputGrams(_layers(plan.of_block(None)))
        self.strays = InputGrams(_layers(tuple(t for t in plan.targets if t.block is not None)))
        super().__init__(self.calls, self.reached, self.outside, self.strays)
        self.handles += self.calls.watch(self) + self.reached.watch(self) + self.outside.watch(self)
        self.handles += self.strays.watch(self, except_within=self.calls)

    def accept_unless_in_forward(self) -> None:
        """Count at once what a block or layer that was called by itself has shown."""
        if not self.calls.is_running:
            super().accept_unless_in_forward()

    def statistics(self, targets: tuple[_Target, ...], *sources: InputGrams) -> dict[str, GramStatistic]:
        """Return what each of `targets` has read, as the `sources` tell.

        Raises:
            CalibrationError: with every one of them that has read nothing.
        """
        found: dict[str, GramStatistic] = {}
        for target in targets:
            for gram in (source.gram(target.path) for source in sources):
                if gram is not None:
                    known = found.get(target.path)
                    found[target.path] = gram if known is None else known.merge(gram)
        seen = {path for path, gram in found.items() if not gram.is_empty}
        require_watched(seen, tuple(target.path for target in targets))
        return found


def _layers(targets: tuple[_Target, ...]) -> dict[str, Layer]:
    return {target.path: target.layer for target in targets}


@final
class GPTQQuantizer(BaseQuantizer[GPTQConfig, GPTQCalibration]):
    """GPTQ over every linear layer and convolution, block by block.

    The blocks of a model are run again one by one during `convert`: once on the outputs of the quantized
    blocks before it to collect the Gram matrices, once quantized to feed the next. Layers outside the
    blocks take theirs from the user's own passes.
    """

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, GPTQCalibration]:
        """Start to watch the inputs of blocks and layers."""
        calibration = GPTQCalibration(_plan(model, self.config))
        return model, calibration

    def convert(self, model: nn.Module, calibration: GPTQCalibration, edit: Edit) -> Converted:
        """Replace the layers by integer ones."""
        plan = calibration.plan
        require_watched(calibration.reached.paths, tuple(target.path for target in plan.targets))
        work = _Conversion(model, edit)
        # Blocks run again here: neither the caller's gradients nor its random numbers may notice.
        with torch.inference_mode(mode=False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            self._convert_blocks(calibration, work)
            outside = plan.of_block(None)
            work.quantize(outside, calibration.statistics(outside, calibration.outside))
        layers = {layer.path: layer for layer in (*plan.left, *work.done)}
        ordered = [layers[path] for path, _ in named_modules(model) if path in layers]
        return Converted(root=work.root, modules=tuple(work.modules), report=Report(layers=tuple(ordered)))

    def _convert_blocks(self, calibration: GPTQCalibration, work: _Conversion) -> None:
        plan, calls = calibration.plan, calibration.calls
        outputs: dict[tuple[int, int], Tensor] = {}
        last = len(plan.blocks) - 1
        for number in progress(range(len(plan.blocks)), "GPTQ", show=self.config.show_progress):
            targets = plan.of_block(number)
            if targets:
                grams = _block_grams(calls, number, targets, outputs)
                work.quantize(targets, calibration.statistics(targets, grams, calibration.strays))
            outputs = _block_outputs(calls, number, outputs) if number < last else {}


def _block_grams(
    calls: BlockCalls, number: int, targets: tuple[_Target, ...], outputs: dict[tuple[int, int], Tensor]
) -> InputGrams:
    grams = InputGrams(_layers(targets), disposable=True)
    collector = Calibration(grams)
    collector.in_forward = True
    handles = grams.watch(collector)
    try:
        for _ in calls.run(number, outputs, keep=False):
            collector.accept()
    finally:
        for handle in handles:
            handle.remove()
    return grams


def _block_outputs(
    calls: BlockCalls, number: int, outputs: dict[tuple[int, int], Tensor]
) -> dict[tuple[int, int], Tensor]:
    wanted = calls.wanted_by_next(number)
    found: dict[tuple[int, int], Tensor] = {}
    if wanted:
        for tensors in calls.run(number, outputs, keep=True):
            found |= {key: tensor for key, tensor in tensors.items() if key in wanted}
    return found


class _Conversion:
    """The layers replaced so far."""

    def __init__(self, model: nn.Module, edit: Edit) -> None:
        self.root = model
        self.done: list[LayerReport] = []
        self.modules: list[nn.Module] = []
        self._edit = edit

    def quantize(self, targets: tuple[_Target, ...], statistics: Mapping[str, GramStatistic]) -> None:
        """Quantize `targets` and put the integer layers into the model."""
        for target in targets:
            solution = _solve(target, statistics[target.path])
            new = with_weight(target.layer, _packed(target.layer, solution))
            self.root = self._edit.replace(self.root, target.layer, new)
            self.modules.append(new)
            self.done.append(_layer_report(target, new, solution))


def _solve(target: _Target, statistic: GramStatistic) -> Solution:
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


def _layer_report(target: _Target, new: nn.Module, solution: Solution) -> LayerReport:
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


def _plan(model: nn.Module, config: GPTQConfig) -> _Plan:
    """Decide what is done to every module, and refuse what cannot be done, all at once."""
    layers = {path: layer for path, module in named_modules(model) if (layer := as_layer(module)) is not None}
    reasons = _reasons(model, config, layers)
    wanted = {path: layer for path, layer in layers.items() if path not in reasons}
    blocks = find_blocks(model, list(wanted.values()))
    homes = _homes([block for _, block in blocks])
    problems = _override_problems(config, list(wanted), reasons)
    if not wanted:
        found = Found("; ".join(f"{path}: {why}" for path, why in reasons.items()) or "none")
        expected = "a model with a linear layer or convolution to quantize"
        problems.append(Problem(field="model", value=found, expected=expected))
    targets = tuple(
        _Target(path, layer, config.resolve(path).spec, homes.get(id(layer)))
        for path, layer in wanted.items()
    )
    problems += [problem for target in targets for problem in _target_problems(target)]
    if problems:
        raise ConfigError(*problems)
    _require_finite_weights(targets)
    left = tuple(
        LayerReport(path=path, module=type(layers[path]).__name__, algorithm="gptq", reason=why)
        for path, why in reasons.items()
    )
    return _Plan(targets=targets, left=left, blocks=tuple(block for _, block in blocks))


def _homes(blocks: list[nn.Module]) -> dict[int, int | None]:
    """Return, by the identity of a module, the number of its block; None where several blocks hold it."""
    homes: dict[int, int | None] = {}
    for number, block in enumerate(blocks):
        for _, module in named_modules(block):
            homes[id(module)] = None if id(module) in homes else number
    return homes


def _override_problems(config: GPTQConfig, wanted: list[str], reasons: dict[str, str]) -> list[Problem]:
    """Return a problem for each override that changes nothing, with the reason where there is one."""
    problems = unmatched_problems(config.overrides, [*wanted, *reasons])
    for pattern in config.overrides:
        kept = [path for path in reasons if not unmatched_problems([pattern], [path])]
        if kept and unmatched_problems([pattern], wanted):
            remedy = "; ".join(f"{path} stays float: {reasons[path]}" for path in kept)
            expected = "a rule that matches a layer to quantize"
            problems.append(Problem(field="overrides", value=pattern, expected=expected, remedy=remedy))
    return problems


def _reasons(model: nn.Module, config: GPTQConfig, layers: dict[str, Layer]) -> dict[str, str]:
    """Return the layers that are left alone, each with the reason."""
    tied = tied_paths(model)
    head = _output_embedding(model)
    attention = tuple(
        f"{path}." if path else "out_proj"
        for path, module in named_modules(model)
        if isinstance(module, nn.MultiheadAttention)
    )
    found: dict[str, str] = {}
    for path, layer in layers.items():
        reason = reason_against(layer, inside_attention=bool(attention) and path.startswith(attention))
        if reason is None and path in tied:
            reason = f"its weight is tied to {tied[path]}"
        if reason is None and layer is head and path not in config.overrides:
            reason = "the output embedding is quantized only if an override has its exact path"
        if reason is not None:
            found[path] = reason
    return found


def _output_embedding(model: nn.Module) -> object:
    """Return the head of a language model that says which module it is."""
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if callable(getter) else None


def _target_problems(target: _Target) -> list[Problem]:
    size, width = target.config.group_size, columns(target.layer)
    if size is None or (size <= width and width % size == 0):
        return []
    remedy = "choose a divisor, for all or by an override for this module"
    expected = f"None or a divisor of its {width} input columns"
    return [Problem(module=target.path, field="group_size", value=size, expected=expected, remedy=remedy)]


def _require_finite_weights(targets: tuple[_Target, ...]) -> None:
    problems = []
    for target in targets:
        weight = matrix(target.layer)
        if not bool(torch.isfinite(weight).all()):
            index = tuple(torch.nonzero(~torch.isfinite(weight))[0].tolist())
            found = Found(f"{weight[index].item()} at {index}")
            problems.append(Problem(module=target.path, field="weight", value=found, expected="finite"))
    if problems:
        raise NumericsError(*problems)
