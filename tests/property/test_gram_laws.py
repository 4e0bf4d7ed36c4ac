"""Gram matrices: independent of the split of the rows, and in integers of their order too."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from references import same_bits
from tico_config import CalibrationError
from tico_observers import ExactGramStatistic, GramShare, GramStatistic
from tico_observers.testing import layouts, tensors

rows = tensors(shape=(5, 3), dtype=torch.float32, largest=2.0**20)
whole_rows = st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=1, max_size=6).map(
    lambda values: torch.tensor(values, dtype=torch.float32)
)
cuts = st.lists(st.integers(0, 2600), max_size=5)
seeds = st.integers(0, 2**20)


def many_rows(seed: int, count: int = 2600, columns: int = 5) -> Tensor:
    """Return rows of random numbers that span several chunks."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**20), 2**20, (count, columns), generator=generator) / 2.0**14


def parts(x: Tensor, at: list[int]) -> list[Tensor]:
    """Return the rows of `x`, cut at some places."""
    edges = [0, *sorted(at), len(x)]
    return [x[start:stop] for start, stop in pairwise(edges)]


def exact_of(x: Tensor, maximum: Tensor) -> ExactGramStatistic:
    """Return the integer Gram statistic of one tensor."""
    return ExactGramStatistic(maximum=maximum).observe(x)


@given(whole_rows)
def test_gram_of_whole_numbers_is_exact(x: Tensor) -> None:
    """G = XᵀX, with no rounding where numbers are small and whole, in both modes."""
    wide = x.to(torch.int64)
    expected = (wide.T @ wide).double()
    assert torch.equal(GramStatistic(columns=3).observe(x).matrix(), expected)
    assert torch.equal(exact_of(x, torch.full((3,), 16.0)).matrix(), expected)


@given(seeds, cuts, st.integers(1, 4))
def test_shares_of_a_gram_matrix_joined_are_its_bits(seed: int, at: list[int], workers: int) -> None:
    """However many workers have its panels, and whatever the batches; few rows are in no panel yet."""
    for count in (1500, 90):
        x = many_rows(seed, count, columns=290)
        shares = [GramShare(columns=290, number=number, of=workers) for number in range(workers)]
        for part in parts(x, [min(place, count) for place in at]):
            shares = [share.observe(part) for share in shares]
        whole = shares[-1].joined([share.upper for share in shares])
        assert same_bits(whole.matrix(), GramStatistic(columns=290).observe(x).matrix())


@given(seeds, cuts)
def test_gram_does_not_depend_on_the_split(seed: int, at: list[int]) -> None:
    """The same rows in other batches give the same bits."""
    x = many_rows(seed)
    seen = GramStatistic(columns=5)
    for part in parts(x, at):
        seen = seen.observe(part)
    assert same_bits(seen.matrix(), GramStatistic(columns=5).observe(x).matrix())


@given(seeds, cuts)
def test_gram_in_place_is_gram(seed: int, at: list[int]) -> None:
    """Reusing the memory changes no bit."""
    seen = reused = GramStatistic(columns=5)
    for part in parts(many_rows(seed), at):
        seen, reused = seen.observe(part), reused.observe_in_place(part)
    assert same_bits(seen.matrix(), reused.matrix())


@given(seeds, cuts)
def test_gram_leaves_what_was_seen_before_alone(seed: int, at: list[int]) -> None:
    """Observe gives a new value; the old one keeps its matrix."""
    x = many_rows(seed)
    before = GramStatistic(columns=5).observe(x)
    matrix = before.matrix()
    for part in parts(x, at):
        before.observe(part)
        before.merge(GramStatistic(columns=5).observe(part))
    assert same_bits(before.matrix(), matrix)


@given(seeds)
def test_gram_is_symmetric(seed: int) -> None:
    """G = Gᵀ, bit for bit."""
    matrix = GramStatistic(columns=5).observe(many_rows(seed)).matrix()
    assert same_bits(matrix, matrix.T.contiguous())


@given(st.data(), rows)
def test_gram_does_not_depend_on_the_layout(data: st.DataObject, x: Tensor) -> None:
    """Strides, offsets and expansion do not matter."""
    seen = [GramStatistic(columns=3).observe(each).matrix() for each in (x, data.draw(layouts(x)))]
    assert same_bits(*seen)


@given(seeds, st.integers(0, 2600))
def test_gram_merge_is_the_sum_up_to_rounding(seed: int, cut: int) -> None:
    """G(a) + G(b) is near G(ab); its rows are counted exactly."""
    x = many_rows(seed)
    one, other = (GramStatistic(columns=5).observe(part) for part in (x[:cut], x[cut:]))
    merged, whole = one.merge(other), GramStatistic(columns=5).observe(x)
    assert merged.rows == whole.rows
    # A float32 product of 512 rows errs by at most 512 * 2⁻²⁴ of |x|ᵀ|x|, and adding two by 2⁻²⁴ more, which
    # is nowhere above the largest entry of the diagonal; both matrices do.
    bound = 2 * 513 * 2.0**-24 * float(whole.matrix().diagonal().max())
    assert torch.allclose(merged.matrix(), whole.matrix(), rtol=0.0, atol=bound)


@given(seeds, cuts)
def test_gram_of_weight_one_is_gram(seed: int, at: list[int]) -> None:
    """Rows that count once each give the same bits as rows without weights."""
    x, weighted = many_rows(seed), GramStatistic(columns=5)
    for part in parts(x, at):
        weighted = weighted.observe(part, torch.ones(len(part)))
    assert same_bits(weighted.matrix(), GramStatistic(columns=5).observe(x).matrix())


@given(whole_rows, st.data())
def test_gram_of_weight_k_is_gram_of_k_rows(x: Tensor, data: st.DataObject) -> None:
    """A row of weight k is that row k times: exactly where its root is exact."""
    counts = data.draw(st.lists(st.sampled_from([0, 1, 4, 16]), min_size=len(x), max_size=len(x)))
    seen = GramStatistic(columns=3).observe(x, torch.tensor(counts).float())
    repeated = GramStatistic(columns=3).observe(x.repeat_interleave(torch.tensor(counts), 0))
    zeros = torch.zeros(3, 3, dtype=torch.float64)
    assert seen.rows == len(x)
    assert torch.equal(seen.matrix(), zeros if repeated.is_empty else repeated.matrix())


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, float("nan")], [[1.0, 1.0]]])
def test_gram_refuses_weights_that_are_none(weights: list[float]) -> None:
    """Each row has one, and each is a finite number of at least 0."""
    with pytest.raises(CalibrationError) as caught:
        GramStatistic(columns=3).observe(torch.ones(2, 3), torch.tensor(weights))
    assert caught.value.field == "weights"


@given(rows)
def test_exact_gram_is_its_definition(x: Tensor) -> None:
    """Whole multiples of 2^(exponent - 20), multiplied and added exactly."""
    maximum = x.abs().amax(0).clamp(min=2.0**-100)
    steps = [_step(value) for value in maximum.tolist()]
    codes = [[round(Fraction(v) / step) for v, step in zip(row, steps, strict=True)] for row in x.tolist()]
    matrix = exact_of(x, maximum).matrix().tolist()
    for i, one in enumerate(steps):
        for j, other in enumerate(steps):
            assert matrix[i][j] == float(sum(row[i] * row[j] for row in codes) * one * other)


def _step(maximum: float) -> Fraction:
    exponent = -150
    while Fraction(2) ** exponent < Fraction(maximum):
        exponent += 1
    return Fraction(2) ** (exponent - 20)


@given(seeds, cuts)
def test_exact_gram_does_not_depend_on_split_or_order(seed: int, at: list[int]) -> None:
    """The same rows in any batches and any order give the same bits."""
    x = many_rows(seed)
    maximum = x.abs().amax(0)
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + 1))
    seen = ExactGramStatistic(maximum=maximum)
    for part in parts(x[shuffled], at):
        seen = seen.observe(part)
    assert same_bits(seen.matrix(), exact_of(x, maximum).matrix())


@given(seeds, cuts)
def test_exact_gram_of_shards_is_gram_of_the_whole(seed: int, at: list[int]) -> None:
    """Merging what several processes saw gives what one would have seen, bit for bit."""
    x = many_rows(seed)
    maximum = x.abs().amax(0)
    merged = ExactGramStatistic(maximum=maximum)
    for part in reversed(parts(x, at)):
        merged = merged.merge(exact_of(part, maximum))
    assert same_bits(merged.matrix(), exact_of(x, maximum).matrix())


@given(seeds)
def test_exact_gram_is_near_the_float64_product(seed: int) -> None:
    """Rounding to 21 bits of the column's maximum moves no entry by more than 2^-18 of the largest."""
    x = many_rows(seed)
    wide = x.double()
    expected = wide.T @ wide
    errors = (exact_of(x, x.abs().amax(0)).matrix() - expected).abs()
    assert float(errors.max()) <= 2.0**-18 * float(expected.max())
