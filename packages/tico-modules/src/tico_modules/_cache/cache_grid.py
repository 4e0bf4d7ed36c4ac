"""The grids of cached keys or values (batch, heads, tokens, channels): fixed ones, or those of the data."""

from __future__ import annotations

from typing import Final, TypeAlias

import attrs
import torch
from torch import Tensor

from tico_config import (
    FP8,
    DType,
    Found,
    NumberFormat,
    PerGroup,
    PerToken,
    Problem,
    UnsupportedError,
)
from tico_config.validation import check_instance, refuse
from tico_observers import pack, params_from_range, require_finite, unpack
from tico_observers.float_formats import round_elements_

_TOKENS: Final = -2
_ELEMENTS: Final = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}

CacheFormat: TypeAlias = DType | FP8
"""What codes in a cache stand for."""


def cache_format(dtype: NumberFormat) -> CacheFormat:
    """Return `dtype`, which has to be one that a cache can hold.

    Raises:
        UnsupportedError: it is another one.

    >>> str(cache_format(FP8()))
    'fp8_e4m3'
    """
    if isinstance(dtype, DType | FP8):
        return dtype
    raise UnsupportedError(Problem(field="dtype", value=Found(str(dtype)), expected="integers or FP8"))


@attrs.frozen(eq=False)
class Codes:
    """Codes that stand for some tokens of keys or values.

    Attributes:
        packed: uint8 (batch, heads, tokens, bytes of a row), integers less `qmin`; or elements of FP8,
            float8_e4m3fn or float8_e5m2 (batch, heads, tokens, channels).
        scale: broadcasts against the values; bfloat16 where it comes from them; None where it is fixed.
        zero_point: uint8, the code of 0 less `qmin`; None where grids are symmetric, as for FP8, or fixed.
    """

    packed: Tensor
    scale: Tensor | None
    zero_point: Tensor | None


@attrs.frozen(eq=False, kw_only=True)
class CacheGrid:
    """How keys or values become integers of 2 to 8 bits, or FP8.

    A dynamic grid, of `granularity` ``PerToken()``, ``PerGroup(-1, size)`` or ``PerGroup(-2, size)``, is the
    min/max grid of the values that share it, with its scale rounded up to bfloat16. A fixed one is
    in `scale` (float32) and `zero_point` (int32), which broadcast against the values.

    Raises:
        ConfigError: a field has the wrong type.

    >>> grid = CacheGrid(dtype=DType.int(8), symmetric=True, granularity=PerToken())
    >>> x = torch.tensor([127.0, 0.4]).view(1, 1, 1, 2)
    >>> grid.dequantize(grid.quantize(x), 2, torch.float32).flatten().tolist()
    [127.0, 0.0]
    """

    dtype: CacheFormat
    symmetric: bool
    granularity: PerToken | PerGroup | None = None
    scale: Tensor | None = None
    zero_point: Tensor | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse a grid that is neither dynamic nor fixed."""
        if self.granularity is None:
            refuse(
                check_instance("scale", self.scale, Tensor, "a tensor where granularity is None"),
                check_instance("zero_point", self.zero_point, Tensor, "a tensor where granularity is None"),
            )

    @property
    def tokens(self) -> int:
        """How many tokens share a grid, and have to become codes together."""
        granularity = self.granularity
        together = isinstance(granularity, PerGroup) and granularity.axis == _TOKENS
        return granularity.size if together and isinstance(granularity, PerGroup) else 1

    def quantize(self, x: Tensor) -> Codes:
        """Return the codes of `x` (batch, heads, tokens, channels); tokens are a multiple of `tokens`.

        An integer is ``clamp(round(x * (1 / scale)) + zero_point, qmin, qmax)``, an element of FP8 the one
        nearest to ``x / scale``; in float32, as everywhere.

        Raises:
            NumericsError: `x` holds NaN or infinity.
        """
        require_finite(x, "the cache")
        wide = x.detach().to(torch.float32)
        scale, zero_point = self._grid_of(wide)
        packed = self._encode(wide, self._spread(scale, wide.shape), self._spread(zero_point, wide.shape))
        if self.granularity is None:
            return Codes(packed, None, None)
        dtype = self.dtype
        integers = None if self.symmetric or isinstance(dtype, FP8) else (zero_point - dtype.qmin)
        kept = None if integers is None else integers.to(torch.uint8)
        return Codes(packed, scale.to(torch.bfloat16), kept)

    def _encode(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return the codes of float32 `x`, as they are stored."""
        dtype = self.dtype
        if isinstance(dtype, FP8):
            return round_elements_(x / scale, dtype.encoding).to(_ELEMENTS[dtype.element])
        steps = (x * scale.reciprocal()).round_().add_(zero_point).clamp_(dtype.qmin, dtype.qmax)
        return pack((steps - dtype.qmin).to(torch.uint8), dtype.bits)

    def dequantize(self, codes: Codes, channels: int, dtype: torch.dtype) -> Tensor:
        """Return the values that codes stand for, (batch, heads, tokens, `channels`).

        They are ``(code - zero_point) * scale``, or ``element * scale``.
        """
        scale = self.scale if codes.scale is None else codes.scale.to(torch.float32)
        if scale is None:
            raise _without_scale()
        steps = self._decode(codes, channels)
        largest = torch.finfo(dtype).max
        return steps.mul_(self._spread(scale, steps.shape)).clamp_(-largest, largest).to(dtype)

    def _decode(self, codes: Codes, channels: int) -> Tensor:
        """Return what is multiplied by the scales, float32."""
        dtype = self.dtype
        if isinstance(dtype, FP8):
            return codes.packed.to(torch.float32)
        shape = (*codes.packed.shape[:-1], channels)
        steps = unpack(codes.packed, dtype.bits, shape).to(torch.float32)
        if codes.zero_point is not None:
            return steps.sub_(self._spread(codes.zero_point.to(torch.float32), steps.shape))
        if codes.scale is None and self.zero_point is not None:
            return steps.sub_((self.zero_point - dtype.qmin).to(torch.float32))
        return steps.add_(dtype.qmin)

    def _grid_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, float32 and one for each grid."""
        if self.granularity is None and self.scale is not None and self.zero_point is not None:
            return self.scale, self.zero_point.to(torch.float32)
        low, high = (self._extremes(x, largest=largest) for largest in (False, True))
        granularity, dtype = PerToken(), self.dtype
        params = params_from_range(low, high, dtype, symmetric=self.symmetric, granularity=granularity)
        scale = rounded_up(params.scale)
        if self.symmetric or isinstance(dtype, FP8):
            return scale, torch.zeros_like(scale)
        offset = (low.clamp(max=0.0) / scale).round_().clamp_(min=dtype.qmin - dtype.qmax)
        return scale, dtype.qmin - offset

    def _extremes(self, x: Tensor, *, largest: bool) -> Tensor:
        """Return the largest or smallest value of each grid."""
        granularity = self.granularity
        if not isinstance(granularity, PerGroup):
            return x.amax(-1, keepdim=True) if largest else x.amin(-1, keepdim=True)
        axis, size = granularity.axis, granularity.size
        missing = -x.shape[axis] % size
        if missing:  # the last value again changes no range
            last = x.narrow(axis, x.shape[axis] - 1, 1)
            x = torch.cat([x, last.repeat_interleave(missing, axis)], axis)
        at = axis % x.ndim
        groups = x.reshape(*x.shape[:at], -1, size, *x.shape[at + 1 :])
        return groups.amax(axis) if largest else groups.amin(axis)

    def _spread(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Return `values`, one for each grid, in a shape that broadcasts against `shape`."""
        granularity = self.granularity
        if not isinstance(granularity, PerGroup):
            return values
        axis = granularity.axis
        return values.repeat_interleave(granularity.size, axis).narrow(axis, 0, shape[axis])


def rounded_up(scale: Tensor) -> Tensor:
    """Return float32 `scale`, positive, with the bits of the next number of bfloat16 that is no smaller.

    >>> rounded_up(torch.tensor([1.0, 1.0001])).tolist()
    [1.0, 1.0078125]
    """
    bits = scale.contiguous().view(torch.int32)
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32)


def _without_scale() -> UnsupportedError:
    sentence = "codes of a fixed grid need its scale, and there is none"
    return UnsupportedError(Problem(field="scale", value=None, expected="a tensor", sentence=sentence))
