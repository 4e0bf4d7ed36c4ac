"""Moving averages: ordered, and within what was seen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from references import same_bits
from tico_config import UnsupportedError
from tico_observers import EMAStatistic, Extremes
from tico_observers.testing import layouts, tensors

batches = st.lists(tensors(shape=(2, 3), dtype=torch.float32), min_size=1, max_size=4)
momenta = st.floats(0.0, 0.99)


def averaged(parts: list[Tensor], momentum: float) -> Extremes:
    """Return the averaged range of batches."""
    seen = EMAStatistic(momentum=momentum)
    for part in parts:
        seen = seen.observe(part)
    assert seen.extremes is not None
    return seen.extremes


@given(batches, momenta)
def test_ema_is_its_definition(parts: list[Tensor], momentum: float) -> None:
    """New = momentum * old + (1 - momentum) * batch in float64, rounded to float32 after every batch."""
    expected = parts[0].max()
    for part in parts[1:]:
        wide = momentum * expected.double() + (1.0 - momentum) * part.max().double()
        expected = wide.float()
    assert averaged(parts, momentum).maximum.item() == expected.item()


@given(batches, momenta)
def test_ema_is_within_the_ranges_averaged(parts: list[Tensor], momentum: float) -> None:
    """Min of the batches' maxima <= average <= max of them, up to rounding."""
    maxima = torch.stack([part.max() for part in parts]).double()
    average = averaged(parts, momentum).maximum.double()
    slack = maxima.abs().max() * 2.0**-20
    assert maxima.min() - slack <= average <= maxima.max() + slack


@given(batches)
def test_ema_without_momentum_is_the_last_batch(parts: list[Tensor]) -> None:
    """Momentum = 0 forgets everything but the newest."""
    assert averaged(parts, 0.0).minimum.item() == parts[-1].min().item()


@given(tensors(shape=(2, 3), dtype=torch.float32), st.integers(1, 3), st.sampled_from([0.0, 0.5, 0.75]))
def test_ema_of_equal_batches_is_their_range(x: Tensor, times: int, momentum: float) -> None:
    """Averaging equal ranges changes nothing."""
    assert averaged([x] * times, momentum).maximum.item() == x.max().item()


@given(st.data(), tensors(shape=(2, 3)), momenta)
def test_ema_does_not_depend_on_the_layout(data: st.DataObject, x: Tensor, momentum: float) -> None:
    """Strides, offsets and expansion do not matter."""
    one, other = averaged([x], momentum), averaged([data.draw(layouts(x))], momentum)
    assert same_bits(one.maximum, other.maximum)


@given(tensors(shape=(2, 3)), momenta)
def test_ema_merges_with_no_data_only(x: Tensor, momentum: float) -> None:
    """0 + a = a, and a + a is refused, because the order of the batches is lost."""
    empty = EMAStatistic(momentum=momentum)
    seen = empty.observe(x)
    assert empty.merge(seen) == seen == seen.merge(empty)
    with pytest.raises(UnsupportedError):
        seen.merge(seen)
