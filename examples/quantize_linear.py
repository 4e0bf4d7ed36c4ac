"""Quantize one linear layer of a trained LLaMA, with 8 bits and with 4.

python examples/quantize_linear.py
"""

from __future__ import annotations

from comparison import Part
from tico.quantization.config import DType, PTQConfig, affine


def main() -> None:
    """Print what stands there afterwards, and how far it is from float."""
    part = Part.at("model.layers.0.self_attn.q_proj")
    print(f"float: {part.module}")
    for bits in (8, 4):
        spec = affine(DType.uint(bits))
        quantized = part.quantized(PTQConfig(activation=spec, weight=spec))
        print(f"\n{bits} bits: {quantized.wrapped}")
        print(part.difference(quantized))


if __name__ == "__main__":
    main()
