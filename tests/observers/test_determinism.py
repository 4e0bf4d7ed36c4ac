"""The same data give the same bits: on any number of threads, in any layout, at any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from references import same_bits
from tico_config import DType, EntropySpec, MSESpec, PercentileSpec, PerChannel, PerGroup, PerTensor
from tico_observers import (
    AbsMaxStatistic,
    EMAStatistic,
    ExactGramStatistic,
    GramStatistic,
    HistogramStatistic,
    RangeStatistic,
    fake_quantize,
    least_divergence_range,
    least_error_range,
    params_from_range,
    percentile_range,
    quantize,
)

GRIDS = [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(1, 100)]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set the number of threads during a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def numbers(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Return correlated numbers of several magnitudes, from integers, which are the same anywhere."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(-(2**12), 2**12, (rows, columns), generator=generator).float()
    return whole * 2.0 ** torch.randint(-8, 8, (columns,), generator=generator) + whole[:, :1]


def same_for_all(threads: Callable[[int], None], compute: Callable[[], list[Tensor]]) -> None:
    """Require the same bits from one thread and from two, three and four."""
    results = []
    for count in (1, 2, 3, 4):
        threads(count)
        results.append(compute())
    first, *others = results
    for other in others:
        assert all(map(same_bits, first, other))


@pytest.mark.parametrize("granularity", GRIDS, ids=str)
def test_statistics_do_not_depend_on_threads(threads: Callable[[int], None], granularity: PerTensor) -> None:
    """Range, average and histogram of more elements than one thread takes at a time."""
    x = numbers(700, 300)

    def compute() -> list[Tensor]:
        histogram = HistogramStatistic(granularity=granularity).observe(x)
        average = EMAStatistic(momentum=0.9, granularity=granularity).observe(x).observe(2 * x).extremes
        extremes = RangeStatistic(granularity=granularity).observe(x).extremes
        assert average is not None
        assert extremes is not None
        return [histogram.keys, histogram.counts, average.maximum, extremes.minimum]

    same_for_all(threads, compute)


@pytest.mark.parametrize("symmetric", [True, False])
def test_searched_ranges_do_not_depend_on_threads(threads: Callable[[int], None], symmetric: bool) -> None:
    """Percentiles, least error and least divergence of a histogram with more than 32,768 keys."""
    dtype = DType(4, symmetric)
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**15), 2**15, (2, 400_000), generator=generator).to(torch.int16)
    x = bits.view(torch.bfloat16)
    usual = torch.where(x.abs() < 2.0**20, x, 0.0)

    def compute() -> list[Tensor]:
        seen = HistogramStatistic(granularity=PerChannel(0), on_nonfinite="ignore").observe(usual)
        found = [
            percentile_range(seen, PercentileSpec(1.0, 99.0)),
            least_error_range(seen, MSESpec(4), dtype, symmetric=symmetric),
            least_divergence_range(seen, EntropySpec(4), dtype, symmetric=symmetric),
        ]
        assert len(seen.keys) > 32_768
        return [end for extremes in found for end in (extremes.minimum, extremes.maximum)]

    same_for_all(threads, compute)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (1024, 64),
        (1500, 128),
        (4096, 512),
        (3000, 300),
        (600, 1000),
        (2100, 1),
        (1100, 5),
        (1500, 37),
        (600, 257),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gram_does_not_depend_on_threads_or_batches(
    threads: Callable[[int], None], rows: int, columns: int, dtype: torch.dtype
) -> None:
    """Tall matrices, whose plain product depends on both, with any number of threads and any split."""
    x = numbers(rows, columns).to(dtype)
    maximum = AbsMaxStatistic().observe(x).maximum()

    def compute() -> list[Tensor]:
        matrices = []
        for size in (rows, 333):
            gram, exact = GramStatistic(columns=columns), ExactGramStatistic(maximum=maximum)
            for start in range(0, rows, size):
                gram = gram.observe_in_place(x[start : start + size])
                exact = exact.observe_in_place(x[start : start + size])
            matrices += [gram.matrix(), exact.matrix()]
        assert same_bits(matrices[0], matrices[2])
        assert same_bits(matrices[1], matrices[3])
        return matrices

    same_for_all(threads, compute)


def test_gram_of_mixed_formats_does_not_depend_on_batches() -> None:
    """Rows of float32 and float64 in one stream are cut into the same chunks however they come."""
    narrow, wide = numbers(700, 20), numbers(900, 20, seed=1).double() / 3
    whole = GramStatistic(columns=20).observe(narrow).observe(wide).observe(narrow)
    parts = GramStatistic(columns=20)
    for rows in (narrow[:100], narrow[100:], wide[:500], wide[500:], narrow[:1], narrow[1:]):
        parts = parts.observe(rows)
    assert same_bits(whole.matrix(), parts.matrix())


def test_fake_quantizing_does_not_depend_on_threads(threads: Callable[[int], None]) -> None:
    """Elementwise arithmetic that is rounded once at each step."""
    x = numbers(600, 301)
    params = params_from_range(
        x.amin(0), x.amax(0), DType.uint(8), symmetric=False, granularity=PerChannel(1)
    )
    same_for_all(threads, lambda: [fake_quantize(x, params), quantize(x, params)])


def test_histogram_counts_beyond_2_to_the_24() -> None:
    """Counts are whole numbers of 64 bits, and order statistics are exact where quantile() refuses."""
    x = torch.zeros(2**24 + 3)
    x[0], x[1] = -1.0, 1.0
    seen = HistogramStatistic().observe(x)
    assert seen.counts.tolist() == [1, 2**24 + 1, 1]
    assert percentile_range(seen, PercentileSpec(0.0, 99.0)).maximum.item() == 0.0


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1), PerChannel(-1), PerGroup(2, 5)], ids=str)
def test_statistics_do_not_depend_on_the_memory_format(granularity: PerTensor) -> None:
    """Channels-last, transposed, expanded, and sliced at an odd offset."""
    x = numbers(4, 3 * 10 * 10).view(4, 3, 10, 10)
    padded = torch.zeros(4, 5, 13, 21)[:, 1:4, 3:, 1::2]
    padded.copy_(x)
    layouts = [
        x.to(memory_format=torch.channels_last),
        x.transpose(0, 3).contiguous().transpose(0, 3),
        padded,
    ]
    for kind in (RangeStatistic, HistogramStatistic):
        expected = kind(granularity=granularity).observe(x)
        assert all(kind(granularity=granularity).observe(each) == expected for each in layouts)
    expanded = x[:, :, :1, :1].expand(4, 3, 10, 10)
    one, other = (
        HistogramStatistic(granularity=granularity).observe(each) for each in (expanded, expanded.clone())
    )
    assert one == other


def test_observing_leaves_the_random_state_alone() -> None:
    """Nothing here draws random numbers or sets a flag."""
    before = torch.get_rng_state()
    x = numbers(300, 40)
    seen = HistogramStatistic().observe(x)
    least_error_range(seen, MSESpec(5), DType.int(8), symmetric=True)
    GramStatistic(columns=40).observe(x).matrix()
    assert torch.equal(torch.get_rng_state(), before)
