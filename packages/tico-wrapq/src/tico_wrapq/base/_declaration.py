"""What a wrapper says of its quantization points, and which grids these can have."""

from __future__ import annotations

import enum

import attrs

from tico_config import (
    FloatFormat,
    Found,
    Granularity,
    MinMaxSpec,
    PerChannel,
    PerGroup,
    PerTensor,
    Problem,
    QuantSpec,
)


class Role(enum.Enum):
    """What passes through a point."""

    WEIGHT = "weight"
    ACTIVATION_IN = "activation in"
    ACTIVATION_OUT = "activation out"
    OTHER = "other"


@attrs.frozen
class PointDeclaration:
    """One point of a wrapper class: name, role, and the granularity it has unless the config says more.

    `channels` is the axis of the channels: that of grids per channel, and the one that is searched for a
    channel that takes most of the range. None means that the axis differs from use to use: a grid per channel
    then has to name its axis, and the last axis is searched.
    """

    name: str
    role: Role
    granularity: Granularity = PerTensor()
    channels: int | None = -1


ACT_IN = PointDeclaration("act_in", Role.ACTIVATION_IN)
ACT_OUT = PointDeclaration("act_out", Role.ACTIVATION_OUT)


def spec_problem(path: str, declaration: PointDeclaration, spec: QuantSpec) -> Problem | None:
    """Return why the point at `path` cannot have the grid that `spec` asks for, or None."""
    if not spec.is_quantized:
        return None
    if declaration.role is not Role.WEIGHT:
        return _activation_problem(path, declaration, spec)
    granularity = spec.granularity_or(declaration.granularity)
    along_groups = isinstance(granularity, PerGroup) and granularity.axis in (1, -1)
    along_rows = isinstance(granularity, PerTensor) or granularity == PerChannel(0)
    if spec.dtype.bits <= 16 and (along_rows or along_groups):
        return None
    expected = "a grid of at most 16 bits per tensor, per channel 0, or per group of axis 1"
    sentence = f"a weight has {expected}, not {spec}"
    remedy = "take one of these, or no_quant(), for all weights or by an override"
    return Problem(
        module=path, field="spec", value=Found(str(spec)), expected=expected, sentence=sentence, remedy=remedy
    )


def _activation_problem(path: str, declaration: PointDeclaration, spec: QuantSpec) -> Problem | None:
    """Return why activations cannot have the grid that `spec` asks for, or None."""
    dtype = spec.dtype
    if isinstance(dtype, FloatFormat) and dtype.block_size is not None:
        return None if isinstance(spec.observer, MinMaxSpec) else _search_problem(path, spec)
    asked = spec.granularity_or(declaration.granularity)
    if isinstance(asked, PerGroup):
        return _group_problem(path, asked)
    if isinstance(asked, PerChannel) and not _is_along_channels(declaration, spec, asked.axis):
        return _axis_problem(path, declaration.channels, asked)
    return None


def _search_problem(path: str, spec: QuantSpec) -> Problem:
    return Problem(
        module=path,
        field="observer",
        value=spec.observer,
        expected="MinMaxSpec()",
        sentence=f"blocks of activations in {spec.dtype} get the scales of the values that come, by the rule"
        " of the standard, and are not searched",
        remedy=f"leave the observer out, for all or by an override for {path!r}",
    )


def _group_problem(path: str, asked: PerGroup) -> Problem:
    return Problem(
        module=path,
        field="granularity",
        value=asked,
        expected="PerTensor(), PerChannel or PerToken()",
        sentence="a fixed grid per group would have scales for every row of the calibration data",
        remedy="take PerToken(), whose scales are those of the row that comes, PerTensor() or no_quant(), "
        f"for all or by an override for {path!r}",
    )


def _axis_problem(path: str, axis: int | None, asked: PerChannel) -> Problem:
    if axis is None:
        sentence = "a grid per channel needs the axis of the channels, which is not known here"
        remedy = "set granularity=PerChannel(axis), with an axis behind that of the batch, or PerTensor()"
    else:
        sentence = f"its channels are on axis {axis}, not on axis {asked.axis} of the grid per channel"
        remedy = f"take granularity=PerChannel({axis}), or PerTensor()"
    return Problem(
        module=path,
        field="granularity",
        value=asked,
        expected="a grid along the channels",
        sentence=sentence,
        remedy=f"{remedy}, for all or by an override for {path!r}",
    )


def _is_along_channels(declaration: PointDeclaration, spec: QuantSpec, axis: int) -> bool:
    """Tell whether `axis`, which the scheme alone leaves to the point, is that of the channels."""
    known = declaration.channels
    if known is None:
        return spec.granularity is not None and axis != 0
    # Channels before others count from the last axis; in a batch they are on axis 1.
    return spec.granularity is None or axis == known or (known < -1 and axis == 1)
