"""Whether codes, grids and format of a packed weight fit each other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tico_config import Found, NumericsError, Problem
from tico_modules._storage.weight_format import WeightFormat


def require_codes(codes: Tensor, form: WeightFormat) -> None:
    """Refuse a tensor that does not hold the codes of a weight of the format `form`, unpacked.

    Raises:
        NumericsError: it is not of shape (rows, columns), holds no integers, or a code is out of range.
    """
    dtype = form.dtype
    expected = f"a {form.rows} x {form.columns} matrix of integers from {dtype.qmin} to {dtype.qmax}"
    integers = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
    if tuple(codes.shape) != (form.rows, form.columns) or not integers:
        found = Found(_describe(codes.dtype, tuple(codes.shape)))
        raise NumericsError(Problem(field="codes", value=found, expected=expected))
    if codes.numel() and not (codes.dtype == torch.uint8 and (dtype.bits, dtype.signed) == (8, False)):
        low, high = int(codes.min()), int(codes.max())
        if low < dtype.qmin or high > dtype.qmax:
            found = Found(f"integers from {low} to {high}")
            raise NumericsError(Problem(field="codes", value=found, expected=expected))


def require_buffers(form: WeightFormat, buffers: dict[str, Tensor]) -> None:
    """Refuse `buffers`, by name, that a weight of the format `form` cannot have.

    Raises:
        NumericsError: with every tensor of another dtype or shape, and with groups that do not exist.
    """
    grid = (form.rows, form.groups)
    wanted = {
        "codes": (form.stored_dtype, (form.rows, form.stored_columns)),
        "scale": (torch.float32, grid),
        "zero_point": (torch.int32, grid),
        "group_index": (torch.int32, (form.columns,)),
    }
    problems = [
        Problem(
            field=name,
            value=Found(_describe(tensor.dtype, tuple(tensor.shape))),
            expected=_describe(*wanted[name]),
        )
        for name, tensor in buffers.items()
        if (tensor.dtype, tuple(tensor.shape)) != wanted[name]
    ]
    problems += _find_index_problem(form, buffers.get("group_index"))
    if problems:
        raise NumericsError(*problems)


def _find_index_problem(form: WeightFormat, index: Tensor | None) -> Iterator[Problem]:
    if index is not None and index.numel():
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= form.groups:
            found, expected = (
                Found(f"numbers from {low} to {high}"),
                f"group numbers from 0 to {form.groups - 1}",
            )
            yield Problem(field="group_index", value=found, expected=expected)


def _describe(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"a tensor of shape {shape} and dtype {str(dtype).removeprefix('torch.')}"
