"""Scales put into the weights of a pair, so that its float function stays what it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tico_config import Found, NumericsError, Problem
from tico_modules import Edit, ScaledInput, own_tensor, tensor_place
from tico_quantizers.equivalence._channel_scale import ChannelScale
from tico_quantizers.equivalence._smoothing_pairs import Consumer, Pair
from tico_quantizers.layers import ExpertLinear, FloatLayer, feature_axis, groups, shape, weight_axes

_HALF = (torch.float16, torch.bfloat16)


def fold(root: nn.Module, pair: Pair, scale: Tensor, edit: Edit) -> nn.Module:
    """Divide the channels of the pair's producer by `scale` (channels,), and multiply the consumers' columns.

    Returns the root of the model, which is another one if a multiplication is put in front of it.

    Computed in float64. What the weight of a norm is off by, after rounding, goes into the columns, so
    that a norm with an offset loses nothing.

    Raises:
        NumericsError: a folded weight is not finite.
    """
    if pair.producer is None:
        root = _multiply_input(root, pair.consumers[0], scale, edit)
    elif isinstance(pair.producer, ChannelScale):
        scale = _divide_norm(pair.path, pair.producer, scale.to(torch.float64), edit)
    else:
        _divide_rows(pair.path, pair.producer, scale.to(torch.float64), edit)
    scale = scale.to(torch.float64)
    for consumer in pair.consumers:
        if not isinstance(consumer.layer, ExpertLinear):
            _multiply_columns(consumer, scale, edit)
    _multiply_experts(pair.consumers, scale, edit)
    for reader in pair.matrices:
        where, own = reader.matrix, scale[reader.channels]
        weight = _stored(where.module, where.name)
        columns = (weight.to(torch.float64) * own).to(weight.dtype)
        put_folded(where.path, where.module, where.name, columns, edit)
    return root


def _multiply_experts(consumers: Sequence[Consumer], scale: Tensor, edit: Edit) -> None:
    """Multiply the columns of experts that stand in one parameter, of all of them at once."""
    homes: dict[tuple[int, str], list[tuple[Consumer, ExpertLinear]]] = {}
    for consumer in consumers:
        if isinstance(consumer.layer, ExpertLinear):
            home, name = consumer.layer.home
            homes.setdefault((id(home), name), []).append((consumer, consumer.layer))
    for experts in homes.values():
        home, name = experts[0][1].home
        stack = _stored(home, name).clone()
        for consumer, layer in experts:
            own = layer.of(stack)
            own.copy_(own.to(torch.float64) * scale[consumer.channels])
        put_folded(experts[0][0].path, home, name, stack, edit)


def _multiply_input(root: nn.Module, consumer: Consumer, scale: Tensor, edit: Edit) -> nn.Module:
    factor = 1 / scale[consumer.channels]
    new = ScaledInput(
        consumer.layer, factor.to(consumer.layer.weight.dtype), axis=feature_axis(consumer.layer)
    )
    new.train(consumer.layer.training)
    return edit.replace(root, consumer.layer, new)


def exact_for(pair: Pair, scale: Tensor) -> Tensor:
    """Return `scale`, rounded to powers of two where a weight of the pair is of 16 bits.

    Multiplying a short float by anything else would round it once more.
    """
    weights = [consumer.layer.weight for consumer in pair.consumers]
    others = [own_tensor(each.matrix.module, each.matrix.name) for each in pair.matrices]
    short = any(
        weight is not None and weight.dtype in _HALF
        for weight in (*weights, *others, own_tensor(pair.module, "weight"))
    )
    return torch.ldexp(torch.ones_like(scale), scale.log2().round()) if short else scale


def put_matrix(path: str, layer: FloatLayer, values: Tensor, edit: Edit) -> None:
    """Give `layer` the weight whose matrix is `values` (rows, columns).

    Raises:
        NumericsError: it is not finite.
    """
    weight = values.view(shape(layer))
    if weight_axes(layer) == (1, 0):
        weight = weight.transpose(0, 1).contiguous()
    put_folded(path, layer, "weight", weight.to(layer.weight.dtype), edit)


def _divide_norm(path: str, source: ChannelScale, scale: Tensor, edit: Edit) -> Tensor:
    """Divide a norm's channels, and return by how much they are smaller now."""
    weight = _stored(source.module, "weight")
    before = (weight + source.offset).to(torch.float64)
    after = (before / scale - source.offset).to(weight.dtype)
    effective = (after + source.offset).to(torch.float64)
    scale = torch.where((before != 0) & (effective != 0), before / effective, scale)
    put_folded(path, source.module, "weight", after, edit)
    _divide_bias(path, source.module, scale, edit)
    return scale


def _divide_rows(path: str, layer: FloatLayer, scale: Tensor, edit: Edit) -> None:
    weight = _stored(layer, "weight")
    rows = _along(weight_axes(layer)[0], scale, weight)
    put_folded(path, layer, "weight", (weight.to(torch.float64) / rows).to(weight.dtype), edit)
    _divide_bias(path, layer, scale, edit)


def _divide_bias(path: str, module: nn.Module, scale: Tensor, edit: Edit) -> None:
    bias = own_tensor(module, "bias")
    if bias is not None:
        put_folded(path, module, "bias", (bias.to(torch.float64) / scale).to(bias.dtype), edit)


def _multiply_columns(consumer: Consumer, scale: Tensor, edit: Edit) -> None:
    weight, own = _stored(consumer.layer, "weight"), scale[consumer.channels]
    parts = groups(consumer.layer)
    if parts == 1:
        columns = _along(weight_axes(consumer.layer)[1], own, weight)
    else:  # each run of rows reads the channels of its group
        rows = own.view(parts, -1).repeat_interleave(len(weight) // parts, 0)
        columns = rows.view(*rows.shape, *[1] * (weight.ndim - 2))
    scaled = (weight.to(torch.float64) * columns).to(weight.dtype)
    put_folded(consumer.path, consumer.layer, "weight", scaled, edit)


def _along(axis: int, values: Tensor, weight: Tensor) -> Tensor:
    return values.view([-1 if each == axis else 1 for each in range(weight.ndim)])


def _stored(module: nn.Module, name: str) -> Tensor:
    value = own_tensor(module, name)
    if value is None:
        raise TypeError(f"a {type(module).__name__} without {name}")
    return value.detach()


def put_folded(
    path: str, module: nn.Module, name: str, value: Tensor, edit: Edit, *, by: str = "smoothing"
) -> None:
    """Give `module` a weight or bias that something was folded into.

    Raises:
        NumericsError: it is not finite.
    """
    if not bool(torch.isfinite(value).all()):
        found = Found("values that are too large for it")
        expected = f"finite in {value.dtype} after {by}"
        sentence = f"its {name} would be too large for {value.dtype} after {by}"
        raise NumericsError(
            Problem(module=path, field=name, value=found, expected=expected, sentence=sentence)
        )
    place = tensor_place(module, name)
    if place is None:
        raise TypeError(f"a {type(module).__name__} without {name}")
    old = place[name]
    new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    edit.put(place, name, new)
