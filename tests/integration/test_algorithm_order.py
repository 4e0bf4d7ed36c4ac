"""Every algorithm after every other: a table of the documentation says what happens, and it does."""

from __future__ import annotations

import re
from typing import Final

import pytest
import torch
from torch import nn

from cache_models import two_heads
from distributions import ROOT
from tico.quantization import (
    BUILT_IN,
    AWQConfig,
    BlockTuneConfig,
    CLEConfig,
    GPTQConfig,
    HQQConfig,
    KVCacheConfig,
    PT2EConfig,
    PTQConfig,
    RotationConfig,
    ScaleTuneConfig,
    SmoothQuantConfig,
    cache_bytes,
    calibrate,
    convert,
    prepare,
)
from tico.quantization.config import BaseConfig, TicoError
from tico_quantizers.testing import ResidualBlock, seeded, unchanged
from tiny_models import values

CONFIGS: Final[dict[str, BaseConfig]] = {
    "GPTQ": GPTQConfig(show_progress=False),
    "block tuning": BlockTuneConfig(show_progress=False),
    "AWQ": AWQConfig(group_size=None, show_progress=False),
    "HQQ": HQQConfig(show_progress=False),
    "ScaleTune": ScaleTuneConfig(base=GPTQConfig(show_progress=False), steps=2, show_progress=False),
    "CLE": CLEConfig(),
    "SmoothQuant": SmoothQuantConfig(),
    "rotation": RotationConfig(),
    "PTQ": PTQConfig(),
    "PT2E": PT2EConfig(),
}
REFUSALS: Final = {
    "integers": "its weight is quantized already",
    "graph": "the model is (an exported|a) graph",
}
"""What the error of each kind of refusal says."""


def _table() -> dict[tuple[str, str], str]:
    """Return the cells of the table, by the first and the second algorithm."""
    text = (ROOT / "docs/how-to/combine-algorithms.md").read_text(encoding="utf-8")
    lines = text.partition("## Which may follow which")[2].strip().partition("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header, _, *body = rows
    return {(row[0], second): cell for row in body for second, cell in zip(header[1:], row[1:], strict=True)}


TABLE: Final = _table()


def _turn(model: nn.Module, config: BaseConfig) -> nn.Module:
    example, inplace = values(0, 16, 8), not isinstance(config, PT2EConfig)
    prepared = prepare(model, config, args=(example,), inplace=inplace)
    prepared(example)
    return convert(prepared)


def _model() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(8, 8), ResidualBlock(), nn.Linear(8, 8)))


def test_table_has_every_pair_of_algorithms() -> None:
    """An algorithm that is added is added to the table; that of the cache needs other models."""
    others = set(BUILT_IN.config_types) - {KVCacheConfig}
    assert {type(config) for config in CONFIGS.values()} == others
    assert set(TABLE) == {(first, second) for first in CONFIGS for second in CONFIGS}


@pytest.mark.parametrize(("first", "second"), TABLE, ids=["-".join(pair) for pair in TABLE])
def test_pair_does_what_the_table_says(first: str, second: str) -> None:
    """It works and stays near the float model, or is refused in one sentence of the kind in the cell."""
    cell, expected = TABLE[first, second], _model()(values(1, 16, 8)).detach()
    once = _turn(_model(), CONFIGS[first])
    if cell == "yes":
        found = _turn(once, CONFIGS[second])(values(1, 16, 8)).detach()
        # Twice 4 bits over the range of a row: 1 / 15 of a weight's norm for each, and two layers of each.
        assert (found - expected).norm() < 4 / 15 * expected.norm()
    else:
        with unchanged(once), pytest.raises(TicoError) as caught:
            _turn(once, CONFIGS[second])
        assert re.search(REFUSALS[cell], str(caught.value))
        assert len(caught.value.problems) == 1
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "PT2E"])
def test_cache_goes_before_and_after(name: str) -> None:
    """Whichever is first, tokens meet the same integers: what one does the other keeps."""
    tokens = torch.arange(64).view(2, 32) % 40
    cache = KVCacheConfig(residual_length=0)
    found = []
    for configs in ((cache, CONFIGS[name]), (CONFIGS[name], cache)):
        model: nn.Module = two_heads()
        for config in configs:
            prepared = prepare(model, config)
            model = convert(calibrate(prepared, [{"input_ids": tokens, "use_cache": False}]))
        output = model(tokens)
        assert cache_bytes(output.past_key_values) > 0
        found.append(output.logits.detach())
    assert torch.equal(*found)
