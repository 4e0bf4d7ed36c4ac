"""One architecture under trial: its float model, what that gives, and how little rounding can do to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final

import torch
from torch import Tensor, nn

from tico.quantization import convert, prepare
from tico_config import BaseConfig
from zoo._architecture import Architecture, Call, outputs_of

MARGIN: Final = 6.0
"""dB by which a cell may lie below the reference: noise of twice the amplitude."""

EXACT: Final = 80.0
"""Above this many dB only the rounding of float32 is left."""

_SEEDS: Final = 8
"""Enough for the choice of experts, which rounding may change, to change in one of them."""


class Trial:
    """A float model of an architecture and its outputs; everything is computed once, when it is asked for.

    Args:
        architecture: of which models are made.
        dtype: the format of the model and of the numbers that it is called with.
        attention: the name of transformers' attention; None is the model's own choice.
    """

    def __init__(
        self, architecture: Architecture, dtype: torch.dtype = torch.float32, attention: str | None = None
    ) -> None:
        self.architecture, self.dtype, self.attention = architecture, dtype, attention
        self._converted: dict[BaseConfig, tuple[nn.Module, float]] = {}

    def model(self) -> nn.Module:
        """Return a new float model, always the same one."""
        return self.architecture.make(self.attention).to(self.dtype)

    def call(self, seed: int) -> Call:
        """Return the arguments of a call."""
        given = self.architecture.call(seed)
        return {
            name: each.to(self.dtype) if each.is_floating_point() else each for name, each in given.items()
        }

    def outputs(self, model: nn.Module, seed: int = 1) -> tuple[Tensor, ...]:
        """Return what `model` gives for a call, what padding gives left out."""
        return outputs_of(self.architecture, model, self.call(seed))

    @cached_property
    def expected(self) -> tuple[Tensor, ...]:
        """What the float model gives."""
        return self.outputs(self.model())

    @cached_property
    def bound(self) -> float:
        """The dB that a cell has to have.

        Each weight is moved at random by at most half a step of a grid of 8 bits for its row, as rounding
        does. What the output then lies off, in the worst of a few trials, is what 8 bits cost, by however
        much the model itself makes errors larger. In a narrow format what that format costs counts too.
        """
        reference = [self.decibels(self.outputs(_moved(self.model(), seed))) for seed in range(_SEEDS)]
        if self.dtype is not torch.float32:
            wide = Trial(self.architecture, attention=self.attention)
            reference.append(self.decibels(wide.expected))
        return min(reference) - MARGIN

    def decibels(self, found: Sequence[Tensor]) -> float:
        """Return how far `found` is from what the float model gives, the worst of all outputs."""
        return min(decibels(*each) for each in zip(found, self.expected, strict=True))

    def typical(self, found: Sequence[Tensor]) -> float:
        """Return the median over tokens of how far `found` is off, in dB: a few of them do not matter."""
        rows = [
            decibels(*each)
            for one, other in zip(found, self.expected, strict=True)
            for each in zip(one.flatten(0, -2), other.flatten(0, -2), strict=True)
        ]
        return sorted(rows)[len(rows) // 2]

    @cached_property
    def routes(self) -> bool:
        """Whether the model chooses experts for a token."""
        return any("experts" in name for name, _ in self.model().named_modules())

    def converted(self, config: BaseConfig) -> tuple[nn.Module, float]:
        """Return the model quantized as `config` says, and the dB of what it gives while it is calibrated."""
        if config not in self._converted:
            prepared = prepare(self.model(), config, kwargs=self.call(0))
            self.outputs(prepared, 0)
            seen = self.decibels(self.outputs(prepared))
            self._converted[config] = convert(prepared), seen
        return self._converted[config]


def decibels(found: Tensor, expected: Tensor) -> float:
    """Return the signal-to-noise ratio of `found`: NaN where it is not finite, infinite for the same."""
    noise = (found.double() - expected.double()).square().mean()
    if not bool(noise):
        return float("inf")
    return float(10 * torch.log10(expected.double().square().mean() / noise))


def _moved(model: nn.Module, seed: int) -> nn.Module:
    """Return `model` with each weight moved at random by at most half a step of an 8-bit grid for its row."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2 and not name.endswith("weight"):
                continue
            rows = weight.view(-1, weight.shape[-1]) if weight.ndim < 4 else weight.flatten(1)
            step = (rows.amax(-1, keepdim=True).clamp(min=0) - rows.amin(-1, keepdim=True).clamp(max=0)) / 255
            chances = torch.rand(rows.shape, generator=chance, dtype=torch.float32) - 0.5
            rows.add_((chances * step).to(weight.dtype))
    return model
