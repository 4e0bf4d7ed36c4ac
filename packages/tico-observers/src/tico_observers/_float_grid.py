"""The arithmetic of moving values to floating-point elements under a scale, and its operator in traces."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from tico_config import FLOAT_FORMATS, FloatFormat, Granularity
from tico_observers._affine_params import broadcast
from tico_observers._elements import round_elements_
from tico_observers._grid_units import granularity_of, settings_of
from tico_observers._tensor_checks import arithmetic_dtype

_FORMATS: Final = {str(dtype): dtype for dtype in FLOAT_FORMATS}


def element_steps(x: Tensor, scale: Tensor, dtype: FloatFormat, granularity: Granularity) -> Tensor:
    """Return the elements nearest to ``x / scale``, float32, or float64 for float64 values."""
    wide = arithmetic_dtype(x)
    return round_elements_(
        x.detach().to(wide) / broadcast(scale, granularity, x.shape).to(wide), dtype.encoding
    )


def round_to_elements(x: Tensor, scale: Tensor, dtype: FloatFormat, granularity: Granularity) -> Tensor:
    """Return each value of `x` moved to the nearest one of its grid, in the dtype of `x`."""
    steps = element_steps(x, scale, dtype, granularity)
    largest = torch.finfo(x.dtype).max
    steps.mul_(broadcast(scale, granularity, x.shape).to(steps.dtype)).clamp_(-largest, largest)
    return steps if steps.dtype == x.dtype else steps.to(x.dtype).add_(0.0)


_SCHEMA = "(Tensor x, Tensor scale, str dtype, str unit, int axis, int size) -> Tensor"


@torch.library.custom_op("tico::fake_quantize_float", mutates_args=(), schema=_SCHEMA)
def _operator(x: Tensor, scale: Tensor, dtype: str, unit: str, axis: int, size: int) -> Tensor:
    return round_to_elements(x.detach(), scale, _FORMATS[dtype], granularity_of(unit, axis, size))


@_operator.register_fake
def _of_its_shape(x: Tensor, *settings: object) -> Tensor:
    return torch.empty_like(x)


def _straight_through(context: object, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return gradient, None, None, None, None, None


_operator.register_autograd(_straight_through)


def call_operator(x: Tensor, scale: Tensor, dtype: FloatFormat, granularity: Granularity) -> Tensor:
    """Return what `round_to_elements` does, as one call in a graph of `torch.fx.symbolic_trace`."""
    called: Tensor = _operator(x, scale, str(dtype), *settings_of(granularity))
    return called
