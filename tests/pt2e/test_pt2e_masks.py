"""Masks on their way to a softmax: no grid spans them, whatever they pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PT2EConfig, convert, prepare, report
from tico_quantizers.testing import values

TOKENS: Final = 8
CAUSAL: Final = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()


def additive(lowest: float) -> Tensor:
    """Return a causal mask to be added to scores."""
    return torch.zeros(TOKENS, TOKENS).masked_fill(~CAUSAL, lowest)


LOWEST: Final = torch.finfo(torch.float32).min
BIAS: Final = values(9, 3, TOKENS, TOKENS)


def with_sink(scores: Tensor) -> Tensor:
    """Return the weights of scores beside which each row has one for an attention sink, as in gpt-oss."""
    scores = scores + additive(LOWEST)
    both = torch.cat([scores, torch.full_like(scores[..., :1], 0.5)], -1)
    both = both - both.amax(-1, keepdim=True)
    return torch.softmax(both, -1)[..., :-1]


def in_windows(scores: Tensor) -> Tensor:
    """Return the weights of scores that are masked in another shape, as in Swin."""
    masked = scores.view(1, 2, 3, TOKENS, TOKENS) + additive(-100.0 * 1e3)
    return torch.softmax(masked.view(2, 3, TOKENS, TOKENS), -1)


WAYS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "added": lambda scores: torch.softmax(scores + additive(LOWEST), -1),
    "through cat": with_sink,
    "with a bias": lambda scores: torch.softmax(scores + (BIAS + additive(LOWEST)), -1),
    "before a bias": lambda scores: torch.softmax((scores + additive(LOWEST)) + BIAS, -1),
    "through views": in_windows,
    "then divided": lambda scores: torch.softmax(scores.masked_fill(~CAUSAL, -1e9) / 4, -1),
    "minus infinity, then scaled": lambda scores: torch.softmax(
        scores.masked_fill(~CAUSAL, -math.inf) * 0.5, -1
    ),
    "selected, then scaled": lambda scores: torch.softmax(
        torch.where(CAUSAL, scores, torch.tensor(-1e4)) * 0.5, -1
    ),
    "log softmax": lambda scores: torch.log_softmax((scores + additive(LOWEST)) * 1.0, -1).exp(),
}


class Attention(nn.Module):
    """Attention of three heads whose scores become weights in one of the ways."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.way = way
        self.qkv = nn.Linear(12, 36)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed values of `x` (2, tokens, 12)."""
        query, key, value = self.qkv(x).view(2, TOKENS, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed: Tensor = self.way(query @ key.transpose(-1, -2) * 0.5) @ value
        return mixed.transpose(1, 2).reshape(2, TOKENS, 12)


@pytest.mark.parametrize("way", WAYS)
def test_a_mask_takes_nothing_from_what_is_not_masked(way: str) -> None:
    """At 8 bits the output has above 30 dB (it would be below 10), and the report says what stayed float."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Attention(WAYS[way]).eval()
    x = values(0, 2, TOKENS, 12)
    prepared = prepare(model, PT2EConfig(), args=(x,), inplace=False)
    prepared(x)
    graph = convert(prepared)
    expected = model(x)
    noise = (graph(x) - expected).square().mean()
    assert 10 * torch.log10(expected.square().mean() / noise) > 30
    said = [line for line in report(graph).layers if "holds a mask" in line.activation]
    # A sum right before the softmax has no grid anyway, and a mask by itself is no data.
    assert bool(said) == (way not in ("added", "with a bias"))


def test_scores_without_a_mask_keep_their_grid() -> None:
    """What is added to scores and is no mask, such as a bias, is on a grid."""
    model = Attention(lambda scores: torch.softmax((scores + BIAS) * 1.0, -1)).eval()
    x = values(0, 2, TOKENS, 12)
    prepared = prepare(model, PT2EConfig(), args=(x,), inplace=False)
    prepared(x)
    lines = report(convert(prepared)).layers
    assert not any("holds a mask" in line.activation for line in lines)
    assert [line.activation for line in lines if line.path.startswith("add")] != ["float"]


def test_a_large_activation_elsewhere_is_no_mask() -> None:
    """Far from any softmax, a value a thousand times the others is what it is, and on a grid."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).eval()
    x = values(0, 2, 4)
    x[0, 0] = -1e5
    prepared = prepare(model, PT2EConfig(), args=(x,), inplace=False)
    prepared(x)
    assert not any("holds a mask" in line.activation for line in report(convert(prepared)).layers)
