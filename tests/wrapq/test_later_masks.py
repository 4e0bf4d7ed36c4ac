"""Scores with grids per token before the mask: no grid sees what the mask leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, load_quantized, prepare, report, save_quantized
from tico.quantization.config import DType, PerToken, affine
from tico_modules import ActivationGrid
from tico_quantizers.testing import seeded, values
from tico_wrapq import coverage

PER_TOKEN = PTQConfig(activation=affine(DType.int(8), granularity=PerToken()))


def causal(x: Tensor) -> Tensor:
    """Return a mask (tokens, tokens) to be added."""
    return torch.full((x.shape[1], x.shape[1]), -1e9).triu(1)


class Eager(nn.Module):
    """Attention whose scores are scaled, then masked by a causal mask."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed values of `x` (samples, tokens, features)."""
        scores = (x @ x.transpose(-1, -2)) * 0.5
        return torch.softmax(scores + causal(x), -1) @ x


class Capped(nn.Module):
    """Attention with a cap, heads that come by a view, and a bias before the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed values of `x` (samples, 6, features)."""
        scores = torch.bmm(x, x.transpose(-1, -2)).view(x.shape[0], 1, 6, 6)
        scores = torch.tanh(scores / 4.0) * 4.0 + self.bias
        hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
        return (torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1) @ x[:, None])[:, 0]


class Stable(nn.Module):
    """Attention that subtracts the largest score, and joins a sink to the scores, after the mask."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed values of `x` (samples, tokens, features)."""
        scores = torch.where(causal(x) < 0, -1e9, (x @ x.transpose(-1, -2)) * 0.5)
        scores = torch.cat([scores, x[..., :1]], -1)
        scores = scores - scores.amax(-1, keepdim=True)
        return torch.softmax(scores, -1)[..., :-1] @ x


class InPlace(nn.Module):
    """Attention whose mask is added in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed values of `x` (samples, tokens, features)."""
        scores = x @ x.transpose(-1, -2)
        scores += causal(x)
        return torch.softmax(scores, -1) @ x


class Decay(nn.Module):
    """Gates in log space, as state-space models have them: minus infinity leaves out what comes later."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated values of `x` (samples, tokens, features)."""
        gates = (x @ x.transpose(-1, -2)) * 0.1
        return torch.exp(gates + causal(x)) @ x


class Returned(nn.Module):
    """Attention that gives its scores too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixed values of `x` (samples, tokens, features), and the scores without the mask."""
        scores = x @ x.transpose(-1, -2)
        return torch.softmax(scores + causal(x), -1) @ x, scores


def converted(kind: type[nn.Module]) -> nn.Module:
    """Return a module of `kind` after one batch."""
    prepared = prepare(seeded(kind).eval(), PER_TOKEN)
    with torch.no_grad():
        prepared(values(0, 2, 6, 8))
    return convert(prepared)


GRID = ActivationGrid.per_token(DType.int(8), symmetric=True)


@pytest.mark.parametrize("kind", [Eager, Capped, Stable, Decay, InPlace])
def test_a_later_token_changes_no_earlier_row(kind: type[nn.Module]) -> None:
    """However large it is: no grid of an earlier row spans what the mask leaves out."""
    model = converted(kind)
    x = values(1, 2, 6, 8)
    other = x.clone()
    other[:, -1] *= 100.0
    assert torch.equal(model(x)[:, :-1], model(other)[:, :-1])


@pytest.mark.parametrize("kind", [Eager, Capped, Stable, Decay])
def test_every_step_before_the_mask_has_its_grid(kind: type[nn.Module]) -> None:
    """None stays float."""
    model = converted(kind)
    assert "stays float" not in report(model).layers[0].reason
    assert all("int8 per token" in point for point in coverage(model).lines[0].points if "bias" not in point)


def test_each_row_has_the_grid_of_what_the_mask_leaves() -> None:
    """Written out for one head: the scores of token t are those of the tokens up to t, on their own grid."""
    model = converted(Eager)
    x = values(1, 1, 6, 8)
    for token in range(6):
        before = x[:, : token + 1]
        scores = GRID(x[:, token : token + 1] @ before.transpose(-1, -2))
        weights = GRID(torch.softmax(GRID(GRID(scores * 0.5)), -1))
        torch.testing.assert_close(model(x)[:, token : token + 1], GRID(weights @ before))


def test_in_place_they_stay_float_and_are_named() -> None:
    """What has been written over can't be computed again."""
    assert (
        "matmul_0 stays float: a mask is applied later, in place"
        in report(converted(InPlace)).layers[0].reason
    )


def test_scores_that_are_returned_are_on_their_grid() -> None:
    """As whoever reads the output would expect of a point."""
    model = converted(Returned)
    scores = model(values(1, 2, 6, 8))[1]
    kept = torch.ones(6, 6).tril().bool()
    for row, left in zip(scores[0], kept, strict=True):
        codes = row[left] / (row[left].abs().max() / 127)
        torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", [Eager, Capped, Stable, Decay, InPlace])
def test_saved_and_exported_they_have_the_same_bits(kind: type[nn.Module], tmp_path: Path) -> None:
    """A program holds the steps twice, the first time without grids."""
    model = converted(kind)
    x = values(1, 2, 6, 8)
    expected = model(x)
    save_quantized(model, tmp_path / "saved")
    assert torch.equal(load_quantized(tmp_path / "saved", seeded(kind).eval())(x), expected)
    program = torch.export.export(model, (x,), strict=False).module()
    assert torch.equal(program(x), expected)


def test_gradients_pass() -> None:
    """As through every grid: straight through what is within its range."""
    x = values(1, 2, 6, 8).requires_grad_()
    converted(Eager)(x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.abs().sum()) > 0
