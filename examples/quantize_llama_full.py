"""Quantize a whole LLaMA, weights and activations, and print the perplexity before and after.

python examples/quantize_llama_full.py
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from comparison import WINDOW, Difference, embedded
from language_models import logits_of, text_of
from tico.quantization import calibrate, convert, coverage, perplexity, prepare
from tico.quantization.config import DType, PerToken, PTQConfig, affine

PER_TOKEN = affine(DType.uint(8), granularity=PerToken())
CONFIGS: Mapping[str, PTQConfig] = {
    "W8A8, static": PTQConfig(),
    "W8A8, a grid for each token": PTQConfig(activation=PER_TOKEN),
    "W8A16, static": PTQConfig(activation=affine(DType.uint(16))),
}


def main() -> None:
    """Print a line for each config, and what the last one covers."""
    source = embedded()
    calibration = source.windows(text_of("calibration"), 16 * WINDOW)
    heldout = source.windows(text_of("heldout"), 16 * WINDOW)
    expected = logits_of(source.model, heldout[:4])
    print(f"{'float':28} perplexity {perplexity(source.model, heldout):.2f}")
    for name, config in CONFIGS.items():
        model = prepare(copy.deepcopy(source.model), config)
        calibrate(model, [{"input_ids": calibration, "use_cache": False}])
        model = convert(model)
        difference = Difference.between(expected, logits_of(model, heldout[:4]))
        print(f"{name:28} perplexity {perplexity(model, heldout):.2f}, {difference}")
    print(f"\n{str(coverage(model)).splitlines()[-1]}")


if __name__ == "__main__":
    main()
