"""What layers that read the same input have in common: one Gram matrix, one factor."""

from __future__ import annotations

import pytest
from torch import Tensor

from gptq_models import quantized
from tico.quantization import GPTQConfig
from tico_quantizers.algorithms.gptq import _layer
from tico_quantizers.algorithms.gptq._layer import ReadInput
from tico_quantizers.solvers._factor import Factor
from tico_quantizers.solvers._gptq import factored
from tico_quantizers.testing import same_tensors, tensors_of
from tiny_models import TOKENS, tiny_llama

# Query, key and value share one, and so do gate and up.
OTHER_QUERY = GPTQConfig(show_progress=False, overrides={"*.q_proj": {"damping": 0.5}})


@pytest.mark.parametrize(
    ("config", "count"),
    [(GPTQConfig(show_progress=False), 2 * 4), (OTHER_QUERY, 2 * 5)],
    ids=["alike", "other"],
)
def test_one_factor_serves_all_that_read_the_same(
    config: GPTQConfig, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is damped alike; and the bits are those of a factor for each layer."""
    made = 0

    def counted(gram: Tensor, config: GPTQConfig, cross_gram: Tensor | None = None) -> Factor:
        nonlocal made
        made += 1
        return factored(gram, config, cross_gram)

    monkeypatch.setattr(_layer, "factored", counted)
    shared = tensors_of(quantized(tiny_llama(), TOKENS, config=config))
    assert made == count
    monkeypatch.setattr(ReadInput, "factors", _anew)
    assert same_tensors(tensors_of(quantized(tiny_llama(), TOKENS, config=config)), shared)


def _anew(read: ReadInput, size: int, config: GPTQConfig) -> list[Factor]:
    return [factored(hessian, config) for hessian in read.hessians(size)]
