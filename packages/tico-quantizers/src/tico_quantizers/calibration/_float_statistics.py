"""What every layer reads in the float model, for a calibration file."""

from __future__ import annotations

from tico_modules import keep_dequantized
from tico_observers import Statistic
from tico_quantizers.calibration._adopted_grams import float_grams
from tico_quantizers.calibration._block_inputs import BlockInputs
from tico_quantizers.calibration._forward_watch import Calibration, require_watched
from tico_quantizers.calibration._grouped_gram import GroupedGram
from tico_quantizers.calibration._input_grams import InputGrams
from tico_quantizers.calibration._layer_statistics import layer_statistics
from tico_quantizers.calibration._quiet_runs import quiet_runs
from tico_quantizers.calibration._real_tokens import RealTokens
from tico_quantizers.calibration._ways import needs_hooks
from tico_quantizers.layers import Layer, columns, groups, layers_in


def float_statistics(inputs: BlockInputs) -> dict[str, Statistic]:
    """Return by name what each layer has read in the float model; for some of `inputs` that can be nothing.

    If all data were run through the whole model, its passes are made again, and layers that `inputs` leaves
    out are included. Call it as `run_blocks`; the model is not changed.

    Raises:
        CalibrationError: no layer of `inputs` has read anything.
    """
    grams = float_grams(inputs)
    if not grams:
        require_watched(set(), tuple(inputs.layers))
    found: dict[str, Statistic] = {}
    for path, layer in inputs.layers.items():
        unread = GroupedGram.empty(groups=groups(layer), columns=columns(layer))
        found |= layer_statistics(path, grams.get(path, unread))
    for path, read in _left_out(inputs).items():
        found |= layer_statistics(path, read)
    return found


def _left_out(inputs: BlockInputs) -> dict[str, GroupedGram]:
    """Return what layers that are not among those of `inputs` read in the passes of the model."""
    root = inputs.passes.root
    others = {path: layer for path, layer in layers_in(root).items() if path not in inputs.layers}
    if not others or not inputs.passes.are_whole or inputs.adopted:
        return {}
    with quiet_runs(root, with_hooks=needs_hooks(inputs.calls, inputs.passes)):
        grams = _gathered(inputs, others)
    read = {path: grams.gram(path) for path in others}
    return {path: gram for path, gram in read.items() if gram is not None and gram.rows}


def _gathered(inputs: BlockInputs, layers: dict[str, Layer]) -> InputGrams:
    tokens = RealTokens()
    grams = InputGrams(layers, tokens=tokens, disposable=True)
    collector = Calibration(grams)
    collector.in_forward = True
    handles = [*grams.watch(collector), *tokens.watch(inputs.passes.root)]
    try:
        with keep_dequantized(inputs.passes.root):
            for _ in inputs.passes.run():
                collector.accept()
    finally:
        for handle in handles:
            handle.remove()
    return grams
