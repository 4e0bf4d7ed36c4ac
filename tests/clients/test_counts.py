"""torchinfo, thop and fvcore list the layers of a converted model and count what they compute."""

from __future__ import annotations

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from thop import profile
from torch import Tensor, nn
from torchinfo import summary

from client_models import TOKENS, both
from references import same_bits

CLIENT = "torchinfo"


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(tokens, use_cache=False).logits
        return logits


def test_summary(kind: str) -> None:
    """Every layer has its line; codes are buffers, which torchinfo does not count."""
    for model in both(kind):
        found = summary(_Logits(model), input_data=TOKENS, verbose=0)
        assert any(type(model.lm_head).__name__ in str(line) for line in found.summary_list)
        assert found.total_params == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("client", ["thop", "fvcore"])
def test_operations(kind: str, client: str) -> None:
    """Counting leaves the model as it was."""
    for model in both(kind):
        expected, hooks = model(TOKENS).logits, len(model.lm_head._forward_hooks)
        with torch.no_grad():
            if client == "thop":
                profile(_Logits(model), inputs=(TOKENS,), verbose=False)
            else:
                counted = FlopCountAnalysis(_Logits(model), (TOKENS,)).unsupported_ops_warnings(False)
                assert counted.total() > 0
        assert same_bits(model(TOKENS).logits, expected)
        assert len(model.lm_head._forward_hooks) == hooks
