"""Wrappers of layers with a weight: after `convert` an integer module stands in their place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from tico_config import Found, Problem, QuantSpec, UnsupportedError
from tico_modules import (
    ActivationGrid,
    ConvSettings,
    ConvTransposeSettings,
    Edit,
    PackedWeight,
    Parts,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedModule,
    answer_for,
    carry_over,
    parameter,
)
from tico_wrapq.base import (
    ACT_IN,
    ACT_OUT,
    WEIGHT,
    PointDeclaration,
    QuantModuleBase,
    WeightCodes,
    pack_weight,
    register,
    try_register,
)
from tico_wrapq.torch_nn._channel_axis import along, channel_axis
from tico_wrapq.torch_nn._layer_work import layer_work

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LAYERS = (nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.Conv1d, nn.Conv2d, nn.Conv3d, QuantizedModule)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.SyncBatchNorm)
_FORWARDS = tuple(kind.forward for kind in (*_LAYERS, *_TRANSPOSED, *_NORMS))


def why_not_integer(layer: nn.Module, forwards: tuple[object, ...] = _FORWARDS) -> str | None:
    """Return why an integer layer, which does what `forwards` do, cannot stand in for `layer`, or None."""
    weight: object = parameter(layer, "weight")
    if parametrize.is_parametrized(layer) or not isinstance(weight, Tensor):
        return "its weight is computed from other parameters"
    if is_lazy(weight):
        return "it has no weight before its first call"
    if weight.dtype not in _FLOATS or weight.layout is not torch.strided or not weight.numel():
        return f"its weight is {weight.dtype} of shape {tuple(weight.shape)}, {weight.layout}"
    if "forward" in vars(layer) or type(layer).forward not in forwards:
        return "it has a forward of its own, which an integer layer would lose"
    if parameter(layer, "bias") is not getattr(layer, "bias", None):
        return "its bias is no parameter"
    renormalized = isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None
    return "it renormalizes its rows (max_norm)" if renormalized else None


class LayerWrapper(QuantModuleBase):
    """A layer with a weight; `layer` is the float module."""

    points: ClassVar[tuple[PointDeclaration, ...]] = (ACT_IN, WEIGHT, ACT_OUT)
    takes_hooks: ClassVar[bool] = True
    layer: nn.Module

    def adopt(self, module: nn.Module) -> None:
        """Keep the layer."""
        self.layer = module

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return why an integer layer cannot take the place of `module`, or None."""
        return why_not_integer(module)

    @classmethod
    def points_of(cls, module: nn.Module) -> tuple[PointDeclaration, ...]:
        """Return the points, with the axis of the layer's channels."""
        return along(cls.points, channel_axis(module))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name, which callers may use
        """Return the layer's output, input and output passed through their points."""
        output: Tensor = self.layer.forward(self.point("act_in")(input))
        moved: Tensor = self.point("act_out")(output)
        return moved

    def work(self, args: tuple[object, ...], kwargs: Mapping[str, object], output: object) -> int:
        """Return the multiply-accumulates of one call."""
        return layer_work(self.layer, args[0] if args else kwargs.get("input"), output)

    @property
    def weight(self) -> Tensor | None:
        """The float weight, where others expect to find it."""
        return parameter(self.layer, "weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias, where others expect to find it."""
        return parameter(self.layer, "bias")

    @abstractmethod
    def _integer(self, parts: Parts) -> QuantizedModule:
        """Return the integer module made of `parts`."""

    def finish(self, weights: WeightCodes, edit: Edit) -> nn.Module:
        """Return the integer module; the wrapper itself where the weight is to stay float."""
        weight, spec = parameter(self.layer, "weight"), self.weight_specs["weight"]
        if weight is None or not spec.is_quantized:
            return super().finish(weights, edit)
        packed = self._codes(weight, spec, weights)
        bias = parameter(self.layer, "bias")
        grids = {name: point.determine_grid() for name, point in self.named_points()}
        new = self._integer(_parts(packed, None if bias is None else bias.detach().clone(), grids))
        carry_over(self, new)
        return new

    def rows_of(self, weight: Tensor) -> Tensor:
        """Return the layer's `weight` with an output channel in each row, as its codes are kept."""
        return weight

    def integer_of(self, rows: Tensor, bias: Tensor, act_out: ActivationGrid | None) -> QuantizedModule:
        """Return the integer module of this layer with other rows, another bias and grid of its output."""
        packed = pack_weight(rows, self.weight_specs["weight"], self.path)
        grids = {"act_in": self.point("act_in").determine_grid(), "act_out": act_out}
        new = self._integer(_parts(packed, bias, grids))
        carry_over(self, new)
        return new

    def _codes(self, weight: Tensor, spec: QuantSpec, weights: WeightCodes) -> PackedWeight:
        """Return the codes of `weight`, those of a layer with the same rows that it is tied to, if any."""
        rows = self.rows_of(weight)
        if rows is not weight:
            return pack_weight(rows, spec, self.path)
        return weights.get(weight, spec, lambda: pack_weight(weight, spec, self.path))


def _parts(packed: PackedWeight, bias: Tensor | None, grids: Mapping[str, ActivationGrid | None]) -> Parts:
    return Parts(packed=packed, bias=bias, act_in=grids.get("act_in"), act_out=grids.get("act_out"))


@register(nn.Linear)
class QuantLinear(LayerWrapper):
    """A linear layer; becomes a `QuantizedLinear`."""

    kind: ClassVar[str] = "ptq.linear"

    def _integer(self, parts: Parts) -> QuantizedModule:
        return QuantizedLinear(parts)


@try_register("transformers.pytorch_utils.Conv1D")
class QuantTransposedLinear(LayerWrapper):
    """A linear layer of transformers whose weight is (in, out), as in GPT-2; becomes a `QuantizedLinear`."""

    kind: ClassVar[str] = "ptq.transposed_linear"

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return why an integer layer cannot take the place of `module`, or None."""
        named = {f"{kind.__module__}.{kind.__name__}": kind for kind in type(module).__mro__}
        known = named.get("transformers.pytorch_utils.Conv1D", type(module))
        return why_not_integer(module, (getattr(known, "forward", None),))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, input and output passed through their points."""
        return super().forward(x)

    def work(self, args: tuple[object, ...], kwargs: Mapping[str, object], output: object) -> int:
        """Return the multiply-accumulates of one call."""
        return layer_work(self.layer, args[0] if args else kwargs.get("x"), output)

    def rows_of(self, weight: Tensor) -> Tensor:
        """Return the transposed weight."""
        return weight.T

    def _integer(self, parts: Parts) -> QuantizedModule:
        return QuantizedLinear(parts)


@register(nn.Embedding)
class QuantEmbedding(LayerWrapper):
    """An embedding; becomes a `QuantizedEmbedding`. Indices have no grid, so there is no `act_in`."""

    kind: ClassVar[str] = "ptq.embedding"
    points: ClassVar[tuple[PointDeclaration, ...]] = (WEIGHT, ACT_OUT)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name, which callers may use
        """Return the rows at the indices `input`, passed through their point."""
        moved: Tensor = self.point("act_out")(self.layer.forward(input))
        return moved

    def _integer(self, parts: Parts) -> QuantizedModule:
        weight = parameter(self.layer, "weight")
        return QuantizedEmbedding(parts, torch.float32 if weight is None else weight.dtype)


_CONVOLUTIONS = {1: QuantizedConv1d, 2: QuantizedConv2d, 3: QuantizedConv3d}


@register(nn.Conv1d)
@register(nn.Conv2d)
@register(nn.Conv3d)
class QuantConv(LayerWrapper):
    """A convolution; becomes a `QuantizedConv1d`, `QuantizedConv2d` or `QuantizedConv3d`."""

    kind: ClassVar[str] = "ptq.conv"

    def _integer(self, parts: Parts) -> QuantizedModule:
        layer = self.layer
        if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            found = Found(type(layer).__name__)
            raise UnsupportedError(Problem(module=self.path, value=found, expected="a convolution"))
        return _CONVOLUTIONS[len(layer.kernel_size)](parts, ConvSettings.of(layer))


_INTEGER_TRANSPOSED = {1: QuantizedConvTranspose1d, 2: QuantizedConvTranspose2d, 3: QuantizedConvTranspose3d}


@register(nn.ConvTranspose1d)
@register(nn.ConvTranspose2d)
@register(nn.ConvTranspose3d)
class QuantConvTranspose(LayerWrapper):
    """A transposed convolution; becomes a `QuantizedConvTranspose1d`, `…2d` or `…3d`."""

    kind: ClassVar[str] = "ptq.conv_transpose"

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:  # noqa: A002  # as torch
        """Return the layer's output, of `output_size` where several are possible, by way of the points."""
        output: Tensor = self.layer.forward(self.point("act_in")(input), output_size)
        moved: Tensor = self.point("act_out")(output)
        return moved

    def rows_of(self, weight: Tensor) -> Tensor:
        """Return the weight with its channels swapped within each group."""
        return self._settings().swap_channels(weight)

    def _settings(self) -> ConvTransposeSettings:
        layer = self.layer
        if not isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            found = Found(type(layer).__name__)
            raise UnsupportedError(
                Problem(module=self.path, value=found, expected="a transposed convolution")
            )
        return ConvTransposeSettings.of(layer)

    def _integer(self, parts: Parts) -> QuantizedModule:
        settings = self._settings()
        return _INTEGER_TRANSPOSED[len(settings.stride)](parts, settings)


@register(QuantizedModule)
class QuantInteger(QuantModuleBase):
    """A layer that is integer already: its codes stay as they are, its activations get new grids."""

    kind: ClassVar[str] = "ptq.integer"
    points: ClassVar[tuple[PointDeclaration, ...]] = (ACT_IN, ACT_OUT)
    layer: QuantizedModule

    def adopt(self, module: nn.Module) -> None:
        """Keep the layer without the grids it may have had."""
        if not isinstance(module, QuantizedModule):
            found = Found(type(module).__name__)
            raise UnsupportedError(Problem(module=self.path, value=found, expected="an integer layer"))
        self.layer = module.with_parts(Parts(packed=module.packed, bias=module.bias))
        answer_for(module, self.layer)
        self.layer.training = module.training

    @property
    def stands_for(self) -> nn.Module:
        """The integer layer."""
        return self.layer

    @classmethod
    def points_of(cls, module: nn.Module) -> tuple[PointDeclaration, ...]:
        """Return the points, with the axis of the layer's channels."""
        return along(cls.points, channel_axis(module))

    def forward(self, input: Tensor, *args: object, **kwargs: object) -> Tensor:  # noqa: A002  # torch's name
        """Return the layer's output, input and output passed through their points."""
        output: Tensor = self.layer.forward(self.point("act_in")(input), *args, **kwargs)
        moved: Tensor = self.point("act_out")(output)
        return moved

    def work(self, args: tuple[object, ...], kwargs: Mapping[str, object], output: object) -> int:
        """Return the multiply-accumulates of one call."""
        return layer_work(self.layer, args[0] if args else kwargs.get("input"), output)

    @property
    def weight(self) -> Tensor:
        """The weight as floats, where others expect to find it."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias, where others expect to find it."""
        return self.layer.bias

    def finish(self, weights: WeightCodes, edit: Edit) -> nn.Module:
        """Return the layer with its codes and the new grids."""
        grids = {name: point.determine_grid() for name, point in self.named_points()}
        new = self.layer.with_parts(_parts(self.layer.packed, self.layer.bias, grids))
        carry_over(self, new)
        return new


@register(QuantizedEmbedding)
class QuantIntegerEmbedding(QuantInteger):
    """An embedding that is integer already. Indices have no grid, so there is no `act_in`."""

    kind: ClassVar[str] = "ptq.integer_embedding"
    points: ClassVar[tuple[PointDeclaration, ...]] = (ACT_OUT,)

    def forward(self, input: Tensor, *args: object, **kwargs: object) -> Tensor:  # noqa: A002  # torch's name
        """Return the rows at the indices `input`, passed through their point."""
        output: Tensor = self.layer.forward(input, *args, **kwargs)
        moved: Tensor = self.point("act_out")(output)
        return moved
