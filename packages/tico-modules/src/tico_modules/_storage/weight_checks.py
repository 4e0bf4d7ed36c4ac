"""Whether codes, grids and format of a packed weight fit each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tico_config import Found, NumericsError, Problem
from tico_modules._storage.exact_module import has_values
from tico_modules._storage.weight_format import WeightFormat
from tico_observers import AffineParams


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
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "codes": (form.stored_dtype, (form.rows, form.stored_columns)),
        "scale": (torch.float32, grid),
        "zero_point": (torch.int32, grid),
        "group_index": (torch.int32, (form.columns,)),
        "offset": (torch.float32, grid),
        "stored_scale": (form.scale_dtype, grid),
        "tensor_scale": (torch.float32, ()),
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


def require_arguments(weight: object, symmetric: object) -> None:
    """Refuse what is no tensor of floats, and what is neither true nor false.

    Raises:
        NumericsError: naming the argument.
    """
    if not (isinstance(weight, Tensor) and weight.is_floating_point()):
        raise NumericsError(Problem(field="weight", value=weight, expected="a tensor of floats"))
    if not isinstance(symmetric, bool):
        raise NumericsError(Problem(field="symmetric", value=symmetric, expected="true or false"))


def require_values_of(form: WeightFormat, buffers: Mapping[str, Tensor]) -> None:
    """Refuse codes, scales and zero points that no weight of the format `form` has.

    Raises:
        NumericsError: with what is out of range.
    """
    scale, zero_point = buffers["scale"], buffers["zero_point"]
    if has_values(*buffers.values()):
        _require_finite(buffers.get("offset"))
        if form.dtype.bits > 8:  # up to 8 bits, every byte holds codes in range
            require_codes(form.unpack(buffers["codes"]).to(torch.int32) + form.origin, form)
        AffineParams(scale=scale, zero_point=zero_point, dtype=form.dtype)


def require_offset(form: WeightFormat, offset: Tensor | None) -> None:
    """Refuse offsets where the format has none, none where it has some, and offsets that are not finite.

    Raises:
        NumericsError: with what was found.
    """
    if (offset is not None) != form.has_offset:
        found = Found("none" if offset is None else "a tensor")
        expected = "a tensor with a super_block that has offset_bits, and None otherwise"
        raise NumericsError(Problem(field="offset", value=found, expected=expected))
    _require_finite(offset)


def _require_finite(offset: Tensor | None) -> None:
    if offset is not None and has_values(offset) and not bool(offset.isfinite().all()):
        found = Found("some that are not")
        raise NumericsError(Problem(field="offset", value=found, expected="finite numbers"))
