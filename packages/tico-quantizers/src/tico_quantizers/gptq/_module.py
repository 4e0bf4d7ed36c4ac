"""How GPTQ meets a model: block by block, each on what the quantized blocks before it give."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from tico_config import GPTQConfig
from tico_quantizers._block_calls import BlockCalls
from tico_quantizers._forward_watch import Calibration
from tico_quantizers._input_grams import InputGrams
from tico_quantizers._module_tree import Edit, named_modules
from tico_quantizers._progress import Progress
from tico_quantizers._quantizer import BaseQuantizer, Converted, Example
from tico_quantizers._report import Report
from tico_quantizers.gptq._calibration import GPTQCalibration
from tico_quantizers.gptq._conversion import Conversion
from tico_quantizers.gptq._plan import Target, layers_of, plan_of, weights_of
from tico_quantizers.gptq._token_weights import WITH_GRADIENTS, watch_sensitivity


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
        calibration = GPTQCalibration(plan_of(model, self.config))
        return model, calibration

    def convert(self, model: nn.Module, calibration: GPTQCalibration, edit: Edit) -> Converted:
        """Replace the layers by integer ones."""
        plan = calibration.plan
        calibration.require_data()
        # Blocks run again here: neither the caller's gradients nor its random numbers may notice.
        safe = torch.inference_mode(mode=False), torch.no_grad(), torch.random.fork_rng(devices=[])
        bar = Progress("GPTQ", total=len(plan.targets), show=self.config.show_progress)
        with bar, safe[0], safe[1], safe[2]:
            work = Conversion(model, edit, bar)
            self._convert_blocks(calibration, work)
            outside = plan.of_block(None)
            work.quantize(outside, calibration.statistics(outside, calibration.outside))
        layers = {layer.path: layer for layer in (*plan.left, *work.done)}
        ordered = [layers[path] for path, _ in named_modules(model) if path in layers]
        return Converted(root=work.root, modules=tuple(work.modules), report=Report(layers=tuple(ordered)))

    def _convert_blocks(self, calibration: GPTQCalibration, work: Conversion) -> None:
        plan, calls = calibration.plan, calibration.calls
        outputs: dict[tuple[int, int], Tensor] = {}
        last = len(plan.blocks) - 1
        for number in range(len(plan.blocks)):
            targets = plan.of_block(number)
            if targets:
                grams = _block_grams(calls, number, targets, outputs)
                work.quantize(targets, calibration.statistics(targets, grams, calibration.strays))
            outputs = _block_outputs(calls, number, outputs) if number < last else {}


def _block_grams(
    calls: BlockCalls, number: int, targets: tuple[Target, ...], outputs: dict[tuple[int, int], Tensor]
) -> InputGrams:
    grams = InputGrams(layers_of(targets), weights_of(targets), disposable=True)
    collector = Calibration(grams)
    collector.in_forward = True
    handles = grams.watch(collector) + watch_sensitivity(calls.blocks[number], grams)
    try:
        for _ in calls.run(number, outputs, keep=False):
            collector.accept()
    except RuntimeError as error:
        if "auto" in grams.token_weights.values():
            error.add_note(WITH_GRADIENTS)
        raise
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
