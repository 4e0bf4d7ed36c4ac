"""Laws of smoothing: scales that cancel, and the balance that SmoothQuant's scale brings."""

from __future__ import annotations

import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smoothing_models import model_with_data, output_of
from tico_quantizers import Edit, smoothing_scale
from tico_quantizers.equivalence import Candidates, find_pairs
from tico_quantizers.equivalence._folding import fold
from tico_quantizers.solvers._output_error import output_error

MODEL_NAMES = ("llama", "qwen3", "convolutions", "encoder")
seeds = st.integers(0, 2**31)
magnitudes = st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=1, max_size=8).map(torch.tensor)


def drawn(seed: int, *shape: int) -> Tensor:
    """Return whole numbers from -4 to 4."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


@given(st.sampled_from(MODEL_NAMES), seeds)
def test_powers_of_two_cancel_exactly(name: str, seed: int) -> None:
    """Dividing channels and multiplying columns by powers of two changes no bit of the output.

    Every product keeps its digits, and what lies between the two is proportional to each channel, so that
    this shows, bit for bit, that the pairs are what they are said to be.
    """
    model, x = model_with_data(name)
    smooth = copy.deepcopy(model)
    with torch.no_grad(), Edit() as edit:
        pairs = find_pairs(smooth, Candidates.of(smooth), lambda: smooth(x)).pairs
        for number, pair in enumerate(pairs):
            fold(smooth, pair, torch.exp2(drawn(seed + number, pair.channels)), edit)
    assert pairs
    assert torch.equal(output_of(model, x), output_of(smooth, x))


@given(magnitudes, seeds, st.floats(0.0, 1.0))
def test_scales_share_the_difficulty(activation: Tensor, seed: int, alpha: float) -> None:
    """max|X| / s and max|W| s are (max|X| max|W|) to the power of 1 - alpha and of alpha.

    A power in float64 and the rounding of s to float32 err by less than 2⁻²³ of the value each.
    """
    weight = activation[torch.randperm(len(activation), generator=torch.Generator().manual_seed(seed))]
    scale = smoothing_scale(activation, weight, alpha).double()
    product = activation.double() * weight.double()
    assert torch.allclose(activation / scale, product ** (1 - alpha), rtol=2**-22, atol=0)
    assert torch.allclose(weight * scale, product**alpha, rtol=2**-22, atol=0)


@given(magnitudes)
def test_limits_of_alpha_are_exact(magnitude: Tensor) -> None:
    """All of the difficulty on one side: s = max|X| for 1, and 1 / max|W| for 0."""
    other = magnitude.flip(0) + 1
    assert torch.equal(smoothing_scale(magnitude, other, 1.0), magnitude)
    assert torch.equal(smoothing_scale(other, magnitude, 0.0), (1 / magnitude.double()).float())


@given(magnitudes, st.floats(0.0, 1.0))
def test_nothing_to_balance_is_scale_one(magnitude: Tensor, alpha: float) -> None:
    """A channel whose inputs or weights are all zero."""
    zeros, ones = torch.zeros_like(magnitude), torch.ones_like(magnitude)
    for pair in ((magnitude, zeros), (zeros, magnitude), (zeros, zeros)):
        assert torch.equal(smoothing_scale(*pair, alpha), ones)


@given(seeds, st.integers(1, 5), st.integers(1, 600))
def test_output_error_is_that_of_the_outputs(seed: int, rows: int, columns: int) -> None:
    """tr(D H Dᵀ) is the squared change of the outputs; whole numbers make both exact."""
    change, x = drawn(seed, rows, columns), drawn(seed + 1, 3, columns)
    expected = (x.double() @ change.double().T).square().sum()
    assert output_error(change, x.T @ x) == expected
