"""Queries that may see no key: torch's attention gives them zeros, and so does its wrapper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, prepare
from tico.quantization.config import DType, NumericsError, PerToken, affine
from tiny_models import values

PADDED = torch.tensor([[False] * 3 + [True] * 2, [True] * 5, [False] * 5])
BLIND = torch.zeros(5, 5, dtype=torch.bool).index_fill(0, torch.tensor(2), value=True)
AS_FLOAT = torch.zeros(5, 5).masked_fill(BLIND, -torch.inf)
PER_TOKEN = PTQConfig(activation=affine(DType.uint(8), granularity=PerToken()))


class _Attending(nn.Module):
    """Attention of a batch to itself, in an encoder's layer or by itself."""

    def __init__(self, name: str, *, need_weights: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention: nn.Module = nn.MultiheadAttention(8, 2, batch_first=True)
        if name == "encoder layer":
            self.attention = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.need_weights = need_weights
        for each in self.parameters():  # biases of the projections are zeros at first
            nn.init.normal_(each, std=0.3)

    def forward(self, x: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return what `x` becomes; `padding` says which keys nobody sees, `mask` who does not see which."""
        if "norm1" in dict(self.attention.named_children()):
            output: Tensor = self.attention(x, src_mask=mask, src_key_padding_mask=padding)
            return output
        attended: tuple[Tensor, Tensor | None] = self.attention(
            x, x, x, key_padding_mask=padding, attn_mask=mask, need_weights=self.need_weights
        )
        return attended[0]


MASKS: dict[str, tuple[Tensor | None, Tensor | None]] = {
    "sample of padding": (PADDED, None),
    "blind query": (None, BLIND),
    "blind query by a float": (None, AS_FLOAT),
    "both": (torch.zeros_like(PADDED, dtype=torch.float32).masked_fill(PADDED, -torch.inf), AS_FLOAT),
}


@pytest.mark.parametrize("config", [PTQConfig(), PER_TOKEN], ids=["static", "per token"])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("name", ["attention", "encoder layer"])
def test_query_without_a_key_gets_zeros(name: str, masks: str, config: PTQConfig) -> None:
    """As from scaled_dot_product_attention, watched and quantized; nothing is NaN."""
    model, x = _Attending(name).eval(), values(0, 3, 5, 8)
    expected = model(x, *MASKS[masks])  # with gradients: without them torch's fused kernel gives NaN
    assert bool(expected.isfinite().all())
    prepared = prepare(model, config)
    # The steps of the kernel are summed up in another order: a few roundings of 2^-24 each.
    assert (prepared(x, *MASKS[masks]) - expected).abs().max() < 1e-5
    found = convert(prepared)(x, *MASKS[masks])
    assert bool(found.isfinite().all())
    # Padding counts nowhere in calibration, so that it may be beyond the grids.
    kept = torch.ones_like(PADDED) if MASKS[masks][0] is None else ~PADDED
    assert (found - expected)[kept].abs().max() < 0.05 * expected.abs().max()


def test_weights_of_a_query_without_a_key_are_not_a_number() -> None:
    """Torch gives NaN where the weights are asked for, which calibration refuses by its name."""
    model, x = _Attending("attention", need_weights=True).eval(), values(0, 3, 5, 8)
    assert bool(model(x, None, BLIND)[:, 2].isnan().all())
    prepared = prepare(model, PTQConfig())
    with pytest.raises(NumericsError) as caught:
        prepared(x, None, BLIND)
    assert caught.value.module == "attention.probabilities"


@pytest.mark.parametrize("strict", [False, True])
def test_program_of_masked_attention_has_the_same_bits(strict: bool) -> None:
    """For masks other than that of the example too."""
    prepared, x = prepare(_Attending("encoder layer").eval(), PTQConfig()), values(0, 3, 5, 8)
    prepared(x, PADDED, None)
    model = convert(prepared)
    program = torch.export.export(model, (x, torch.zeros_like(PADDED), None), strict=strict)
    assert torch.equal(program.module()(x, PADDED, None), model(x, PADDED, None))
