"""Laws of cross-layer equalization."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tico_config import CLEConfig
from tico_quantizers import CLEQuantizer, Registry, quantizer_entry
from tico_quantizers.lifecycle import convert, prepare
from tico_quantizers.solvers import ChannelMagnitudes, Reader, equalizing_scales
from tiny_models import values

REGISTRY = Registry([quantizer_entry(CLEConfig, CLEQuantizer)])
seeds = st.integers(0, 2**16)
widths = st.lists(st.integers(1, 6), min_size=3, max_size=5)


def uneven(seed: int, *shape: int) -> Tensor:
    """Return numbers whose first axis and second axis differ in their magnitude from place to place."""
    rows, columns = (2.0 ** (3 * values(seed + 1 + axis, shape[axis])) for axis in range(2))
    return (
        values(seed, *shape)
        * rows.view(-1, *[1] * (len(shape) - 1))
        * columns.view(1, -1, *[1] * (len(shape) - 2))
    )


def chain(widths: list[int], seed: int) -> nn.Sequential:
    """Return linear layers with ReLUs between them, their weights uneven."""
    parts: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layer = nn.Linear(inputs, outputs)
        layer.weight.data = uneven(seed + 10 * number, outputs, inputs)
        layer.bias.data = values(seed + 10 * number + 5, outputs)
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1]).eval()


def equalized(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy of `model`, equalized."""
    return convert(prepare(model, CLEConfig(), (x,), inplace=False, registry=REGISTRY))


@settings(max_examples=20)
@given(widths, seeds)
def test_the_float_function_is_kept(widths: list[int], seed: int) -> None:
    """To 1e-5 of its norm: each weight is rounded to float32 once more, by 2⁻²⁴, and ReLUs pass the rest."""
    model, x = chain(widths, seed), values(seed + 99, 7, widths[0])
    with torch.no_grad():
        expected, found = model(x), equalized(model, x)(x)
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@settings(max_examples=20)
@given(widths, seeds)
def test_ranges_of_paired_channels_become_equal(widths: list[int], seed: int) -> None:
    """That is where the product of the precisions of both is largest (section 4.1 of the paper).

    The last sweep moves each scale by at most 1e-6, and the two that meet in a weight by twice that; the
    rounding of weights and scales to float32 adds less.
    """
    model = equalized(chain(widths, seed), values(seed, 2, widths[0]))
    weights = [layer.weight.detach().abs() for layer in model.modules() if isinstance(layer, nn.Linear)]
    for first, second in itertools.pairwise(weights):
        assert torch.allclose(first.amax(1), second.amax(0), rtol=4e-6, atol=0)


@settings(max_examples=20)
@given(widths, seeds)
def test_equal_ranges_stay(widths: list[int], seed: int) -> None:
    """A second time moves no weight by more than the first one has left unequal."""
    once = equalized(chain(widths, seed), values(seed, 2, widths[0]))
    again = equalized(once, values(seed, 2, widths[0]))
    for one, other in zip(once.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=0)


@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_groups_are_a_matrix_with_zeros_between_them(seed: int, groups: int, rows: int, columns: int) -> None:
    """The ranges of a convolution with groups are those of the whole weight that it stands for."""
    parts = uneven(seed, groups * rows, columns).abs()
    blocks = parts.view(groups, rows, columns)
    whole = torch.zeros(groups, rows, groups, columns)
    for number, block in enumerate(blocks):
        whole[number, :, number] = block
    first = uneven(seed + 50, groups * columns, 2).abs()
    channels = torch.arange(groups * columns)
    one, other = (
        equalizing_scales([(ChannelMagnitudes(first), [Reader(weight, channels)])], 9)
        for weight in (ChannelMagnitudes(parts, groups), ChannelMagnitudes(whole.view(groups * rows, -1)))
    )
    assert torch.equal(one[0], other[0])


@given(seeds)
def test_channels_without_weights_keep_their_scale(seed: int) -> None:
    """On either side of a pair there is then nothing to share."""
    first, second = uneven(seed, 4, 3).abs(), uneven(seed + 1, 3, 4).abs()
    first[0], second[:, 1] = 0, 0
    reader = Reader(ChannelMagnitudes(second), torch.arange(4))
    [scale] = equalizing_scales([(ChannelMagnitudes(first), [reader])], 9)
    assert scale[:2].tolist() == [1.0, 1.0]
    assert bool((scale[2:] != 1).all())
