"""Models of plain blocks for GPTQ, and what it makes of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tico.quantization import GPTQConfig, convert, prepare
from tico_quantizers import QuantizedModule

CONFIG = GPTQConfig(show_progress=False)


class Block(nn.Module):
    """A block whose rows do not depend on each other."""

    def __init__(self) -> None:
        """Make the parts."""
        super().__init__()
        self.one, self.two = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state."""
        hidden: Tensor = self.one(x).relu()
        output: Tensor = x + self.two(hidden)
        return output


def stack(blocks: int = 2) -> nn.Sequential:
    """Return some blocks, always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(Block() for _ in range(blocks)), nn.Linear(8, 4)).eval()


def quantized(model: nn.Module, *batches: Tensor, config: GPTQConfig = CONFIG) -> nn.Module:
    """Return a converted copy of `model`, calibrated with `batches`."""
    prepared = prepare(model, config, inplace=False)
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    return convert(prepared)


def block_of(model: nn.Module, path: str) -> Block:
    """Return the block at `path`."""
    found = model.get_submodule(path)
    assert isinstance(found, Block)
    return found


def integer_at(model: nn.Module, path: str) -> QuantizedModule:
    """Return the integer layer at `path`."""
    found = model.get_submodule(path)
    assert isinstance(found, QuantizedModule)
    return found


def require_same_codes(found: Tensor, expected: Tensor) -> None:
    """Compare codes for Gram matrices that differ in their last bits: one may have been at a tie."""
    assert int((found != expected).sum()) <= 1
    assert int((found - expected).abs().max()) <= 1
