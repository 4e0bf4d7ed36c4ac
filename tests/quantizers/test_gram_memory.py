"""Gram matrices of a block take no more memory than is allowed, whatever number of experts it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fused_models import fused_model, token_ids
from tico.quantization import GPTQConfig, convert, prepare
from tico_config import ConfigError
from tico_quantizers.calibration import InputGrams, gram_bytes
from tico_quantizers.calibration._gram_memory import parts_within
from tico_quantizers.layers import layers_in
from tico_quantizers.testing import refused, same_tensors, tensors_of

SETTINGS: Final[Mapping[str, Mapping[str, object]]] = {
    "as it is": {},
    "asymmetric": {"asymmetric": 0.5},
    "one stage after the other": {"true_sequential": True},
    "tokens all alike": {"token_weights": "uniform"},
}
LIMIT: Final = 420_000  # no less than a layer needs: 24 inputs, twice as long where they are paired


def storages(grams: InputGrams) -> int:
    """Return how many bytes the statistics of `grams` keep alive."""
    held: dict[int, int] = {}
    for gram in grams._grams.values():
        for part in gram.parts:
            for tensor in (*part.upper, *part.pending):
                storage = tensor.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())


@pytest.fixture
def most_kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Note the most bytes that Gram matrices take after a call of a block, and how often one is called."""
    seen = {"bytes": 0, "calls": 0}
    accept = InputGrams.accept

    def noting(grams: InputGrams) -> None:
        accept(grams)
        seen["bytes"] = max(seen["bytes"], storages(grams))
        seen["calls"] += 1

    monkeypatch.setattr(InputGrams, "accept", noting)
    return seen


def quantized(name: str, limit: int | None, **fields: object) -> dict[str, Tensor]:
    """Return the tensors of a model with many tokens for each expert, after GPTQ."""
    config = GPTQConfig(show_progress=False, gram_memory=limit, **fields)  # type: ignore[arg-type]  # of several types
    model = prepare(fused_model(name), config)
    with torch.no_grad():
        for seed in range(3):
            model(token_ids(seed, rows=40))
    return tensors_of(convert(model))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["qwen3", "gpt_oss"])
def test_less_memory_takes_more_runs_of_a_block_to_the_same_bits(
    name: str, setting: str, most_kept: dict[str, int]
) -> None:
    """Nothing but time is lost, and no more is kept than is allowed."""
    expected = quantized(name, None, **SETTINGS[setting])
    before = dict(most_kept)
    most_kept |= {"bytes": 0, "calls": 0}
    found = quantized(name, LIMIT, **SETTINGS[setting])
    assert 0 < most_kept["bytes"] <= LIMIT
    if "true_sequential" not in SETTINGS[setting]:  # which takes little of a block at a time as it is
        assert most_kept["bytes"] < before["bytes"]
        assert most_kept["calls"] > before["calls"]
    assert same_tensors(found, expected)


def test_a_layer_that_needs_more_by_itself_is_refused() -> None:
    """By `prepare`, with what it needs."""
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 8)).eval()
    needed = gram_bytes(model[0], paired=True)  # type: ignore[arg-type]
    config = GPTQConfig(gram_memory=needed - 1, asymmetric=0.5)
    with refused(model, ConfigError, module="0", field="gram_memory") as raised:
        prepare(model, config)
    assert f"{needed:,}" in str(raised.value)
    prepare(model, GPTQConfig(gram_memory=needed, asymmetric=0.5))


LAYERS: Final = layers_in(nn.ModuleList(nn.Linear(width, 4) for width in (40, 8, 300, 8, 60, 60, 8)))
SETS: Final = st.frozensets(st.sampled_from(sorted(LAYERS)), min_size=1)


@given(limit=st.one_of(st.none(), st.integers(1, 8_000_000)), shared=st.lists(SETS), paired=st.booleans())
def test_parts_hold_every_layer_once_within_the_bound(
    limit: int | None, shared: list[frozenset[str]], *, paired: bool
) -> None:
    """Those that share inputs are together, however few bytes are allowed."""
    parts = parts_within(LAYERS, limit, lambda: shared, paired=paired)
    assert sorted(path for part in parts for path in part) == sorted(LAYERS)
    if len(parts) > 1:
        assert all(any(readers <= set(part) for part in parts) for readers in shared)
    for part in parts:
        alone = set(part) - set().union(*shared)
        own = [min(readers) for readers in set(shared) if readers <= set(part)] + sorted(alone)
        size = sum(gram_bytes(LAYERS[path], paired=paired) for path in own)
        tied = len(alone) == 1 or not alone
        assert limit is None or size <= limit or tied
