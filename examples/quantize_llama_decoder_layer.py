"""Quantize a decoder layer of a LLaMA: every point, some of them, or the weights alone.

python examples/quantize_llama_decoder_layer.py
"""

from __future__ import annotations

from comparison import Part
from tico.quantization.config import DType, PTQConfig, affine, no_quant

# The sums are what is handed from layer to layer: with 16 bits, nothing of it is lost.
SUMS_WITH_16_BITS = {"attention_sum": affine(DType.int(16)), "act_out": affine(DType.int(16))}
CONFIGS = {
    "8 bits, every point": PTQConfig(),
    "8 bits, both sums with 16": PTQConfig(overrides=SUMS_WITH_16_BITS),
    "8 bits, weights only": PTQConfig(activation=no_quant()),
    "8 bits, weights and inputs of linear layers": PTQConfig(
        activation=no_quant(), overrides={"*_proj.act_in": affine(DType.uint(8))}
    ),
}


def main() -> None:
    """Print the difference that each config makes."""
    part = Part.at("model.layers.2")
    for name, config in CONFIGS.items():
        print(f"{name:44} {part.difference(part.quantized(config))}")


if __name__ == "__main__":
    main()
