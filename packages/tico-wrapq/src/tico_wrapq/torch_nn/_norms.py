"""Norms with a weight: after `convert` an integer module stands in their place."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, TypeAlias, final

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from tico_config import Found, PerTensor, Problem, UnsupportedError
from tico_modules import Edit, Layout, PackedWeight, Parts, QuantizedModule, carry_over, parameter
from tico_wrapq.base import (
    ACT_IN,
    ACT_OUT,
    PointDeclaration,
    Resolve,
    Role,
    WeightCodes,
    pack_weight,
    register,
)
from tico_wrapq.torch_nn._channel_axis import channel_axis
from tico_wrapq.torch_nn._layers import why_not_integer
from tico_wrapq.torch_nn._unary import QuantUnary

NORM_WEIGHT = PointDeclaration("weight", Role.WEIGHT, PerTensor())
_ONE_AXIS = ("group", "batch")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@attrs.frozen(kw_only=True)
class NormSettings:
    """Which norm, over axes of which `shape`, in how many `groups`; `eps` None is the dtype's own."""

    norm: str
    shape: tuple[int, ...]
    eps: float | None
    groups: int = 1

    @classmethod
    def of(cls, module: nn.Module) -> NormSettings | None:
        """Return the settings of a norm of torch, None for any other module."""
        if isinstance(module, nn.LayerNorm):
            return cls(norm="layer", shape=tuple(module.normalized_shape), eps=module.eps)
        if isinstance(module, nn.RMSNorm):
            return cls(norm="rms", shape=tuple(module.normalized_shape), eps=module.eps)
        if isinstance(module, nn.GroupNorm):
            shape = (module.num_channels,)
            return cls(norm="group", shape=shape, eps=module.eps, groups=module.num_groups)
        if isinstance(module, _BATCH_NORMS) and module.track_running_stats:
            return cls(norm="batch", shape=(module.num_features,), eps=module.eps)
        return None

    @classmethod
    def read(cls, settings: Layout) -> NormSettings:
        """Return the settings that a file holds.

        Raises:
            ArtifactError: a value is missing or wrong.
        """
        norm, eps = settings.text("norm"), settings.text("eps")
        if norm not in _FUNCTIONS:
            raise settings.make_error("norm", f"one of {', '.join(_FUNCTIONS)}")
        try:
            number = float.fromhex(eps) if eps else None
        except (ValueError, OverflowError):
            raise settings.make_error("eps", "a hexadecimal number or nothing") from None
        if number is not None and not 0 <= number < math.inf:
            raise settings.make_error("eps", "a finite number of at least 0")
        shape, groups = settings.integers("shape"), settings.integer("groups")
        if not shape or not all(shape) or (norm in _ONE_AXIS and len(shape) > 1):
            raise settings.make_error("shape", "1 axis, or more where the norm has them, none of them empty")
        if groups < 1 or shape[0] % groups or (norm != "group" and groups > 1):
            raise settings.make_error("groups", f"1, or of a group norm a divisor of {shape[0]}")
        return cls(norm=norm, shape=shape, eps=number, groups=groups)

    def to_values(self) -> dict[str, object]:
        """Return the settings as JSON values; `eps` as hexadecimal text, which is exact."""
        eps = "" if self.eps is None else self.eps.hex()
        return {"norm": self.norm, "shape": list(self.shape), "eps": eps, "groups": self.groups}


_Compute: TypeAlias = Callable[[NormSettings, Tensor, Tensor, Tensor | None], Tensor]


def _layer(norm: NormSettings, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.layer_norm(x, norm.shape, weight, bias, norm.eps or 0.0)


def _rms(norm: NormSettings, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.rms_norm(x, norm.shape, weight, norm.eps)


def _group(norm: NormSettings, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.group_norm(x, norm.groups, weight, bias, norm.eps or 0.0)


def _batch(norm: NormSettings, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x * weight + bias`` of each channel: the statistics are in both."""
    shape = (1, -1, *(1 for _ in range(x.ndim - 2)))
    scaled = x * weight.view(shape)
    return scaled if bias is None else scaled + bias.view(shape)


_FUNCTIONS: Mapping[str, _Compute] = {"layer": _layer, "rms": _rms, "group": _group, "batch": _batch}


class UsedStatistics:
    """What stands in for a batch norm whose statistics are in its weight and bias, or in another layer's.

    It answers those that leave nothing to do, so that ``(x - mean) / sqrt(var + eps) * weight + bias``
    is what it computes. `eps` comes from the float norm.
    """

    eps: float

    @abstractmethod
    def constant(self, value: float) -> Tensor:
        """Return a vector of `value`s, one for each channel, of the dtype of the norm."""

    @property
    def running_mean(self) -> Tensor:
        """The means that are left to subtract: zeros."""
        return self.constant(0.0)

    @property
    def running_var(self) -> Tensor:
        """The variances that are left to divide by: 1 with `eps`."""
        return self.constant(1.0 - self.eps)

    @property
    def num_batches_tracked(self) -> Tensor:
        """The number of batches that these statistics are of: none."""
        return torch.zeros_like(self.constant(0.0)[0], dtype=torch.int64)


@final
class QuantizedNorm(UsedStatistics, QuantizedModule):
    """A norm with an integer weight, packed as one row; the statistics are computed in floating point.

    Of a batch norm, the weight is ``weight / sqrt(running_var + eps)`` and the bias has the rest.
    """

    kind: ClassVar[str] = "ptq.norm"

    def __init__(self, parts: Parts, norm: NormSettings) -> None:
        super().__init__(parts)
        self.norm = norm

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the float weight."""
        return self.norm.shape

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """The shape of the bias, that of the weight."""
        return self.norm.shape

    def dequantize(self) -> Tensor:
        """Return the weight as float32, in its own shape."""
        return self.packed.dequantize().view(self.norm.shape)

    def rounded_from(self, original: nn.Module) -> Mapping[PackedWeight, Tensor]:
        """Return the weight of the norm `original`; nothing of a batch norm, whose bias fits the codes."""
        found = {} if self.norm.norm == "batch" else super().rounded_from(original)
        return {packed: weight.reshape(1, -1) for packed, weight in found.items()}

    def constant(self, value: float) -> Tensor:
        """Return a vector of `value`s for a batch norm.

        Raises:
            AttributeError: it is another norm.
        """
        if self.norm.norm != "batch":
            raise AttributeError("it is no batch norm")
        packed = self.packed
        return torch.full(self.norm.shape, value, dtype=packed.float_dtype, device=packed.codes.device)

    def _compute(self, x: Tensor, weight: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _FUNCTIONS[self.norm.norm](self.norm, x, weight, bias)

    def with_parts(self, parts: Parts) -> QuantizedNorm:
        """Return a norm of the same settings made of other parts."""
        return QuantizedNorm(parts, self.norm)

    def settings(self) -> Mapping[str, object]:
        """Return which norm it is; `eps` as hexadecimal text, which is exact."""
        return self.norm.to_values()

    @classmethod
    def settings_of(cls, original: nn.Module) -> Mapping[str, object]:
        """Return the settings of a norm of torch."""
        norm = NormSettings.of(original)
        return {} if norm is None else norm.to_values()

    @classmethod
    def from_settings(cls, parts: Parts, settings: Layout) -> Self:
        """Return the norm made of `parts` with the given settings.

        Raises:
            ArtifactError: a setting is none that a norm with this weight can have.
        """
        norm = NormSettings.read(settings)
        if parts.packed.shape != (1, math.prod(norm.shape)):
            raise settings.make_error("shape", f"one of the {parts.packed.columns} weights in a row")
        return cls(parts, norm)


@channel_axis.register
def _(module: QuantizedNorm) -> int:
    return 1 if module.norm.norm in ("group", "batch") else -1


@register(nn.LayerNorm)
@register(nn.RMSNorm)
@register(nn.GroupNorm)
@register(nn.BatchNorm1d)
@register(nn.BatchNorm2d)
@register(nn.BatchNorm3d)
@register(nn.SyncBatchNorm)
class QuantNorm(QuantUnary):
    """A norm; becomes a `QuantizedNorm` where it has a weight and torch's own forward."""

    kind: ClassVar[str] = "ptq.norm_points"
    points: ClassVar[tuple[PointDeclaration, ...]] = (ACT_IN, NORM_WEIGHT, ACT_OUT)
    takes_hooks: ClassVar[bool] = True

    def __init__(self, module: nn.Module, path: str, resolve: Resolve) -> None:
        super().__init__(module, path, resolve)
        self.settings = NormSettings.of(self.module)
        if self.settings is None or why_not_integer(self.module) is not None:
            self.weight_specs.clear()

    def _output(self, *args: object, **kwargs: object) -> Tensor:
        output: Tensor = self.module.forward(*args, **kwargs)
        return output

    def finish(self, weights: WeightCodes, edit: Edit) -> nn.Module:
        """Return the integer norm; the wrapper itself where the weight is to stay float."""
        spec = self.weight_specs.get("weight")
        if self.settings is None or spec is None or not spec.is_quantized:
            return super().finish(weights, edit)
        weight, bias = _affine(self.module)
        packed = pack_weight(weight.view(1, -1), spec, self.path, PerTensor())
        grids = {name: point.determine_grid() for name, point in self.named_points()}
        new = QuantizedNorm(
            Parts(
                packed=packed,
                bias=_shifted(self.module, packed, bias),
                act_in=grids["act_in"],
                act_out=grids["act_out"],
            ),
            self.settings,
        )
        carry_over(self, new)
        return new


def _affine(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a norm, those of a batch norm as if its variances were 1."""
    weight, bias = parameter(module, "weight"), parameter(module, "bias")
    if weight is None:
        raise UnsupportedError(Problem(value=Found("one without"), expected="a norm with a weight"))
    if isinstance(module, _BATCH_NORMS) and module.running_var is not None:
        spread = (module.running_var.double() + module.eps).sqrt()
        weight = (weight.double() / spread).to(weight.dtype)
    return weight.detach(), None if bias is None else bias.detach().clone()


def _shifted(module: nn.Module, packed: PackedWeight, bias: Tensor | None) -> Tensor | None:
    """Return the bias, less what the means of a batch norm come to on the grid of its weight."""
    if not isinstance(module, _BATCH_NORMS) or module.running_mean is None:
        return bias
    means = module.running_mean
    moved = means.double() * packed.dequantize().view(-1).double()
    start = torch.zeros_like(moved) if bias is None else bias.double()
    return (start - moved).to(means.dtype)
