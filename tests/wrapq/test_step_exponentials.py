"""Gates in log space: a mask adds minus infinity, and an exponential makes weights of what is left."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, prepare
from tico.quantization.config import DType, affine
from tico_quantizers.testing import values

A16 = PTQConfig(activation=affine(DType.int(16)), steps="auto")


class Decay(nn.Module):
    """Each token reads those before it, less and less with the distance, as linear attention does.

    Args:
        hidden: what the mask puts in the place of the tokens after it.
        reaches_none: whether the first token reads nothing either.
    """

    def __init__(self, hidden: float, *, reaches_none: bool = False) -> None:
        super().__init__()
        self.hidden, self.reaches_none = hidden, reaches_none

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted sums of the tokens (samples, tokens, features)."""
        gates = nn.functional.logsigmoid(x[..., 0]).cumsum(-1)
        seen = torch.ones(x.shape[1], x.shape[1]).tril(-1 if self.reaches_none else 0).bool()
        between = gates[:, :, None] - gates[:, None, :]
        log_weights = torch.where(seen, between, self.hidden) + 0.25 * x[:, None, :, 1]
        return torch.exp(log_weights) @ x


def converted(model: nn.Module, *data: Tensor) -> nn.Module:
    """Return `model` on the grids that `data` give."""
    prepared = prepare(model.eval(), A16)
    for batch in data:
        prepared(batch)
    return convert(prepared)


def test_masked_exponents_take_no_part_in_any_grid() -> None:
    """Whatever number the mask puts, the grids are those of what is left, and so is the result."""
    x = values(0, 2, 6, 8)
    expected = Decay(-math.inf)(x)
    reference = converted(Decay(-math.inf), x)
    found = reference.state_dict()
    assert sum(name.endswith(".scale") for name in found) == 7
    for hidden in (-1e30, -1e9, -1e4):
        state = converted(Decay(hidden), x).state_dict()
        assert all(torch.equal(state[name], found[name]) for name in found)
    error = (reference(x) - expected).abs().max()
    # Exponents below 8 err by 4 half steps of 8 / 2^15, weights and sums by half a step of theirs.
    assert error < 4 * 4 / 2**15 * expected.abs().max() * 6


def test_token_that_reads_nothing_has_a_sum_of_zero() -> None:
    """A row of minus infinity alone stays what it is: its weights are 0."""
    x = values(0, 2, 6, 8)
    model = converted(Decay(-math.inf, reaches_none=True), x)
    assert not model(x)[:, 0].any()


def test_later_tokens_change_nothing_before_them() -> None:
    """Bit for bit: a masked weight is 0 after the grids, too."""
    x = values(0, 2, 6, 8)
    other = torch.cat([x[:, :-1], values(1, 2, 1, 8)], 1)
    model = converted(Decay(-math.inf), x, other)
    assert torch.equal(model(x)[:, :-1], model(other)[:, :-1])
