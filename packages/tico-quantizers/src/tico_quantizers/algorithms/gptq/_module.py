"""How GPTQ meets a model: block by block, each on what the quantized blocks before it give."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, final

import attrs
import torch
from torch import nn

from tico_config import GPTQConfig, Problem
from tico_quantizers.algorithms.gptq._layer import ReadInput, round_layer, solve_layers
from tico_quantizers.calibration import (
    BlockInputs,
    BlockOptions,
    Checkpoint,
    GroupedGram,
    TokenRule,
    memory_problem,
)
from tico_quantizers.conversion import BlockQuantizer
from tico_quantizers.layers import (
    LayerPlan,
    QuantizedWeight,
    Target,
    columns,
    group_size_problem,
    groups,
    tensor_scale_problem,
)

# What the settings that are about passes have to be where there are none.
_WITHOUT_PASSES: Final[Mapping[str, object]] = {
    "true_sequential": False,
    "asymmetric": 0.0,
    "token_weights": "uniform",
    "calibrate_all_experts": False,
    "forward_dtype": None,
    "activation_dtype": None,
    "checkpoint_dir": None,
}


@final
class GPTQQuantizer(BlockQuantizer[GPTQConfig]):
    """GPTQ over every linear layer and convolution, block by block.

    The blocks of a model are run again one by one during `convert`: once on the outputs of the quantized
    blocks before it to collect the Gram matrices, once quantized to feed the next. Layers outside the
    blocks take theirs from the user's own passes.
    """

    def quantize(self, targets: tuple[Target[GPTQConfig], ...], read: GroupedGram) -> list[QuantizedWeight]:
        """Round the weights column by column, each error made up for by the columns that follow."""
        return solve_layers(targets, ReadInput(read))

    def quantize_starved(self, target: Target[GPTQConfig], tokens: int) -> QuantizedWeight:
        """Round to nearest."""
        return round_layer(target, tokens)

    def options(self) -> BlockOptions:
        """Return what the config says of blocks."""
        config = self.config
        return BlockOptions(
            paired=config.asymmetric > 0,
            true_sequential=config.true_sequential,
            early_end=config.stop_after_capture,
            forward_dtype=None if config.forward_dtype is None else torch.bfloat16,
            offload=None if config.offload is None else Path(tempfile.gettempdir()),
            narrow=config.activation_dtype is not None,
            skip_unreached=config.on_uncalibrated == "skip",
            all_experts=config.calibrate_all_experts,
            checkpoint=None if config.checkpoint_dir is None else Path(config.checkpoint_dir),
            gram_memory=config.gram_memory,
        )

    def rule(self, target: Target[GPTQConfig]) -> TokenRule:
        """Return the token weights of a layer, and how many tokens an expert has to read."""
        return TokenRule(weights=target.config.token_weights, least=target.config.min_expert_tokens)

    def problems(self, target: Target[GPTQConfig]) -> Iterator[Problem]:
        """Yield why the grid that is asked for cannot be had for the weight of a layer."""
        path, layer, config = target.path, target.layer, target.config
        size, most, paired = config.shared_columns, self.config.gram_memory, self.config.asymmetric > 0
        blocks = config.dtype is not None and config.dtype.block_size is not None
        problem = group_size_problem(path, layer, size, ragged=config.ragged_groups or blocks)
        if problem is not None:
            yield problem
        elif config.act_order and not config.static_groups and size not in (None, columns(layer)):
            yield from _order_problems(target)
        shared = tensor_scale_problem(path, layer, config.dtype)
        if shared is not None:
            yield shared
        problem = memory_problem(path, layer, most, paired=paired)
        if problem is not None:
            yield problem

    def bound(self, plan: LayerPlan[GPTQConfig]) -> list[Problem]:
        """Return the settings that are about passes, which statistics of a file do without."""
        config = self.config
        found = [
            _bound(field, getattr(config, field), plain)
            for field, plain in _WITHOUT_PASSES.items()
            if getattr(config, field) != plain
        ]
        weighed = {path: target.config.token_weights for path, target in plan.targets.items()}
        found += [
            _bound("token_weights", each, "uniform", path)
            for path, each in weighed.items()
            if each not in ("uniform", config.token_weights)
        ]
        return found

    def checkpoint(self, model: nn.Module, inputs: BlockInputs) -> Checkpoint:
        """Return the folder for this work, by all settings that its results follow from."""
        decisive = attrs.evolve(
            self.config,
            checkpoint_dir=None,
            offload=None,
            show_progress=True,
            stop_after_capture=False,
            gram_memory=None,
        )
        return Checkpoint.of(decisive, model, inputs)

    def shows_progress(self) -> bool:
        """Return whether a bar is shown."""
        return self.config.show_progress


def _bound(field: str, value: object, plain: object, path: str | None = None) -> Problem:
    return Problem(
        module=path,
        field=field,
        value=value,
        expected=f"{plain!r} with a calibration file",
        sentence=f"{field}={value!r} needs the data themselves, which a calibration file does not hold",
        remedy=f"prepare the model with {field}={plain!r}",
    )


def _order_problems(target: Target[GPTQConfig]) -> Iterator[Problem]:
    """Yield why the columns of a grouped convolution have no common order."""
    parts = groups(target.layer)
    if parts > 1:
        # Each group of channels would have an order, and so groups of columns, of its own.
        yield Problem(
            module=target.path,
            field="act_order",
            value=True,
            expected=f"False for a convolution of {parts} groups of channels with groups of columns",
            remedy="choose another, for all or by an override for this module, or set static_groups",
            sentence=f"act_order needs static groups in a convolution of {parts} groups of channels",
        )
