"""Quantize the attention of a LLaMA: a grid for each step, some of them, or one for each token.

python examples/quantize_llama_attention.py
"""

from __future__ import annotations

from collections.abc import Mapping

from comparison import Part
from tico.quantization.config import DType, PerToken, PTQConfig, affine, no_quant
from tico_wrapq import QuantLlamaAttention

STEPS = [each.name for each in QuantLlamaAttention.points]

CONFIGS: Mapping[str, PTQConfig] = {
    "8 bits, every step": PTQConfig(),
    "8 bits, steps between the layers in float": PTQConfig(overrides=dict.fromkeys(STEPS, no_quant())),
    "8 bits, the logits with 16": PTQConfig(
        overrides=dict.fromkeys(("logits", "scaled", "masked"), affine(DType.int(16)))
    ),
    "8 bits, a grid for each token": PTQConfig(activation=affine(DType.int(8), granularity=PerToken())),
    "16 bits, every step": PTQConfig(activation=affine(DType.int(16))),
}


def main() -> None:
    """Print the difference that each config makes."""
    part = Part.at("model.layers.1.self_attn")
    print(f"steps with a point: {', '.join(STEPS)}\n")
    for name, config in CONFIGS.items():
        print(f"{name:42} {part.difference(part.quantized(config))}")


if __name__ == "__main__":
    main()
