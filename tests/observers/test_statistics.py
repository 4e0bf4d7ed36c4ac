"""Statistics by themselves: what they refuse, and what they leave alone."""

from __future__ import annotations

import math

import attrs
import pytest
import torch

from tico_config import (
    CalibrationError,
    ConfigError,
    NumericsError,
    PerChannel,
    PerTensor,
    UnsupportedError,
)
from tico_observers import (
    AbsMaxStatistic,
    EMAStatistic,
    ExactGramStatistic,
    GramStatistic,
    HistogramStatistic,
    IdentityStatistic,
    RangeStatistic,
    Statistic,
    channel_extremes,
)

ONES = torch.ones(2)

EMPTY = [
    RangeStatistic(),
    EMAStatistic(momentum=0.9),
    HistogramStatistic(),
    AbsMaxStatistic(granularity=PerTensor()),
    IdentityStatistic(),
    GramStatistic(columns=2),
    ExactGramStatistic(maximum=ONES),
]

every_statistic = pytest.mark.parametrize("empty", EMPTY, ids=lambda each: type(each).__name__)


@every_statistic
def test_no_data_is_the_identity(empty: Statistic) -> None:
    """Nothing was seen, observing nothing changes nothing, and merging with it gives the other."""
    assert empty.is_empty
    assert empty.observe(torch.empty(0, 2)).is_empty
    seen = empty.observe(torch.ones(3, 2))
    assert not seen.is_empty
    assert not seen.merge(empty).is_empty
    assert empty.is_empty


@every_statistic
def test_statistics_are_frozen(empty: Statistic) -> None:
    """Observing gives a new value; no field can be set."""
    field = attrs.fields(type(empty))[0].name
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(empty, field, None)


@every_statistic
def test_only_tensors_are_observed(empty: Statistic) -> None:
    """A list is not taken for a tensor."""
    with pytest.raises(UnsupportedError) as caught:
        empty.observe([1.0, 2.0])  # type: ignore[arg-type]
    assert caught.value.field == "x"


@pytest.mark.parametrize(
    ("one", "other", "field"),
    [
        (RangeStatistic(), RangeStatistic(granularity=PerChannel(0)), "granularity"),
        (HistogramStatistic(), HistogramStatistic(granularity=PerChannel(0)), "granularity"),
        (HistogramStatistic(), HistogramStatistic(on_nonfinite="ignore"), "on_nonfinite"),
        (AbsMaxStatistic(), AbsMaxStatistic(granularity=PerTensor()), "granularity"),
        (EMAStatistic(momentum=0.9), EMAStatistic(momentum=0.5), "momentum"),
        (GramStatistic(columns=2), GramStatistic(columns=3), "columns"),
        (ExactGramStatistic(maximum=ONES), ExactGramStatistic(maximum=2 * ONES), "maximum"),
    ],
    ids=str,
)
def test_statistics_of_other_settings_are_not_merged(
    one: RangeStatistic, other: RangeStatistic, field: str
) -> None:
    """The error names the setting and shows both values."""
    with pytest.raises(CalibrationError) as caught:
        one.merge(other)
    assert caught.value.field == field


def test_ranges_of_other_shapes_are_not_merged() -> None:
    """Both shapes are in the error."""
    channels = RangeStatistic(granularity=PerChannel(0))
    with pytest.raises(CalibrationError, match=r"\(3,\).*\(2,\)"):
        channels.observe(torch.ones(3, 1)).merge(channels.observe(torch.ones(2, 1)))


@pytest.mark.parametrize("columns", [0, -1, True, 2.0])
def test_gram_needs_columns(columns: int) -> None:
    """At least one, as a whole number."""
    with pytest.raises(ConfigError) as caught:
        GramStatistic(columns=columns)
    assert caught.value.field == "columns"


@pytest.mark.parametrize("empty", [GramStatistic(columns=2), ExactGramStatistic(maximum=ONES)])
def test_gram_refuses_what_it_cannot_add(empty: GramStatistic) -> None:
    """Rows of another length, NaN, and asking for the matrix of nothing."""
    with pytest.raises(CalibrationError) as caught:
        empty.observe(torch.ones(4, 3))
    assert caught.value.field == "x"
    with pytest.raises(CalibrationError):
        empty.observe(torch.tensor(1.0))
    with pytest.raises(NumericsError, match=r"1 times, first at \(1, 0\)"):
        empty.observe(torch.tensor([[1.0, 1.0], [torch.nan, 1.0]]))
    with pytest.raises(CalibrationError) as caught:
        empty.matrix()
    assert caught.value.field == "rows"


def test_exact_gram_refuses_values_above_the_maximum() -> None:
    """The first pass has to have seen all data; the error names the column."""
    with pytest.raises(CalibrationError, match="column 1") as caught:
        ExactGramStatistic(maximum=ONES).observe(torch.tensor([[1.0, 1.5]]))
    assert caught.value.field == "x"


def test_exact_gram_refuses_more_rows_than_it_can_add() -> None:
    """Sums stay within 64 bits."""
    full = ExactGramStatistic(maximum=ONES, rows=2**22, sums=torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(CalibrationError) as caught:
        full.observe(torch.ones(1, 2))
    assert (caught.value.field, caught.value.value) == ("rows", 2**22 + 1)


@pytest.mark.parametrize("maximum", [torch.ones(2, 2), -ONES, torch.tensor([1.0, torch.nan])])
def test_exact_gram_needs_maxima(maximum: torch.Tensor) -> None:
    """One finite magnitude a column."""
    with pytest.raises(CalibrationError) as caught:
        ExactGramStatistic(maximum=maximum)
    assert caught.value.field == "maximum"


def test_exact_gram_adds_dead_and_tiny_columns() -> None:
    """A column of zeros adds zeros, and the smallest floats do not vanish."""
    x = torch.tensor([[0.0, 2.0**-140, 3e38], [0.0, -(2.0**-140), 3e38]])
    matrix = ExactGramStatistic(maximum=x.abs().amax(0)).observe(x).matrix()
    assert matrix[0].tolist() == [0.0, 0.0, 0.0]
    assert matrix[1, 1].item() == 2.0**-279
    assert matrix[2, 2].item() == pytest.approx(18e76, rel=1e-5)


def test_absmax_without_data_is_refused() -> None:
    """There is no magnitude of nothing."""
    with pytest.raises(CalibrationError):
        AbsMaxStatistic().maximum()


def test_pending_rows_are_copies() -> None:
    """What happens to a tensor after it was observed does not matter."""
    x = torch.ones(3, 2)
    seen = GramStatistic(columns=2).observe(x)
    x.fill_(9.0)
    assert seen.matrix().tolist() == [[3.0, 3.0], [3.0, 3.0]]


@pytest.mark.parametrize("shape", [(4100, 257), (2, 3, 4099, 64), (3, 400_000), (1, 2**20), (2**20, 1)])
@pytest.mark.parametrize("value", [0.5, 99.0, -99.0, math.nan, math.inf])
def test_channels_of_large_tensors_have_the_range_of_each_column(
    shape: tuple[int, ...], value: float
) -> None:
    """Each is that of the column alone, wherever its smallest and largest values are."""
    x = torch.sin(torch.arange(math.prod(shape), dtype=torch.float32)).view(shape)
    x.view(-1)[-1] = x.view(-1)[len(x.view(-1)) // 3] = value
    columns = x.reshape(-1, shape[-1])
    found = channel_extremes(x, -1)
    assert found is not None
    for at in (0, shape[-1] // 3, shape[-1] - 1):
        column = columns[:, at].contiguous()
        assert torch.equal(found.minimum[at].nan_to_num(7.0), column.amin().nan_to_num(7.0))
        assert torch.equal(found.maximum[at].nan_to_num(7.0), column.amax().nan_to_num(7.0))
