"""How GPTQ meets a model: block by block, each on what the quantized blocks before it give."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import final

import attrs
import torch
from torch import nn

from tico_config import GPTQConfig, Problem
from tico_modules import Edit
from tico_quantizers.algorithms.gptq._layer import ReadInput, round_layer, solve_layer
from tico_quantizers.calibration import (
    BlockInputs,
    BlockOptions,
    Calibration,
    Checkpoint,
    GroupedGram,
    TokenRule,
    run_blocks,
)
from tico_quantizers.conversion import Conversion, Progress
from tico_quantizers.layers import (
    LayerPlan,
    QuantizedWeight,
    Target,
    columns,
    group_size_problem,
    groups,
    plan_layers,
)
from tico_quantizers.protocol import BaseQuantizer, Converted, Example

_LOG = logging.getLogger("tico_quantizers")


@final
class GPTQCalibration(Calibration):
    """The calls of every block, and the Gram matrices of what layers have read outside of their block."""

    def __init__(self, model: nn.Module, plan: LayerPlan[GPTQConfig], config: GPTQConfig) -> None:
        super().__init__()
        self.plan = plan
        self.inputs = BlockInputs(model, plan.layers, _options(config))
        self.inputs.record(self)
        self.inputs.watch(plan.layers, self, {path: _rule(target) for path, target in plan.targets.items()})


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
        calibration = GPTQCalibration(model, plan_layers(model, self.config, check=_problems), self.config)
        calibration.inputs.install(model, edit)
        return model, calibration

    def convert(self, model: nn.Module, calibration: GPTQCalibration, edit: Edit) -> Converted:
        """Replace the layers by integer ones."""
        plan, inputs = calibration.plan, calibration.inputs
        inputs.require_data()
        inputs.uninstall(model, edit)
        checkpoint = Checkpoint.of(self.config.checkpoint_dir, _decisive(self.config), model, inputs)
        with Progress("GPTQ", total=len(plan.targets), show=self.config.show_progress) as bar:
            work = Conversion(model, plan.layers, edit, bar)
            run_blocks(inputs, _Solver(plan, work), checkpoint)
        return work.converted(plan.lines_left(model, "gptq"))


class _Solver:
    """Quantizes layers by what they have read; where that is but a number of tokens, to nearest."""

    def __init__(self, plan: LayerPlan[GPTQConfig], work: Conversion) -> None:
        self._plan = plan
        self._work = work

    def learn(
        self, paths: tuple[str, ...], statistics: Mapping[str, GroupedGram | int]
    ) -> list[QuantizedWeight]:
        """Put integer layers in the place of those at `paths`."""
        weights: list[QuantizedWeight] = []
        read: ReadInput | None = None
        for path in paths:
            target, gram = self._plan.targets[path], statistics[path]
            if isinstance(gram, int):
                weights.append(round_layer(target, gram))
            else:
                # Most layers that read the same are neighbours.
                if read is None or read.gram is not gram:
                    read = None
                    read = ReadInput(gram)
                weights.append(solve_layer(target, read))
            self.put_all(paths, weights[-1:])
        return weights

    def put_all(self, paths: tuple[str, ...], weights: list[QuantizedWeight]) -> None:
        """Put `weights` into the model, and warn of those that were only rounded."""
        self._work.put_all(weights)
        for weight in weights:
            if weight.line.reason:
                _LOG.warning("%s: %s", weight.line.path, weight.line.reason)


def _options(config: GPTQConfig) -> BlockOptions:
    return BlockOptions(
        paired=config.asymmetric > 0,
        true_sequential=config.true_sequential,
        early_end=config.stop_after_capture,
        forward_dtype=None if config.forward_dtype is None else torch.bfloat16,
        offload=config.offload is not None,
        narrow=config.activation_dtype is not None,
    )


def _rule(target: Target[GPTQConfig]) -> TokenRule:
    return TokenRule(weights=target.config.token_weights, least=target.config.min_expert_tokens)


def _decisive(config: GPTQConfig) -> GPTQConfig:
    """Return `config` without the settings that change no bit of the result."""
    return attrs.evolve(
        config, checkpoint_dir=None, offload=None, show_progress=True, stop_after_capture=False
    )


def _problems(target: Target[GPTQConfig]) -> Iterator[Problem]:
    """Yield why the grid that is asked for cannot be had for the weight of a layer."""
    path, layer, config = target.path, target.layer, target.config
    problem = group_size_problem(path, layer, config.group_size, ragged=config.ragged_groups)
    if problem is not None:
        yield problem
    elif config.act_order and not config.static_groups:
        parts = groups(layer)
        if parts > 1 and config.group_size not in (None, columns(layer)):
            # Each group of channels would have an order, and so groups of columns, of its own.
            expected = (
                f"False for a convolution of {parts} groups of channels with group_size={config.group_size}"
            )
            remedy = "choose another, for all or by an override for this module, or set static_groups"
            yield Problem(module=path, field="act_order", value=True, expected=expected, remedy=remedy)
