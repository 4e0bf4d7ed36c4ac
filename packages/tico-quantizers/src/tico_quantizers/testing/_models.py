"""Models small enough to quantize hundreds of times, always the same ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

WIDTH = 8
VOCABULARY = 12

M = TypeVar("M", bound=nn.Module)


def seeded(make: Callable[[], M]) -> M:
    """Return what `make` makes from seed 0, in evaluation mode; the caller's random numbers stay.

    >>> torch.equal(seeded(lambda: nn.Linear(2, 2)).weight, seeded(lambda: nn.Linear(2, 2)).weight)
    True
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    model.eval()
    return model


def values(seed: int, *shape: int) -> Tensor:
    """Return normally distributed numbers of `shape`, always the same ones for a seed.

    >>> values(0, 2, 3).shape
    torch.Size([2, 3])
    """
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class ResidualBlock(nn.Module):
    """LayerNorm, Linear, ReLU, Linear, added to the input.

    >>> ResidualBlock()(torch.ones(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.first = nn.Linear(WIDTH, 2 * WIDTH)
        self.relu = nn.ReLU()
        self.second = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state, of the shape of `x` (…, 8)."""
        branch: Tensor = self.second(self.relu(self.first(self.norm(x))))
        return x + branch


class ConvNet(nn.Module):
    """A convolution with batch norm and ReLU, and a linear layer over all positions.

    >>> ConvNet().eval()(torch.ones(2, 2, 4, 4)).shape
    torch.Size([2, 5])
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return 5 values for each image of `x` (images, 2, 4, 4)."""
        hidden: Tensor = self.relu(self.norm(self.conv(x)))
        output: Tensor = self.head(hidden.flatten(1))
        return output


class TiedHead(nn.Module):
    """A language model without attention, whose head and embedding are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.block = ResidualBlock()
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (…, 12) of `tokens` (…)."""
        logits: Tensor = self.head(self.block(self.embed(tokens)))
        return logits


class Fourfold(nn.Linear):
    """A linear layer whose output is multiplied by 4."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        """Return the product."""
        return 4 * super().forward(input)


class Masked(nn.Module):
    """Blocks that treat each token by itself; the mask hides tokens from the output."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(ResidualBlock(), ResidualBlock())

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the hidden states of `x` (samples, tokens, 8); the mask (samples, tokens) is 0 or 1."""
        hidden: Tensor = self.blocks(x)
        return hidden * attention_mask[..., None]
