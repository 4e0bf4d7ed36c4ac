"""How GPTQ meets a model: which layers, whose inputs, in which order."""

from __future__ import annotations

from typing import final

import attrs
import torch
from torch import Tensor, nn

from tico_config import ConfigError, Found, GPTQConfig, NumericsError, Problem, TicoError, unmatched_problems
from tico_observers import GramStatistic
from tico_quantizers._block_calls import BlockCalls
from tico_quantizers._blocks import find_blocks
from tico_quantizers._forward_watch import Calibration, require_watched
from tico_quantizers._input_grams import InputGrams
from tico_quantizers._module_tree import Edit, named_modules
from tico_quantizers._packed_weight import PackedWeight
from tico_quantizers._progress import progress
from tico_quantizers._quantizer import BaseQuantizer, Converted, Example
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
    """A layer to quantize and the config that holds for it."""

    path: str
    layer: Layer
    config: GPTQConfig


@attrs.frozen(eq=False, kw_only=True)
class _Plan:
    """The layers to quantize, those left alone with the reason, and the blocks."""

    targets: tuple[_Target, ...]
    left: tuple[LayerReport, ...]
    blocks: tuple[tuple[str, nn.Module], ...]

    def inside(self, block_path: str) -> tuple[_Target, ...]:
        """Return the targets of one block."""
        return tuple(target for target in self.targets if target.path.startswith(f"{block_path}."))

    @property
    def outside(self) -> tuple[_Target, ...]:
        """The targets that no block holds."""
        starts = tuple(f"{path}." for path, _ in self.blocks)
        return tuple(target for target in self.targets if not target.path.startswith(starts))


@final
class GPTQCalibration(Calibration):
    """The calls of every block, the Gram matrices of the layers outside them, and which layers have run."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.calls = BlockCalls(tuple(block for _, block in plan.blocks))
        self.grams = InputGrams({target.path: target.layer for target in plan.outside})
        self.executed: set[str] = set()
        super().__init__(self.calls, self.grams)
        self.handles += self.calls.watch(self) + self.grams.watch(self)
        for target in plan.targets:
            self.handles.append(target.layer.register_forward_pre_hook(_Executed(self, target.path)))


class _Executed:
    def __init__(self, calibration: GPTQCalibration, path: str) -> None:
        self._calibration, self._path = calibration, path

    def __call__(self, module: nn.Module, args: object) -> None:
        if self._calibration.watching:
            self._calibration.executed.add(self._path)


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
        require_watched(calibration.executed, tuple(target.path for target in plan.targets))
        work = _Conversion(model, edit)
        outputs: dict[tuple[int, int], Tensor] = {}
        numbered = list(enumerate(plan.blocks))
        for number, (path, _) in progress(numbered, "GPTQ", show=self.config.show_progress):
            grams = _block_grams(calibration.calls, number, plan.inside(path), outputs)
            work.quantize(plan.inside(path), grams)
            outputs = _block_outputs(calibration.calls, number, outputs) if number + 1 < len(numbered) else {}
        work.quantize(plan.outside, calibration.grams)
        layers = {layer.path: layer for layer in (*plan.left, *work.done)}
        ordered = [layers[path] for path, _ in named_modules(model) if path in layers]
        return Converted(root=work.root, modules=tuple(work.modules), report=Report(layers=tuple(ordered)))


def _block_grams(
    calls: BlockCalls, number: int, targets: tuple[_Target, ...], outputs: dict[tuple[int, int], Tensor]
) -> InputGrams:
    grams = InputGrams({target.path: target.layer for target in targets})
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

    def quantize(self, targets: tuple[_Target, ...], grams: InputGrams) -> None:
        """Quantize `targets` with `grams` and put the integer layers into the model."""
        for target in targets:
            solution = _solve(target, grams.gram(target.path))
            new = with_weight(target.layer, _packed(target.layer, solution))
            self.root = self._edit.replace(self.root, target.layer, new)
            self.modules.append(new)
            self.done.append(_layer_report(target, new, solution))


def _solve(target: _Target, gram: GramStatistic | None) -> Solution:
    config = target.config
    statistic = gram if gram is not None else GramStatistic(columns=columns(target.layer))
    try:
        with torch.no_grad():
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
        first, *others = (attrs.evolve(problem, module=target.path) for problem in error.problems)
        raise type(error)(first, *others) from None


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
    targets = tuple(
        _Target(path, layer, config.for_module(path).spec)
        for path, layer in layers.items()
        if path not in reasons
    )
    problems = [
        *unmatched_problems(config.overrides, list(layers)),
        *(problem for target in targets for problem in _target_problems(target)),
    ]
    if not targets:
        found = Found("; ".join(f"{path}: {why}" for path, why in reasons.items()) or "none")
        expected = "a model with a linear layer or convolution to quantize"
        problems.append(Problem(field="model", value=found, expected=expected))
    if problems:
        raise ConfigError(*problems)
    _require_finite_weights(targets)
    left = tuple(
        LayerReport(path=path, module=type(layers[path]).__name__, algorithm="gptq", reason=why)
        for path, why in reasons.items()
    )
    return _Plan(targets=targets, left=left, blocks=find_blocks(model, [target.layer for target in targets]))


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
            reason = "the output embedding stays float unless an override names it"
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
