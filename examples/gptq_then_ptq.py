"""Round the weights of a LLaMA by GPTQ, then give its activations grids: GPTQ's codes stay, bit for bit.

python examples/gptq_then_ptq.py
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from comparison import WINDOW, Difference, embedded
from language_models import logits_of, text_of
from tico.quantization import GPTQConfig, PTQConfig, calibrate, convert, perplexity, prepare
from tico.quantization.config import DType, affine
from tico_quantizers import QuantizedLinear

STEPS = {
    "GPTQ, W4": GPTQConfig(bits=4, show_progress=False),
    "then PTQ, A16": PTQConfig(activation=affine(DType.int(16))),
}


def codes(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the packed codes of every linear layer."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    return {path: layer.packed.codes.clone() for path, layer in layers.items()}


def main() -> None:
    """Print a line for each step, and whether the codes of the first are still there."""
    source = embedded()
    calibration = source.windows(text_of("calibration"), 16 * WINDOW)
    heldout = source.windows(text_of("heldout"), 16 * WINDOW)
    expected = logits_of(source.model, heldout[:4])
    print(f"{'float':14} perplexity {perplexity(source.model, heldout):.2f}")
    model = copy.deepcopy(source.model)
    kept: dict[str, torch.Tensor] = {}
    for name, config in STEPS.items():
        model = prepare(model, config)
        calibrate(model, [{"input_ids": calibration, "use_cache": False}])
        model = convert(model)
        difference = Difference.between(expected, logits_of(model, heldout[:4]))
        print(f"{name:14} perplexity {perplexity(model, heldout):.2f}, {difference}")
        kept = kept or codes(model)
    same = all(torch.equal(before, codes(model)[path]) for path, before in kept.items())
    print(f"\n{len(kept)} layers, GPTQ's codes {'kept' if same else 'LOST'}")


if __name__ == "__main__":
    main()
