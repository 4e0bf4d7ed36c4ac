"""The strategies: what they draw, and what happens without Hypothesis."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from hypothesis import find
from hypothesis import strategies as st

from tico_config import MissingExtraError
from tico_observers import testing


def test_without_hypothesis_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is an ImportError that says what to install."""
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(MissingExtraError, match=r"tico-observers\[testing\]") as caught:
        importlib.reload(testing)
    assert isinstance(caught.value, ImportError)
    assert caught.value.field == "hypothesis"
    monkeypatch.undo()
    importlib.reload(testing)


def test_tensors_show_the_interesting_values() -> None:
    """Negative zero and subnormals are among them."""
    numbers = testing.tensors(shape=(2,), dtype=torch.float32)
    assert find(numbers, lambda x: bool((x.signbit() & (x == 0)).any())).shape == (2,)
    tiny = torch.finfo(torch.float32).smallest_normal
    assert find(numbers, lambda x: bool(((x != 0) & (x.abs() < tiny)).any())).dtype == torch.float32


def test_layouts_show_the_interesting_strides() -> None:
    """Transposed, with gaps, at an odd offset, and expanded."""
    x = torch.ones(2, 3)
    for holds in (
        lambda y: y.stride(0) < y.stride(1),
        lambda y: min(y.stride()) > 1,
        lambda y: y.storage_offset() % 2 == 1,
        lambda y: 0 in y.stride(),
    ):
        assert torch.equal(find(testing.layouts(x), holds), x)


def test_partitions_join_to_the_whole() -> None:
    """Empty parts are among them."""
    x = torch.arange(4)
    parts = find(testing.partitions(x), lambda each: len(each) > 2 and any(not len(part) for part in each))
    assert torch.equal(torch.cat(parts), x)


def test_specs_and_grids_are_of_every_kind() -> None:
    """Quantized and not, per tensor, channel and group."""
    assert not find(testing.quant_specs(), lambda spec: not spec.is_quantized).is_quantized
    for shape in ((), (3,), (1, 3)):
        drawn = testing.params_for(torch.zeros(2, 3)).map(lambda params: tuple(params.scale.shape))
        assert find(drawn, shape.__eq__) == shape
    assert find(testing.observer_specs(), lambda spec: True) is not None
    assert isinstance(testing.shapes(), st.SearchStrategy)
