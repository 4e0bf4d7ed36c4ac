"""Which rows are padding: told by any mask, in tensors of any layout, and counted by nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import pytest
import torch
from torch import Tensor, nn

from tico_config import CalibrationError
from tico_quantizers.calibration import RealTokens
from tico_quantizers.testing import values

REAL: Final = torch.tensor([[False, False, True, True, True], [True, True, True, True, False]])
LOWEST: Final = torch.finfo(torch.float32).min
CAUSAL: Final = torch.ones(5, 5, dtype=torch.bool).tril() & REAL[:, None, None, :]


def additive(allowed: Tensor) -> Tensor:
    """Return 0 where it is allowed to look and the lowest number elsewhere."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, LOWEST)


def by_head(x: Tensor) -> Tensor:
    """Return what is real in `x` (samples, 4 heads, tokens, …), as (4, …)."""
    return x.movedim(1, -1)[REAL].reshape(-1, 4).T


class Asked(nn.Module):
    """Notes what is known inside of its call about `asked`, or about its first argument."""

    def __init__(self, tokens: RealTokens, asked: Tensor | None = None, channels: int = -1) -> None:
        super().__init__()
        self.tokens = tokens
        self.asked = asked
        self.channels = channels
        self.stripped = torch.empty(0)

    def forward(self, hidden_states: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the first argument."""
        asked = hidden_states if self.asked is None else self.asked
        self.stripped = self.tokens.strip(asked, self.channels)
        return hidden_states


def stripped(
    x: Tensor, masks: Mapping[str, Tensor], asked: Tensor | None = None, channels: int = -1
) -> Tensor:
    """Return what is left of `asked` in a call of a module with `x` and `masks`."""
    tokens = RealTokens()
    model = Asked(tokens, asked, channels)
    tokens.watch(model)
    model(x, **masks)
    return model.stripped


@pytest.mark.parametrize(
    "masks",
    [
        {"attention_mask": REAL},
        {"attention_mask": REAL.long()},
        {"attention_mask": REAL.float()},
        {"attention_mask": additive(REAL)},
        {"attention_mask": REAL.long() * torch.tensor([1, 1, 2, 2, 3])},
        {"mask": REAL},
        {"attention_mask": CAUSAL},
        {"attention_mask": additive(CAUSAL)},
        {"attention_mask": additive(REAL[:, None, None, :])},
        {"attention_mask": CAUSAL[:, 0]},
        {"attention_mask": CAUSAL.expand(2, 4, 5, 5)},
        {"key_padding_mask": ~REAL},
        {"padding_mask": additive(REAL)},
        {"attention_mask": torch.cat([torch.ones(2, 3, dtype=torch.bool), REAL], 1)},
    ],
)
def test_padding_is_known_by_any_mask(masks: Mapping[str, Tensor]) -> None:
    """Of two axes or more, boolean, integers of packed texts or additive, and with tokens in a cache."""
    x = values(0, 2, 5, 3)
    assert torch.equal(stripped(x, masks), x[REAL])


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(7, 5, 5),  # one of windows, as Swin has it
        torch.zeros(2, 4, 5, 9),  # of queries and other keys
        torch.zeros(2, 5, 5, 1, 1),
        torch.zeros(3, 4),
        torch.zeros(()),
    ],
)
def test_a_mask_that_is_about_something_else_says_nothing(mask: Tensor) -> None:
    """What has another shape than the tokens is left to the model."""
    x = values(0, 2, 5, 3)
    assert stripped(x, {"attention_mask": mask}) is x


@pytest.mark.parametrize("side", ["left", "right"])
def test_masks_of_torch_layers_are_read_as_torch_does(side: str) -> None:
    """In a ``src_key_padding_mask`` True is padding; a square ``src_mask`` says nothing of padding."""
    tokens, found = RealTokens(), []
    layer = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True).eval()
    real = REAL[:1] if side == "left" else REAL[1:]
    tokens.watch(layer)
    layer.linear1.register_forward_pre_hook(lambda _, args: found.append(tokens.rows(args[0])))
    x = values(0, 1, 5, 4)
    layer(x, src_mask=torch.zeros(5, 5), src_key_padding_mask=additive(real))
    layer(x, src_mask=torch.zeros(5, 5))
    assert found[0] is not None
    assert torch.equal(found[0], real)
    assert found[1] is None


@pytest.mark.parametrize(
    ("asked", "channels", "expected"),
    [
        (values(1, 2, 5, 7), -1, lambda x: x[REAL]),
        (values(1, 5, 2, 7), -1, lambda x: x[REAL.T]),
        (values(1, 10, 7), -1, lambda x: x[REAL.flatten()]),
        (values(1, 1, 10, 7), -1, lambda x: x[:, REAL.flatten()][0]),
        (values(1, 2, 4, 5, 7), -1, lambda x: x[REAL[:, None].expand(2, 4, 5)]),
        (values(1, 2, 5, 4, 7), -1, lambda x: x[REAL].reshape(-1, 7)),
        (values(1, 8, 5, 7), -1, lambda x: x[REAL.repeat_interleave(4, 0)]),
        (values(1, 2, 7, 5), 1, lambda x: x.mT[REAL].T[None]),
        (
            values(1, 2, 4, 5, 7),
            -3,
            by_head,
        ),
        (
            values(1, 2, 4, 5, 5),
            -3,
            by_head,
        ),
        (values(1, 3, 7), -1, lambda x: x),
        (values(1, 3, 5, 7, 7), 1, lambda x: x),
    ],
)
def test_tokens_are_found_in_tensors_of_any_layout(
    asked: Tensor, channels: int, expected: Callable[[Tensor], Tensor]
) -> None:
    """Joined with samples, behind heads or beside them, and behind the channels of a convolution."""
    left = stripped(values(0, 2, 5, 3), {"attention_mask": REAL}, asked, channels)
    wanted = expected(asked)
    assert torch.equal(left.reshape(wanted.shape), wanted)
    assert left is asked or left.shape[channels] == asked.shape[channels]


class Router(nn.Module):
    """Gives each of two experts some of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4)) for _ in range(2))

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """Return what the experts make of the tokens `x` (samples, tokens, 4)."""
        rows = x.reshape(-1, 4)
        first = rows[:, 0] > 0
        output = torch.zeros_like(rows)
        for expert, chosen in zip(self.experts, (first, ~first), strict=True):
            output[chosen] = expert(rows[chosen])
        return output.view_as(x)


def test_rows_of_experts_are_told_by_their_values() -> None:
    """Both layers of an expert know which of the tokens that it was given are padding."""
    model, tokens, found = Router(), RealTokens(), []
    tokens.watch(model)
    for expert in model.experts:
        for layer in expert.children():
            layer.register_forward_pre_hook(lambda _, args: found.append(tokens.rows(args[0])))
    x = values(0, 2, 5, 4)
    model(x, attention_mask=REAL)
    first = x.reshape(-1, 4)[:, 0] > 0
    real = REAL.flatten()
    expected = [real[first], real[first], real[~first], real[~first]]
    assert len(found) == 4
    for rows, wanted in zip(found, expected, strict=True):
        assert torch.equal(torch.ones_like(wanted) if rows is None else rows, wanted)
    assert any(rows is not None for rows in found)


def same(found: Tensor | None, expected: Tensor | None) -> bool:
    """Return whether both are None or hold the same."""
    return found is expected or (found is not None and expected is not None and torch.equal(found, expected))


class Decoder(nn.Module):
    """Reads its own tokens and those of an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)

    def forward(
        self,
        x: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the sum of both."""
        own: Tensor = self.own(x)
        other: Tensor = self.other(encoder_hidden_states)
        return own + other


@pytest.mark.parametrize("own", [None, ~REAL | REAL.roll(1, 0)])
def test_encoder_and_decoder_of_one_length_are_told_apart(own: Tensor | None) -> None:
    """Each tensor has the padding of its own mask; without one it has none."""
    model, tokens, found = Decoder(), RealTokens(), {}
    tokens.watch(model)
    for name, layer in model.named_children():
        layer.register_forward_pre_hook(lambda _, args, name=name: found.update({name: tokens.rows(args[0])}))
    model(values(0, 2, 5, 4), values(1, 2, 5, 4), encoder_attention_mask=REAL, attention_mask=own)
    assert same(found["other"], REAL)
    assert same(found["own"], own)


def test_a_call_that_failed_says_nothing_of_later_ones() -> None:
    """Its mask is forgotten as it ends."""
    tokens = RealTokens()
    model = Asked(tokens)
    tokens.watch(model)
    x = values(0, 2, 5, 3)
    handle = model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x, attention_mask=REAL)
    handle.remove()
    assert tokens.rows(x) is None


def test_a_graph_with_two_masks_of_one_shape_is_refused() -> None:
    """Where no module tells whose a tensor is, counting padding would be the alternative."""
    tokens = RealTokens(by_shape_alone=True)
    model = Decoder()
    tokens.watch(model)
    with pytest.raises(CalibrationError, match=r"the same shape \(2, 5\).*pad one of them to another length"):
        model(values(0, 2, 5, 4), values(1, 2, 5, 4), encoder_attention_mask=REAL)
