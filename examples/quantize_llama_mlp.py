"""Quantize the MLP of a LLaMA, find the point that takes the range for itself, and mend it by an override.

python examples/quantize_llama_mlp.py
"""

from __future__ import annotations

from collections.abc import Mapping

from comparison import Part
from tico.quantization import coverage
from tico.quantization.config import DType, PTQConfig, QuantSpec, affine

A16 = affine(DType.int(16))

# What enters `down_proj` is the product of two activations: its largest values are far from the others.
OVERRIDES: Mapping[str, Mapping[str, QuantSpec]] = {
    "every point with 8 bits": {},
    "down_proj's input with 16": {"product": A16, "down_proj.act_in": A16},
}


def main() -> None:
    """Print the share of each range that one channel takes, and what the override changes."""
    part = Part.at("model.layers.1.mlp")
    print("share of the range that one channel has to itself:")
    for line in coverage(part.watched().wrapped).lines:
        shares = ", ".join(f"{point} {share:.0%}" for point, share in line.taken_by_one)
        print(f"{line.path or 'mlp':12} {shares}")
    print()
    for name, overrides in OVERRIDES.items():
        quantized = part.quantized(PTQConfig(overrides=overrides))
        print(f"{name:26} {part.difference(quantized)}")


if __name__ == "__main__":
    main()
