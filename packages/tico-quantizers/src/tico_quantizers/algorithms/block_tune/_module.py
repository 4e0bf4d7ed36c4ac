"""How learned rounding meets a model: block by block, each towards what the float model gives there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import final

import attrs
from torch import nn

from tico_config import BlockTuneConfig, Problem
from tico_quantizers.algorithms.block_tune._start import round_layer, start_layers
from tico_quantizers.algorithms.block_tune._tuning import tuned
from tico_quantizers.calibration import (
    BlockInputs,
    BlockOptions,
    BlockRuns,
    Checkpoint,
    GroupedGram,
    TokenRule,
)
from tico_quantizers.conversion import BlockQuantizer
from tico_quantizers.layers import (
    LayerPlan,
    QuantizedWeight,
    Target,
    group_size_problem,
    tensor_scale_problem,
)


@final
class BlockTuneQuantizer(BlockQuantizer[BlockTuneConfig]):
    """Learned rounding over every linear layer and convolution, block by block.

    A block reads what the quantized blocks before it give, and is tuned towards what it gives in the float
    model, so that it makes up for what they have changed. Layers outside of the blocks stay at their start.
    """

    def quantize(
        self, targets: tuple[Target[BlockTuneConfig], ...], read: GroupedGram
    ) -> list[QuantizedWeight]:
        """Return the codes that the layers start from."""
        return start_layers(targets, read)

    def quantize_starved(self, target: Target[BlockTuneConfig], tokens: int) -> QuantizedWeight:
        """Return a start rounded to nearest."""
        return round_layer(target, tokens)

    def finish(
        self,
        targets: Mapping[str, Target[BlockTuneConfig]],
        weights: Sequence[QuantizedWeight],
        runs: BlockRuns,
    ) -> list[QuantizedWeight]:
        """Return the weights of a block, tuned."""
        layers = {weight.line.path: targets[weight.line.path].layer for weight in weights}
        return tuned(self.config, layers, weights, runs)

    def options(self) -> BlockOptions:
        """Return what the config says of blocks."""
        config = self.config
        return BlockOptions(
            compared=True,
            offload=None if config.offload is None else Path(tempfile.gettempdir()),
            skip_unreached=config.on_uncalibrated == "skip",
            checkpoint=None if config.checkpoint_dir is None else Path(config.checkpoint_dir),
        )

    def rule(self, target: Target[BlockTuneConfig]) -> TokenRule:
        """Return that GPTQ weighs tokens, and how many an expert has to read."""
        return TokenRule(weights="auto", least=target.config.min_expert_tokens)

    def problems(self, target: Target[BlockTuneConfig]) -> Iterator[Problem]:
        """Yield why the grid that is asked for cannot be had for the weight of a layer."""
        path, layer, config = target.path, target.layer, target.config
        blocks = config.dtype is not None and config.dtype.block_size is not None
        ragged = config.ragged_groups or blocks
        problem = group_size_problem(path, layer, config.shared_columns, ragged=ragged)
        yield from filter(None, [problem, tensor_scale_problem(path, layer, config.dtype)])

    def bound(self, plan: LayerPlan[BlockTuneConfig]) -> list[Problem]:
        """Return that steps need the data themselves."""
        sentence = "learned rounding needs the data themselves, which a calibration file does not hold"
        remedy = "run data through the prepared model, or take GPTQConfig"
        return [
            Problem(
                field="quant_config",
                value=self.config.name,
                expected="an algorithm that needs statistics alone",
                sentence=sentence,
                remedy=remedy,
            )
        ]

    def checkpoint(self, model: nn.Module, inputs: BlockInputs) -> Checkpoint:
        """Return the folder for this work, by all settings that its results follow from."""
        decisive = attrs.evolve(self.config, checkpoint_dir=None, offload=None, show_progress=True)
        return Checkpoint.of(decisive, model, inputs)

    def shows_progress(self) -> bool:
        """Return whether a bar is shown."""
        return self.config.show_progress
