"""How GPTQ meets a model: block by block, each on what the quantized blocks before it give."""

from __future__ import annotations

from typing import final

import torch
from torch import nn

from tico_config import GPTQConfig
from tico_modules import Edit, Report, named_modules
from tico_quantizers.algorithms.gptq._block_walk import BlockWalk
from tico_quantizers.algorithms.gptq._calibration import GPTQCalibration
from tico_quantizers.algorithms.gptq._checkpoint import Checkpoint
from tico_quantizers.algorithms.gptq._conversion import Conversion
from tico_quantizers.algorithms.gptq._layer import QuantizedWeight
from tico_quantizers.algorithms.gptq._plan import Target, plan_of
from tico_quantizers.conversion import Progress
from tico_quantizers.protocol import BaseQuantizer, Converted, Example


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
        calibration = GPTQCalibration(plan_of(model, self.config), self.config)
        if calibration.early_end:
            calibration.early_end.install(model, edit)
        return model, calibration

    def convert(self, model: nn.Module, calibration: GPTQCalibration, edit: Edit) -> Converted:
        """Replace the layers by integer ones."""
        plan = calibration.plan
        calibration.require_data()
        if calibration.early_end:
            calibration.early_end.uninstall(model, edit)
        # Blocks run again here: neither the caller's gradients nor its random numbers may notice.
        safe = torch.inference_mode(mode=False), torch.no_grad(), torch.random.fork_rng(devices=[])
        bar = Progress("GPTQ", total=len(plan.targets), show=self.config.show_progress)
        with bar, safe[0], safe[1], safe[2]:
            checkpoint = Checkpoint.of(self.config, model, calibration)
            work = Conversion(model, edit, bar)
            self._convert_blocks(calibration, work, checkpoint)
            outside = plan.of_block(None)
            saved = checkpoint.load("outside", outside) if outside else []
            if saved is None:
                grams = calibration.statistics(outside, calibration.outside)
                checkpoint.save("outside", work.quantize(outside, grams))
            work.put_all(outside, saved or ())
        layers = {layer.path: layer for layer in (*plan.left, *work.done)}
        ordered = [layers[path] for path, _ in named_modules(model) if path in layers]
        return Converted(root=work.root, modules=tuple(work.modules), report=Report(layers=tuple(ordered)))

    def _convert_blocks(self, calibration: GPTQCalibration, work: Conversion, checkpoint: Checkpoint) -> None:
        dtype = None if self.config.forward_dtype is None else torch.bfloat16
        asymmetric, once = self.config.asymmetric > 0, calibration.called_once
        walk = BlockWalk(calibration.calls, dtype, asymmetric=asymmetric, called_once=once)
        for number in range(len(calibration.plan.blocks)):
            targets, name = calibration.plan.of_block(number), f"block-{number:05d}"
            saved = checkpoint.load(name, targets) if targets else []
            if saved is None:
                checkpoint.save(name, self._converted_block(targets, calibration, work, walk))
            else:
                walk.pass_by()
                work.put_all(targets, saved)
            walk.advance()

    def _converted_block(
        self, targets: tuple[Target, ...], calibration: GPTQCalibration, work: Conversion, walk: BlockWalk
    ) -> list[QuantizedWeight]:
        weights: list[QuantizedWeight] = []
        for stage in walk.stages(targets) if self.config.true_sequential else [targets]:
            grams = walk.grams(stage)
            weights += work.quantize(stage, calibration.statistics(stage, grams, calibration.strays))
        return weights
