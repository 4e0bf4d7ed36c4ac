"""What the points of a model have seen is the range of each, whichever of them a pass reached."""

from __future__ import annotations

import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from references import same_bits
from tico_config import DType, affine
from tico_observers import ChannelRangeStatistic, MinMaxObserver, RangeStatistic
from tico_quantizers import Calibration
from tico_wrapq import ACT_IN, QuantPoint
from tico_wrapq.base import Passage, PointStatistics

_POINTS = 3
Pass = dict[int, Tensor]


@st.composite
def passes(draw: st.DrawFn) -> list[Pass]:
    """Return passes, each with the tensors that some of the points see in it, of one to three channels."""
    made: list[Pass] = []
    for reached in draw(st.lists(st.sets(st.integers(0, _POINTS - 1), min_size=1), min_size=1, max_size=4)):
        width = draw(st.integers(1, 3))
        dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float64]))
        numbers = st.lists(st.integers(-99, 99), min_size=2 * width, max_size=2 * width)
        made.append({at: torch.tensor(draw(numbers), dtype=dtype).view(2, width) for at in reached})
    return made


def _begun(passage: Passage) -> Calibration:
    """Return the calibration in which a forward pass has begun."""
    calibration = passage.calibration = passage.calibration or Calibration(passage)
    calibration.begin([], (), {})
    return calibration


def _shown(passage: Passage, points: list[PointStatistics], seen: Pass) -> None:
    calibration = _begun(passage)
    for at, x in seen.items():
        passage.see(points[at], x)
    calibration.end((), {}, None)


def _same(found: ChannelRangeStatistic, expected: ChannelRangeStatistic) -> bool:
    mine, theirs = found.channels, expected.channels
    if mine is None or theirs is None:
        return mine is theirs
    return same_bits(mine.minimum, theirs.minimum) and same_bits(mine.maximum, theirs.maximum)


@given(passes())
def test_joined_ranges_are_those_of_each_point(made: list[Pass]) -> None:
    """Merging all at once gives what merging one by one does, also in a copy and after an undone pass."""
    points = [PointStatistics(MinMaxObserver(), -1) for _ in range(_POINTS)]
    passage = Passage()
    expected = [ChannelRangeStatistic()] * _POINTS
    for seen in made:
        _shown(passage, points, seen)
        for at, x in seen.items():
            expected[at] = expected[at].observe(x)
        _begun(passage)
        for at, x in seen.items():
            passage.see(points[at], x * 1000)
        passage.drop_unfinished()
        passage, points = copy.deepcopy((passage, points))
    assert all(_same(point.channels, wanted) for point, wanted in zip(points, expected, strict=True))


@given(st.lists(st.integers(-99, 99), min_size=1, max_size=5), st.integers(-99, 99))
def test_tensor_written_to_between_two_points_is_read_again(numbers: list[int], addend: int) -> None:
    """A range is taken from a point before only while the tensor is the same."""
    points = [QuantPoint(f"{at}", ACT_IN, affine(DType.uint(8))) for at in range(2)]
    x = torch.tensor(numbers, dtype=torch.float32)
    expected = [RangeStatistic().observe(x), RangeStatistic().observe(x + addend)]
    passage = Passage()
    for point in points:
        point.watch(passage)
    calibration = _begun(passage)
    for point in points:
        point(x)
        x.add_(addend)
    calibration.end((), {}, None)
    found = [None if point.statistics is None else point.statistics.statistics for point in points]
    assert found == expected
