"""Modules whose weight multiplies each channel of their output: norms of any kind, found by what they do."""

from __future__ import annotations

import copy
from typing import Final

import attrs
import torch
from torch import Tensor, nn

from tico_modules import children, own_tensor, tensor_place
from tico_quantizers.layers import has_own_forward, numbers_of, with_values

_BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_FACTORS: Final = (2.0, 0.5, 8.0, 0.25, 4.0)


@attrs.frozen(eq=False, kw_only=True)
class ChannelScale:
    """A module with ``y = f(x) * (weight + offset) + bias``, each channel along `axis` for itself.

    `offset` is 1 where a weight of 0 leaves f(x) as it is, as in Gemma's norm, and 0 elsewhere.
    """

    module: nn.Module
    offset: float
    axis: int

    @property
    def channels(self) -> int:
        """The number of channels."""
        return _weight_of(self.module).numel()

    @property
    def is_fixed(self) -> bool:
        """Whether each channel of the input is multiplied by the same number whatever the data are."""
        return isinstance(self.module, _BATCH_NORMS) and self.module.running_var is not None

    def factors(self) -> Tensor | None:
        """Return by how much each channel of the input is multiplied, float64; None where data decide.

        >>> found = as_channel_scale(nn.BatchNorm2d(2, eps=0.0).eval())
        >>> found.factors().tolist()
        [1.0, 1.0]
        """
        norm = self.module
        if not isinstance(norm, _BATCH_NORMS) or norm.running_var is None:
            return None
        return _weight_of(norm).detach().to(torch.float64) / (norm.running_var.double() + norm.eps).sqrt()


def as_channel_scale(module: nn.Module) -> ChannelScale | None:
    """Return `module` as a channel scale, or None where it does not behave as one.

    A copy is run on numbers of its own: powers of two, put into the weight, must come out again exactly.

    >>> as_channel_scale(nn.LayerNorm(8)).axis, as_channel_scale(nn.BatchNorm2d(8).eval()).axis
    (-1, 1)
    >>> as_channel_scale(nn.PReLU(8)) is None
    True
    """
    if not _may_scale(module):
        return None
    probe = _probe(module)
    if probe is None:
        return None
    for shape, axis in _shapes(_weight_of(module).numel()):
        for offset in (0.0, 1.0):
            if _scales(probe, shape, axis, offset):
                return ChannelScale(module=module, offset=offset, axis=axis)
    return None


def _weight_of(module: nn.Module) -> Tensor:
    weight = own_tensor(module, "weight")
    if weight is None:
        raise TypeError("a channel scale has a weight")
    return weight


def _may_scale(module: nn.Module) -> bool:
    """Whether `module` stores nothing but a vector as its weight, and perhaps another as its bias."""
    weight, bias = own_tensor(module, "weight"), own_tensor(module, "bias")
    stored: dict[str, nn.Parameter | None] = module._parameters
    if weight is None or children(module) or has_own_forward(module) or stored.keys() - {"weight", "bias"}:
        return False
    vectors = [weight] if bias is None else [weight, bias]
    return all(
        not torch.nn.parameter.is_lazy(vector)
        and vector.ndim == 1
        and vector.shape == weight.shape
        and vector.is_floating_point()
        and bool(vector.numel())
        for vector in vectors
    )


def _probe(module: nn.Module) -> nn.Module | None:
    """Return a copy in float32 and evaluation mode without anybody's hooks, or None where there is none."""
    try:
        probe = with_values(copy.deepcopy(module)).float().eval()
    except (RuntimeError, TypeError):
        return None
    for hooks in (probe._forward_hooks, probe._forward_pre_hooks):
        hooks.clear()
    return probe


def _shapes(channels: int) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Return shapes of inputs to try, each with the axis of the channels."""
    batch = ((2, channels), (2, channels, 3), (2, channels, 3, 3))
    return (((2, 3, channels), -1), *((shape, 1) for shape in batch))


def _scales(probe: nn.Module, shape: tuple[int, ...], axis: int, offset: float) -> bool:
    like = _weight_of(probe)
    count = like.numel()
    factors = like.new_tensor(_FACTORS).repeat(-(-count // len(_FACTORS)))[:count]
    x = numbers_of(shape).to(like.device)
    along = [1] * len(shape)
    along[axis] = count
    once, scaled = (_output(probe, x, weight, offset) for weight in (torch.ones_like(factors), factors))
    if once is None or scaled is None or once.shape != x.shape or not bool(once.any()):
        return False
    return torch.equal(once * factors.view(along), scaled)


def _output(probe: nn.Module, x: Tensor, effective: Tensor, offset: float) -> Tensor | None:
    """Return what `probe` makes of `x` with an effective weight, and a bias that is a half of that."""
    for name, value in (("weight", effective - offset), ("bias", effective / 2)):
        place = tensor_place(probe, name)
        if place is not None:
            is_parameter = isinstance(place[name], nn.Parameter)
            place[name] = nn.Parameter(value, requires_grad=False) if is_parameter else value
    try:
        output: object = probe(x)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError):
        return None  # a module that wants other inputs is of another kind
    return output if isinstance(output, Tensor) else None
