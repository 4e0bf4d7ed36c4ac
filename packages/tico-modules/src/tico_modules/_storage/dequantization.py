"""From packed codes to float values."""

from __future__ import annotations

import torch
from torch import Tensor

from tico_modules._storage.weight_format import WeightFormat
from tico_observers import have_numbers
from tico_observers.float_formats import decode_elements

_LARGEST = torch.finfo(torch.float32).max


def dequantize_rows(
    form: WeightFormat,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    group_index: Tensor | None,
    offset: Tensor | None,
) -> Tensor:
    """Return the values of some rows of a weight, float32 (rows, columns).

    A value is ``(code - zero_point) * scale`` of its group, less the group's offset where there are offsets,
    each step rounded to float32; beyond its finite numbers a value becomes the largest of them.

    Args:
        form: the format of the whole weight.
        codes: packed codes of the rows, (rows, bytes).
        scale: float32 (rows, groups).
        zero_point: int32 (rows, groups).
        group_index: the group of each column, (columns,); None where groups are runs of columns.
        offset: float32 (rows, groups), or None.
    """
    # Codes of up to 16 bits, zero points and their differences are exact in float32.
    steps = form.unpack(codes).to(torch.float32)
    start = (zero_point - form.origin).to(torch.float32)
    columns = form.columns
    if group_index is not None or columns % (form.group_size or 1):
        start, spread = spread_groups(form, start, group_index), spread_groups(form, scale, group_index)
        lowered = None if offset is None else spread_groups(form, offset, group_index)
    else:
        steps = steps.reshape(*start.shape, form.group_size or columns)
        start, spread = start.unsqueeze(-1), scale.unsqueeze(-1)
        lowered = None if offset is None else offset.unsqueeze(-1)
    # In place: at most one tensor of the size of the weight is made besides the codes.
    values = steps.sub_(start).mul_(spread)
    if lowered is not None:
        values = values.sub_(lowered)
    if not _fits_float32(scale, form.dtype.bits, offset):
        values = values.clamp_(-_LARGEST, _LARGEST)
    return values.reshape(codes.shape[0], columns)


def dequantize_elements(
    form: WeightFormat, codes: Tensor, scale: Tensor, group_index: Tensor | None
) -> Tensor:
    """Return the values of some rows of a weight of floating-point elements, float32 (rows, columns).

    A value is ``element(code) * scale`` of its group; beyond the finite numbers it is the largest of them.
    """
    element, columns = form.float_format.encoding, form.columns
    values = decode_elements(form.unpack(codes), element)
    if group_index is not None or columns % (form.group_size or 1):
        values = values.mul_(spread_groups(form, scale, group_index))
    else:
        values = values.view(*scale.shape, form.group_size or columns).mul_(scale.unsqueeze(-1))
    known = have_numbers(scale) and scale.numel() > 0
    if not known or scale.amax().item() * element.largest > _LARGEST:
        values = values.clamp_(-_LARGEST, _LARGEST)
    return values.reshape(codes.shape[0], columns)


def spread_groups(form: WeightFormat, values: Tensor, group_index: Tensor | None) -> Tensor:
    """Return one of `values` (rows, groups) for each column, (rows, columns).

    Where a row is one group, `values` are returned as they are, (rows, 1), for torch to broadcast.
    """
    if group_index is not None:
        return values.index_select(1, group_index)
    if form.group_size is None:
        return values
    return values.repeat_interleave(form.group_size, 1)[:, : form.columns]


def _fits_float32(scale: Tensor, bits: int, offset: Tensor | None) -> bool:
    """Tell whether all values are finite in float32, where the scales can be read here and now.

    Reading them costs less than clamping every value, but would end a trace and wait for another device.
    """
    if not have_numbers(scale) or not scale.numel():
        return False
    largest: float = scale.amax().item() * 2**bits
    if offset is not None:
        largest += offset.abs().amax().item()
    return largest <= _LARGEST
