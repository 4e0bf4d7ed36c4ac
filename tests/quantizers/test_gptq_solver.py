"""The solver is pinned to the definition where it works by blocks, and to itself on other thread counts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import gptq_reference as reference
from tico_quantizers.gptq import Solution, quantize_weight
from tiny_models import values


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def on_threads(count: int, weight: Tensor, gram: Tensor, group_size: int | None, act_order: bool) -> Solution:
    """Return the solution that `count` threads find."""
    torch.set_num_threads(count)
    return quantize_weight(weight, gram, bits=4, group_size=group_size, act_order=act_order, damping=1e-4)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [None, 32, 100, 192])
def test_many_blocks_give_the_codes_of_the_definition(group_size: int | None, act_order: bool) -> None:
    """Several blocks of the factor, groups that cross the splits of the columns, and ragged ends."""
    weight, gram = values(31, 24, 333), reference.correlated_gram(333, 1000)
    order = torch.argsort(gram.diagonal(), descending=True, stable=True) if act_order else torch.arange(333)
    found = quantize_weight(weight, gram, bits=4, group_size=group_size, act_order=act_order)
    ordered = gram[order][:, order]
    expected = reference.gptq(weight[:, order], ordered, bits=4, group_size=group_size)
    # Targets are float32 sums: one code in 10⁵ is so close to a tie that it may flip, see test_gptq_core.
    assert (found.codes[:, order] == expected.codes).double().mean() >= 0.999
    wanted = reference.loss(weight[:, order], expected.values, ordered)
    # And both choices at a tie are equally far.
    assert found.loss == pytest.approx(wanted, rel=1e-4)


@pytest.mark.usefixtures("_threads_restored")
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "group_size"), [(1, 700, 128), (2, 520, None), (2501, 130, 32), (4099, 70, None)]
)
def test_threads_do_not_change_a_bit(
    rows: int, columns: int, group_size: int | None, act_order: bool
) -> None:
    """A single row is a matrix-vector product; many rows are divided among threads at odd places."""
    weight, gram = values(32, rows, columns), reference.correlated_gram(columns, 2 * columns)
    one, *others = (on_threads(count, weight, gram, group_size, act_order) for count in (1, 2, 3))
    for other in others:
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.scale, other.scale)
        assert torch.equal(one.zero_point, other.zero_point)
        assert one.loss == other.loss


def test_a_gram_matrix_of_any_format_is_read_as_float64() -> None:
    """It is converted where it is read, block by block."""
    weight, gram = values(33, 8, 150), reference.correlated_gram(150, 400).to(torch.float32)
    narrow, wide = (quantize_weight(weight, g, bits=4, act_order=True) for g in (gram, gram.double()))
    assert torch.equal(narrow.codes, wide.codes)
    assert narrow.loss == wide.loss
