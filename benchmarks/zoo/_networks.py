"""Networks written by hand, as people write them: residual, depthwise, transposed, U-shaped."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo._architecture import Architecture, Call, pixels


class Residual(nn.Module):
    """Two convolutions with batch norms, added to the input by the text of `forward`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations after the block."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = self.bn2(self.conv2(hidden))
        hidden += x
        return F.relu(hidden)


class ResidualNet(nn.Module):
    """A stem, residual blocks, and a head over the mean of all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(Residual(16), Residual(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of pictures `x` (pictures, 3, height, width)."""
        hidden = F.max_pool2d(F.relu(self.stem(x)), 2)
        hidden = self.blocks(hidden)
        logits: Tensor = self.head(hidden.mean((2, 3)))
        return logits


class Separable(nn.Module):
    """A depthwise convolution and a pointwise one, with a gate for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.pointwise = nn.Conv2d(width, width, 1)
        self.gate = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations after the block."""
        hidden = F.hardswish(self.pointwise(F.relu6(self.depthwise(x))))
        gate = torch.sigmoid(self.gate(F.adaptive_avg_pool2d(hidden, 1)))
        return x + hidden * gate


class DepthwiseNet(nn.Module):
    """Separable convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList([Separable(16), Separable(16)])
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of pictures `x` (pictures, 3, height, width)."""
        hidden = self.stem(x)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(torch.flatten(F.adaptive_avg_pool2d(hidden, 1), 1))
        return logits


class AutoEncoder(nn.Module):
    """Convolutions that make a picture smaller, and transposed ones that make it as large as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ConvTranspose2d(8, 3, 4, 2, 1)])

    def forward(self, x: Tensor) -> Tensor:
        """Return pictures of the shape of `x` (pictures, 3, height, width)."""
        hidden = self.down(x)
        hidden = F.leaky_relu(self.up[0](hidden), 0.2)
        return torch.tanh(self.up[1](hidden))


class TimedBlock(nn.Module):
    """Group norms, convolutions and a shift that follows from the time, as in diffusion models."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, width_in), nn.Conv2d(width_in, width, 3, padding=1)
        self.time = nn.Linear(16, width)
        self.norm2, self.conv2 = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return the activations after the block; `time` is (pictures, 16)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = hidden + self.time(F.silu(time))[:, :, None, None]
        added: Tensor = self.skip(x) + self.conv2(F.silu(self.norm2(hidden)))
        return added


class PixelAttention(nn.Module):
    """Attention between all positions of a picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (pictures, channels, height, width) with what each position has gathered."""
        query, key, value = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)
        weights = torch.softmax(query @ key.transpose(1, 2) / x.shape[1] ** 0.5, -1)
        gathered = (weights @ value).transpose(1, 2).unflatten(2, x.shape[2:])
        added: Tensor = x + self.out(gathered)
        return added


class UNet(nn.Module):
    """The network of diffusion models: down, across and up again, with what was seen on the way down."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.down1, self.smaller = TimedBlock(16, 16), nn.Conv2d(16, 16, 3, 2, 1)
        self.down2 = TimedBlock(16, 32)
        self.middle, self.attention = TimedBlock(32, 32), PixelAttention(32)
        self.up1, self.larger = TimedBlock(64, 16), nn.Conv2d(16, 16, 3, padding=1)
        self.up2 = TimedBlock(32, 16)
        self.norm, self.head = nn.GroupNorm(4, 16), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the noise in `sample` (pictures, 3, height, width) at `timestep` (pictures,)."""
        frequencies = torch.exp(torch.arange(4, device=sample.device) * -1.5)
        angles = timestep[:, None] * frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1).to(sample.dtype))
        first = self.down1(self.stem(sample), time)
        second = self.down2(self.smaller(first), time)
        hidden = self.attention(self.middle(second, time))
        hidden = self.up1(torch.cat([hidden, second], 1), time)
        hidden = self.larger(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        hidden = self.up2(torch.cat([hidden, first], 1), time)
        noise: Tensor = self.head(F.silu(self.norm(hidden)))
        return noise


def _image(seed: int) -> Call:
    return {"x": pixels(seed, 4, 3, 16, 16)}


def _noised(seed: int) -> Call:
    return {"sample": pixels(seed, 2, 3, 16, 16), "timestep": torch.tensor([3.0, 40.0]) + seed}


def _network(kind: type[nn.Module]) -> Architecture:
    call = _noised if kind is UNet else _image
    return Architecture(name=kind.__name__, family="network", build=lambda _: kind(), call=call)


NETWORKS: Final = tuple(_network(kind) for kind in (ResidualNet, DepthwiseNet, AutoEncoder, UNet))
