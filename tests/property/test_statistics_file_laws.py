"""Statistics in files: exact inverses, canonical bytes, no damage that goes unseen."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tico_config import ArtifactError, PerChannel
from tico_observers import (
    AbsMaxStatistic,
    EMAStatistic,
    ExactGramStatistic,
    GramStatistic,
    HistogramStatistic,
    IdentityStatistic,
    RangeStatistic,
    Statistic,
    load_statistics,
    save_statistics,
)
from tico_observers.testing import granularities, tensors
from tiny_models import values

matrices = tensors(shape=(4, 3))
names = st.text(alphabet="abc._é", min_size=1, max_size=6).filter(lambda name: ".." not in f"{name}.x")


@st.composite
def statistics(draw: st.DrawFn) -> Statistic:
    """Draw a statistic of any kind that can be compared, with or without data."""
    x, granularity = draw(matrices), draw(granularities(2))
    empty = draw(
        st.sampled_from(
            [
                RangeStatistic(granularity=granularity),
                RangeStatistic(granularity=granularity, on_nonfinite="ignore"),
                EMAStatistic(momentum=0.5, granularity=granularity),
                HistogramStatistic(granularity=granularity),
                AbsMaxStatistic(),
                IdentityStatistic(),
            ]
        )
    )
    return empty.observe(x) if draw(st.booleans()) else empty


tables = st.dictionaries(names.filter(lambda name: not name.startswith("__")), statistics(), max_size=3)


def saved(table: dict[str, Statistic]) -> bytes:
    """Return the bytes of the file that holds some statistics."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "statistics")
        save_statistics(path, table)
        return path.read_bytes()


def loaded(content: bytes) -> dict[str, Statistic]:
    """Return the statistics of a file with some content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "statistics")
        path.write_bytes(content)
        return load_statistics(path)


@given(tables)
def test_load_is_the_inverse_of_save(table: dict[str, Statistic]) -> None:
    """load(save(s)) = s."""
    assert loaded(saved(table)) == table


@given(tables)
def test_equal_statistics_have_equal_files(table: dict[str, Statistic]) -> None:
    """The bytes depend on the content alone, not on the order of the names."""
    assert saved(dict(reversed(table.items()))) == saved(table)


@given(tensors(shape=(5, 3), dtype=torch.float32, largest=100.0))
def test_gram_matrices_come_back(x: Tensor) -> None:
    """Both Gram statistics give the same matrix after a file."""
    gram = GramStatistic(columns=3).observe(x)
    exact = ExactGramStatistic(maximum=torch.full((3,), 128.0)).observe(x)
    again = loaded(saved({"gram": gram, "exact": exact}))
    for name, seen in (("gram", gram), ("exact", exact)):
        restored = again[name]
        assert isinstance(restored, GramStatistic | ExactGramStatistic)
        assert restored.rows == seen.rows
        assert torch.equal(restored.matrix(), seen.matrix())


def test_a_gram_matrix_of_whole_chunks_goes_on_from_a_file() -> None:
    """The sums of finished chunks, of several panels, come back, and so do the rows that wait."""
    x = values(1, 2100, 150)
    seen = GramStatistic(columns=150).observe(x[:1300])
    again = loaded(saved({"gram": seen}))["gram"]
    assert isinstance(again, GramStatistic)
    whole = GramStatistic(columns=150).observe(x)
    assert torch.equal(again.observe(x[1300:]).matrix(), whole.matrix())
    assert torch.equal(whole.matrix(), whole.matrix().T)


@given(st.data(), statistics())
def test_every_flipped_bit_is_noticed(data: st.DataObject, seen: Statistic) -> None:
    """No file with a bit changed is read."""
    content = bytearray(saved({"x": seen}))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ArtifactError):
        loaded(bytes(content))


@given(st.data(), statistics())
def test_every_truncation_is_noticed(data: st.DataObject, seen: Statistic) -> None:
    """No file that ends early, or late, is read."""
    content = saved({"x": seen})
    with pytest.raises(ArtifactError):
        loaded(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ArtifactError):
        loaded(content + b"\0")


@given(matrices, matrices)
def test_merging_files_is_one_process_over_all_data(a: Tensor, b: Tensor) -> None:
    """What two processes saw, through files, equals what one would have seen, bit for bit."""
    empty = HistogramStatistic(granularity=PerChannel(1))
    one, other = (loaded(saved({"x": empty.observe(part)}))["x"] for part in (a, b))
    assert isinstance(one, HistogramStatistic)
    assert isinstance(other, HistogramStatistic)
    assert one.merge(other) == empty.observe(a).observe(b)
