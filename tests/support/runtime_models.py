"""Small models that every runtime of PT2E's presets is given, with their data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs
import torch
from torch import Tensor, nn


@attrs.frozen(eq=False)
class Task:
    """A model, the batches that calibrate it, and one batch of the same shape that was not seen."""

    model: nn.Module
    batches: tuple[Tensor, ...]
    test: Tensor


class Residual(nn.Module):
    """The sum of what comes in and what `inner` makes of it, by way of a ReLU."""

    def __init__(self, inner: nn.Module) -> None:
        """Keep the inner module."""
        super().__init__()
        self.inner = inner
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return values of the shape of `x`."""
        result: Tensor = self.relu(x + self.inner(x))
        return result


class Attention(nn.Module):
    """Self-attention of four heads, written as most models have it."""

    def __init__(self, width: int) -> None:
        """Make the four projections."""
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return values (batch, tokens, width)."""
        query, key, value = (
            layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return result


class EncoderBlock(nn.Module):
    """A block of a transformer with the norms in front."""

    def __init__(self, width: int) -> None:
        """Make attention, feed-forward layers and norms."""
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), Attention(width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return values of the shape of `x`."""
        x = x + self.attention(self.attention_norm(x))
        result: Tensor = x + self.feed(self.feed_norm(x))
        return result


def linear_stack() -> nn.Module:
    """Return linear layers; two channels of the second one have no weights, and one of them a bias."""
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 16))
    with torch.no_grad():
        layer = model.get_submodule("2")
        layer.get_parameter("weight")[:2] = 0.0
        layer.get_parameter("bias")[0] = 0.7371
    return model


def without_biases() -> nn.Module:
    """Return linear layers of which the last has no bias."""
    return nn.Sequential(
        nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 16, bias=False)
    )


def _convolution(
    inputs: int, outputs: int, kernel: int = 3, *, groups: int = 1, stride: int = 1
) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


def residual_net() -> nn.Module:
    """Return a net for images with depthwise convolutions, residuals and both kinds of pooling."""
    inverted = nn.Sequential(
        _convolution(16, 32, 1), _convolution(32, 32, groups=32), nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16)
    )
    return nn.Sequential(
        _convolution(3, 16),
        nn.MaxPool2d(2),
        Residual(inverted),
        _convolution(16, 32, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def upsampling_net() -> nn.Module:
    """Return a net that halves the sides of an image and doubles them by a transposed convolution."""
    return nn.Sequential(
        _convolution(3, 16, stride=2),
        nn.ConvTranspose2d(16, 8, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1),
    )


def encoder() -> nn.Module:
    """Return two blocks of a transformer and a head."""
    return nn.Sequential(EncoderBlock(32), EncoderBlock(32), nn.LayerNorm(32), nn.Linear(32, 8))


MAKERS: Final[Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]] = {
    "linear stack": (linear_stack, (32,)),
    "linear stack, no last bias": (without_biases, (32,)),
    "attention": (lambda: Attention(32), (12, 32)),
    "residual CNN": (residual_net, (3, 16, 16)),
    "upsampling CNN": (upsampling_net, (3, 16, 16)),
    "transformer encoder": (encoder, (12, 32)),
}


def task(name: str) -> Task:
    """Return the task called `name` in `MAKERS`, the same one in every process."""
    make, shape = MAKERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn(module.num_features) / 4
                module.running_var = torch.rand(module.num_features) + 0.5
        *batches, test = torch.randn(5, 8, *shape)
    return Task(model.eval(), tuple(batches), test)
