"""What grids and integer weights become in a program that `torch.export` makes.

They become operators of the dialect ``quantized_decomposed``, which runtimes know: a pair that quantizes and
dequantizes for each grid of activations, and one that dequantizes for each weight. The grid of a whole tensor
is in the program as plain numbers. Each operator computes what the module does, bit for bit. NaN alone, which
a grid leaves as it is, has no code, and becomes some value of the grid.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Final, NamedTuple, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from tico_config import DType, Found, Problem, UnsupportedError, integer_format
from tico_modules._storage.weight_format import WeightFormat

P = ParamSpec("P")
T = TypeVar("T")
_HOMES: Final = ("torch.ao.quantization.fx._decomposed", "torchao.quantization.pt2e._decomposed")
_FORMATS: Final = (torch.float32, torch.bfloat16, torch.float16)

# The exporter to ONNX looks for translations of the operators before it traces a model.
with contextlib.suppress(ImportError):
    importlib.import_module(_HOMES[0])


class Operator(Protocol):
    """An operator of torch."""

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        """Call it."""


def read_while_tracing(function: Callable[P, T]) -> Callable[P, T]:
    """Have `function` called while a program is made, and what it returns taken for a constant of it.

    This is `torch.compiler.assume_constant_result`, which would import torch's compiler, 800 modules.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


@read_while_tracing
def _register_dialect() -> bool:
    """Import the module that registers the operators of ``quantized_decomposed``; return true."""
    for home in _HOMES:
        try:
            importlib.import_module(home)
        except ImportError:
            continue
        return True
    name, where = "quantized_decomposed", Found(f"none in torch {torch.__version__}")
    raise UnsupportedError(
        Problem(
            field=name,
            value=where,
            expected="operators of torch",
            remedy=f"install a version of torch or torchao that has {' or '.join(_HOMES)}",
            sentence=f"torch {torch.__version__} has no operators of {name}",
        )
    )


def dialect_operator(name: str) -> Operator:
    """Return an operator of ``quantized_decomposed``, for example ``quantize_per_tensor``.

    Raises:
        UnsupportedError: neither torch nor torchao has them.

    >>> dialect_operator("quantize_per_tensor")(torch.tensor([0.5, 9.0]), 0.25, 1, 0, 9, torch.uint8).tolist()
    [3, 9]
    """
    _register_dialect()
    found: Operator = getattr(torch.ops.quantized_decomposed, name).default
    return found


def code_dtype(dtype: DType) -> torch.dtype:
    """Return the format that holds codes of `dtype`.

    >>> code_dtype(DType.uint(4)), code_dtype(DType.int(16))
    (torch.uint8, torch.int16)
    """
    if dtype.bits <= 8:
        return torch.int8 if dtype.signed else torch.uint8
    if dtype.bits <= 16:
        return torch.int16 if dtype.signed else torch.uint16
    return torch.int32


def _row_dtype(dtype: DType) -> torch.dtype:
    """Return the format that holds codes with a scale for each row: torch subtracts nothing from uint16."""
    found = code_dtype(dtype)
    return torch.int32 if found is torch.uint16 else found


class GridNumbers(NamedTuple):
    """The smallest scale of a fixed grid, its first zero point and its largest value, as plain numbers.

    Of the grid of a whole tensor the first two are the scale and the zero point.
    """

    scale: float
    zero_point: int
    largest: float

    @classmethod
    def of(cls, scale: Tensor, zero_point: Tensor, dtype: DType) -> GridNumbers:
        """Return the numbers of a grid whose tensors can be read."""
        steps = torch.maximum(zero_point.double() - dtype.qmin, dtype.qmax - zero_point.double())
        largest = (steps * scale.double()).max().item()
        return cls(scale.min().item(), int(zero_point.flatten()[0].item()), largest)


def has_dialect_for(x: Tensor, dtype: DType) -> bool:
    """Tell whether the dialect computes a fixed grid of `dtype` for `x` as the module does."""
    return x.dtype in _FORMATS and dtype.bits <= 16


def move_to_grid(x: Tensor, numbers: GridNumbers, dtype: DType) -> Tensor:
    """Return `x` moved to the grid of a whole tensor."""
    grid = (numbers.scale, numbers.zero_point, dtype.qmin, dtype.qmax, code_dtype(dtype))
    codes = dialect_operator("quantize_per_tensor")(x, *grid)
    return _dequantized("dequantize_per_tensor", (codes, *grid), x.dtype, numbers, dtype)


def move_to_channels(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, numbers: GridNumbers, dtype: DType
) -> Tensor:
    """Return `x` moved to a grid for each channel along `axis`."""
    grid = (scale, zero_point, axis % x.ndim, dtype.qmin, dtype.qmax, _row_dtype(dtype))
    codes = dialect_operator("quantize_per_channel")(x, *grid)
    return _dequantized("dequantize_per_channel", (codes, *grid), x.dtype, numbers, dtype)


def _dequantized(
    name: str, arguments: tuple[object, ...], out: torch.dtype, numbers: GridNumbers, dtype: DType
) -> Tensor:
    """Return the values of codes in the format `out`, where they are finite and zeros are not negative."""
    dequantize, info = dialect_operator(name), torch.finfo(out)
    fits, normal = numbers.largest <= info.max, numbers.scale >= info.smallest_normal
    if out == torch.float32 and fits:
        return dequantize(*arguments)
    # Up to 8 bits, `out` holds every difference of codes, and the product is rounded once.
    if dtype.bits <= 8 and fits and normal:
        return dequantize(*arguments, out_dtype=out)
    values = dequantize(*arguments)
    bounded = values if fits else values.clamp(-info.max, info.max)
    narrow = bounded.to(out)
    return narrow if normal else narrow + 0.0


def dequantize_weight(
    form: WeightFormat, codes: Tensor, scale: Tensor, zero_point: Tensor, offset: Tensor | None
) -> Tensor:
    """Return the float32 weight of packed `codes` in its own shape; groups are even runs of columns.

    Offsets, which the dialect has no place for, are subtracted by an operator of their own.
    """
    dtype = integer_format(form.dtype)
    kept = _row_dtype(dtype)
    integers = form.unpack(codes)
    if form.origin:
        integers = integers.to(kept if dtype.bits <= 8 else torch.int32) + form.origin
    if form.group_size is None:
        rows = integers.to(kept).view(form.shape)
        grid = (scale.view(-1), zero_point.view(-1), 0, dtype.qmin, dtype.qmax, kept)
        return dialect_operator("dequantize_per_channel")(rows, *grid)
    groups = (scale, zero_point, dtype.qmin, dtype.qmax, kept, form.group_size, torch.float32)
    values = dialect_operator("dequantize_per_channel_group")(integers.to(kept), *groups)
    if offset is not None:
        values = values - offset.repeat_interleave(form.group_size, 1)
    return values.view(form.shape)
