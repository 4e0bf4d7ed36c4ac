"""Models with a function between the modules that may take scales and the layer that reads them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tico_config import RotationConfig
from tico_quantizers import Edit
from tico_quantizers.equivalence import (
    Candidates,
    Folds,
    FollowedTensors,
    FoundPairs,
    Rotatable,
    Rotation,
    StreamTrace,
    Turn,
    find_pairs,
    fold,
    rotations_of,
)

Between: TypeAlias = Callable[[Tensor, Tensor], Tensor]
SHAPE = (2, 4, 8)


class Flow(nn.Module):
    """What a norm and a linear layer give goes through a function to a linear layer.

    The function is given both, each (2, 4, 8), with the channels last. It returns (..., features).
    """

    def __init__(self, between: Between, x: Tensor) -> None:
        """Make the layers, always the same ones, so that they take `x`."""
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.norm, self.linear = nn.LayerNorm(SHAPE[-1]), nn.Linear(SHAPE[-1], SHAPE[-1])
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)
            self.between = between
            with torch.no_grad():
                features = between(self.norm(x), self.linear(x)).shape[-1]
            self.reader = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last layer makes of it."""
        output: Tensor = self.reader(self.between(self.norm(x), self.linear(x)))
        return output


class StreamFlow(nn.Module):
    """What two linear layers give goes through a function to a norm with a reader, and to another reader."""

    def __init__(self, between: Between, x: Tensor) -> None:
        """Make the layers, always the same ones, so that they take `x`."""
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(SHAPE[-1], SHAPE[-1]), nn.Linear(SHAPE[-1], SHAPE[-1])
            self.between = between
            with torch.no_grad():
                features = between(self.first(x), self.second(x)).shape[-1]
            self.norm = nn.RMSNorm(features)
            nn.init.normal_(self.norm.weight)
            self.reader, self.other = nn.Linear(features, 3), nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the readers make of it."""
        stream = self.between(self.first(x), self.second(x))
        output: Tensor = self.reader(self.norm(stream)) + self.other(stream)
        return output


def rotations_in(model: nn.Module, x: Tensor) -> tuple[Rotatable, tuple[Rotation, ...]]:
    """Return the rotations that show when `model` runs on `x`."""
    rotatable = Rotatable.of(model)
    trace = StreamTrace(model, rotatable, FollowedTensors())
    with torch.no_grad():
        trace.follow(lambda: model(x))
    return rotatable, rotations_of(trace.passages(), rotatable).rotations


def rotated(model: nn.Module, x: Tensor, seed: int) -> nn.Module:
    """Return a copy with random matrices folded into all rotations, of which nothing was tried before."""
    copied = copy.deepcopy(model)
    rotatable, found = rotations_in(copied, x)
    config = RotationConfig(matrix="random", seed=seed)
    with Edit() as edit:
        Folds.of([Turn.drawn(each, config) for each in found]).put(copied, rotatable, edit)
    return copied


def pairs_of(model: nn.Module, x: Tensor) -> FoundPairs:
    """Return the pairs that show when `model` runs on `x`."""
    with torch.no_grad():
        return find_pairs(model, Candidates.of(model), lambda: model(x))


def scaled(model: nn.Module, x: Tensor, seed: int) -> nn.Module:
    """Return a copy with a scale from 2⁻¹⁶ to 2¹⁶ folded into each channel of each pair.

    Powers of two leave every product as it is, so that the copy is the same function bit for bit.
    """
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), Edit() as edit:
        for pair in pairs_of(copied, x).pairs:
            exponents = torch.randint(-16, 17, (pair.channels,), generator=generator)
            fold(copied, pair, torch.exp2(exponents.float()), edit)
    return copied
