"""The parts of an analysis: choices of least cost, losses that fit sums, layers that share their bits."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tico_config import ConfigError, MissingExtraError
from tico_quantizers.analysis import _choice, choose
from tico_quantizers.analysis._scaling import fit_losses
from tico_quantizers.analysis._together import share_bits

GAP = 1e-4

_costs = st.integers(0, 1000).map(float)
_item = st.lists(st.tuples(_costs, st.integers(1, 1000)), min_size=1, max_size=3)
_items = st.lists(_item, min_size=1, max_size=4)


@settings(deadline=None)
@given(_items, st.floats(0.0, 1.0))
def test_a_choice_is_that_of_trying_all(items: list[list[tuple[float, int]]], share: float) -> None:
    """It is within its size, and no other within it costs less by more than the gap of the solver."""
    costs, sizes = ([[pair[at] for pair in item] for item in items] for at in (0, 1))
    least, largest = (sum(int(end(own)) for own in sizes) for end in (min, max))
    most = least + math.floor(share * (largest - least))
    found = choose(costs, [[int(size) for size in own] for own in sizes], most)
    taken = [item[choice] for item, choice in zip(items, found, strict=True)]
    best = min(
        sum(cost for cost, _ in each)
        for each in itertools.product(*items)
        if sum(size for _, size in each) <= most
    )
    assert sum(size for _, size in taken) <= most
    assert sum(cost for cost, _ in taken) <= best * (1 + GAP)


@settings(deadline=None)
@given(_item, st.integers(2, 5), st.floats(0.0, 1.0))
def test_among_items_that_are_alike_the_first_get_most(
    item: list[tuple[float, int]], count: int, share: float
) -> None:
    """Where the numbers do not tell items apart, their order does."""
    costs, sizes = [cost for cost, _ in item], [size for _, size in item]
    most = count * min(sizes) + math.floor(share * count * (max(sizes) - min(sizes)))
    found = [sizes[choice] for choice in choose([costs] * count, [sizes] * count, most)]
    assert found == sorted(found, reverse=True)


def test_a_size_that_nothing_fits_is_refused() -> None:
    """The error says which sizes are possible."""
    with pytest.raises(ConfigError, match="5 or more"):
        choose([(1.0, 0.0), (1.0, 0.0)], [(2, 4), (3, 6)], 4)


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra, as most people never need it."""
    monkeypatch.setattr(_choice, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"tico-quantizers\[analyze\]"):
        choose([(1.0,)], [(1,)], 1)


_positive = st.floats(0.125, 8.0)


@given(st.lists(_positive, min_size=3, max_size=3), st.lists(_positive, min_size=4, max_size=4))
def test_factors_of_rows_and_columns_are_found(rows: list[float], columns: list[float]) -> None:
    """Losses that differ from the wanted ones by such factors become them.

    One round suffices there. Each of the 50 multiplies a loss twice, by a factor that is off by a sum of four
    numbers and a quotient: less than 8 units of rounding, so 50 * 2 * 8 * 2**-53 in all, below 2**-43.
    """
    places = [*itertools.product(range(3), range(4))]
    wanted = [rows[row] * columns[column] for row, column in places]
    names = [str(row) for row, _ in places], [str(column) for _, column in places]
    sums = [dict.fromkeys(each, 0.0) for each in names]
    for value, row, column in zip(wanted, *names, strict=True):
        sums[0][row] += value
        sums[1][column] += value
    assert fit_losses([1.0] * 12, *names, *sums) == pytest.approx(wanted, rel=2**-43)


def test_sums_of_rows_are_met_where_columns_contradict() -> None:
    """A row with one loss decides about it, whatever its column says."""
    found = fit_losses([1.0, 2.0, 0.0], "abb", "xxy", {"a": 3.0, "b": 5.0}, {"x": 1.0, "y": 7.0})
    assert found == [3.0, 5.0, 0.0]


def test_layers_of_one_parent_share() -> None:
    """Those of another parent do not, nor those that match another pattern."""
    paths = [f"layers.{number}.{name}" for number in range(2) for name in ("q", "k", "up", "gate", "down")]
    items = share_bits(paths, ["*.[qk]", r"re:.*\.(up|gate)"], paths)
    assert items == [[0, 1], [2, 3], [4], [5, 6], [7, 8], [9]]


def test_patterns_that_overlap_join_their_layers() -> None:
    """What shares with the same layer shares with each other."""
    paths = ["a.q", "a.k", "a.v"]
    assert share_bits(paths, ["*.[qk]", "*.[kv]"], paths) == [[0, 1, 2]]


def test_weights_of_one_module_share() -> None:
    """No pattern is needed for them."""
    assert share_bits(["e.w.0", "e.w.1", "e.v.0"], [], ["e", "e", "f"]) == [[0, 1], [2]]


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    """The nearest path is named, and so is an expression that cannot be matched."""
    with pytest.raises(ConfigError, match=r"together has '\*\.qq'.*'a\.q'"):
        share_bits(["a.q"], ["*.qq"], ["a.q"])
    with pytest.raises(ConfigError, match="cannot be matched"):
        share_bits(["a.q"], ["re:("], ["a.q"])
