"""A small mixture of experts, and tokens for each of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tiny_models import values


class Mixture(nn.Module):
    """Tokens go to one of four experts, by the sign of their first two values."""

    def __init__(self) -> None:
        """Make the parts."""
        super().__init__()
        self.mixed = nn.Linear(6, 6)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 6)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens (rows, 6), each changed by its expert."""
        output: Tensor = self.mixed(x) * 0.1 + x
        chosen = (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long()
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                output = output.index_add(0, rows, expert(x[rows]))
        return output


def tokens(counts: tuple[int, int, int, int]) -> Tensor:
    """Return as many tokens for each expert of the first layer as `counts` says."""
    x = values(1, sum(counts), 6).abs() + 0.1
    signs = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    x[:, :2] *= signs.repeat_interleave(torch.tensor(counts), 0)
    return x
