"""The affine grid: scale, zero point, format and granularity, and how a range determines it."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor
from typing_extensions import assert_never

from tico_config import (
    DType,
    FloatFormat,
    Found,
    Granularity,
    NumberFormat,
    NumericsError,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    Problem,
    UnsupportedError,
)
from tico_config.validation import check_instance, refuse
from tico_observers._float_scales import decode_scales, encode_scales, scales_of, tensor_scale_of

SMALLEST_SCALE = torch.finfo(torch.float32).smallest_normal


def _real_tensor(field: str, value: object) -> Tensor:
    """Return `value` as a tensor of real numbers that are there to be read.

    Raises:
        UnsupportedError: it is none.
    """
    given = value.detach() if isinstance(value, Tensor) else _as_tensor(value)
    if given is not None and not (given.is_complex() or given.is_meta or given.dtype is torch.bool):
        return given
    kind = f"a {type(value).__name__}"
    found = Found(kind if given is None else f"a tensor of {given.dtype} on {given.device}")
    raise UnsupportedError(
        Problem(
            field=field,
            value=found,
            expected="a tensor of real numbers",
            sentence=f"the {field} is {found}, which holds no real numbers",
            remedy="give the numbers of a grid, for example torch.tensor(0.5)",
        )
    )


def _float_scale(value: object) -> Tensor:
    # A copy, so that nobody who holds the tensor given can change the grid.
    return _real_tensor("scale", value).to(torch.float32, copy=True)


def _as_tensor(value: object) -> Tensor | None:
    """Return numbers, or lists of them, as a tensor; None for anything else."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _exact_zero_point(value: object) -> Tensor:
    given = _real_tensor("zero_point", value)
    rounded = given.to(torch.int64)
    if given.is_floating_point() and not torch.equal(rounded.to(torch.float64), given.to(torch.float64)):
        found = Found(str(given.flatten()[:4].tolist()))
        sentence = f"zero points are whole numbers, and these are {found}"
        raise NumericsError(
            Problem(field="zero_point", value=found, expected="whole numbers", sentence=sentence)
        )
    return rounded


def _optional_scale(value: object) -> Tensor | None:
    return None if value is None else _float_scale(value)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _zero_points(dtype: NumberFormat) -> tuple[int, int]:
    """Return the lowest and the highest zero point of grids of `dtype`."""
    return (0, 0) if isinstance(dtype, FloatFormat) else (dtype.qmin, dtype.qmax)


@attrs.frozen(kw_only=True)
class AffineParams:
    """A grid: code q stands for the value ``(q - zero_point) * scale``, or ``element(q) * scale``.

    The latter is the grid of a `FloatFormat`, whose codes are those of its standard, with the zero point 0.

    `scale` is float32, `zero_point` int32, both of the same shape: ``()`` per tensor, ``(channels,)`` per
    channel, the tensor's shape with `axis` divided into groups per group, and the shape without the last
    axis per token. `tensor_scale`, float32 of shape (), is what the scales of `NVFP4` are
    multiples of.

    Raises:
        ConfigError: `dtype` is no number format, or `granularity` no granularity.
        UnsupportedError: `scale` or `zero_point` holds no real numbers.
        NumericsError: a scale is not a positive normal float, or none that the format can store, a zero
            point is not a code, or the two are of different shapes.

    >>> print(AffineParams(scale=torch.tensor(0.5), zero_point=torch.tensor(3), dtype=DType.uint(4)))
    uint4, scale 0.5, zero point 3
    """

    __hash__ = None  # type: ignore[assignment]

    scale: Tensor = attrs.field(converter=_float_scale, eq=attrs.cmp_using(eq=torch.equal))
    zero_point: Tensor = attrs.field(converter=_exact_zero_point, eq=attrs.cmp_using(eq=torch.equal))
    dtype: NumberFormat
    granularity: Granularity = PerTensor()
    tensor_scale: Tensor | None = attrs.field(
        default=None, converter=_optional_scale, eq=attrs.cmp_using(eq=_same)
    )

    def __attrs_post_init__(self) -> None:
        """Validate both tensors, then keep the zero point as int32."""
        refuse(
            check_instance("dtype", self.dtype, NumberFormat, "a number format such as DType.uint(8)"),
            check_instance("granularity", self.granularity, Granularity, "a Granularity such as PerTensor()"),
        )
        problem = self._shape_problem() or self._range_problem() or self._float_problem()
        if problem is not None:
            raise NumericsError(problem)
        object.__setattr__(self, "zero_point", self.zero_point.to(torch.int32))

    def _shape_problem(self) -> Problem | None:
        if self.scale.shape == self.zero_point.shape:
            return None
        expected = f"of the scale's shape {tuple(self.scale.shape)}"
        shapes = f"{tuple(self.scale.shape)} and {tuple(self.zero_point.shape)}"
        return Problem(
            field="zero_point",
            value=Found(tuple(self.zero_point.shape)),
            expected=expected,
            sentence=f"scales and zero points go in pairs, and their shapes are {shapes}",
        )

    def _range_problem(self) -> Problem | None:
        if self.scale.numel() == 1 and self._is_in_range(self.scale.item(), int(self.zero_point.item())):
            return None
        if self.scale.numel() and self.zero_point.numel() and self._are_in_range():
            return None
        normal = torch.isfinite(self.scale) & (self.scale >= SMALLEST_SCALE)
        if not bool(normal.all()):
            wrong = Found(str(self.scale[~normal].flatten()[:4].tolist()))
            sentence = f"a scale is a positive, normal and finite float, and these are none: {wrong}"
            return Problem(
                field="scale", value=wrong, expected="positive, normal and finite", sentence=sentence
            )
        lowest, highest = _zero_points(self.dtype)
        inside = (self.zero_point >= lowest) & (self.zero_point <= highest)
        if not bool(inside.all()):
            wrong = Found(str(self.zero_point[~inside].flatten()[:4].tolist()))
            expected = f"from {lowest} to {highest}, the codes of {self.dtype}"
            sentence = f"a zero point is a code, {expected}, and these are none: {wrong}"
            return Problem(field="zero_point", value=wrong, expected=expected, sentence=sentence)
        return None

    def _float_problem(self) -> Problem | None:
        dtype, unit = self.dtype, self.tensor_scale
        needed = isinstance(dtype, FloatFormat) and dtype.scale_format == "e4m3"
        if needed is not (unit is not None) or (unit is not None and unit.ndim):
            expected = f"a single number for {dtype}" if needed else f"None for {dtype}"
            found = Found("None" if unit is None else f"a tensor of shape {tuple(unit.shape)}")
            return Problem(field="tensor_scale", value=found, expected=expected)
        if not isinstance(dtype, FloatFormat):
            return None
        stored = decode_scales(encode_scales(self.scale, dtype, unit), dtype, unit)
        if torch.equal(stored, self.scale):
            return None
        wrong = Found(str(self.scale[stored != self.scale].flatten()[:4].tolist()))
        expected = f"scales that {dtype} stores as {dtype.scale_format}"
        return Problem(field="scale", value=wrong, expected=expected)

    def _are_in_range(self) -> bool:
        """Tell whether both are in range by their ends, which takes less time than to find what is not."""
        ends = zip(self.scale.aminmax(), self.zero_point.aminmax(), strict=True)
        return all(self._is_in_range(scale.item(), int(zero_point.item())) for scale, zero_point in ends)

    def _is_in_range(self, scale: float, zero_point: int) -> bool:
        low, high = _zero_points(self.dtype)
        return SMALLEST_SCALE <= scale < math.inf and low <= zero_point <= high

    def to(self, device: torch.device) -> AffineParams:
        """Return the same grid with its tensors on `device`."""
        scale, zero_point = self.scale.to(device), self.zero_point.to(device)
        unit = None if self.tensor_scale is None else self.tensor_scale.to(device)
        return attrs.evolve(self, scale=scale, zero_point=zero_point, tensor_scale=unit)

    def __str__(self) -> str:
        """Return a short name, for example ``uint8 scale 0.0123 zero point 12``."""
        if self.scale.numel() != 1:
            return f"{self.dtype}, {self.scale.numel()} scales"
        if isinstance(self.dtype, FloatFormat):
            return f"{self.dtype}, scale {self.scale.item():.4g}"
        return f"{self.dtype}, scale {self.scale.item():.4g}, zero point {int(self.zero_point.item())}"


def params_from_range(
    minimum: Tensor,
    maximum: Tensor,
    dtype: NumberFormat,
    *,
    symmetric: bool,
    granularity: Granularity,
    tensor_scale: Tensor | None = None,
) -> AffineParams:
    """Return the smallest grid that holds 0 and every value from `minimum` to `maximum`.

    Computed in float64. Asymmetric: ``scale = (max - min) / (qmax - qmin)``. Symmetric:
    ``scale = max(max / qmax, min / qmin)``, zero point 0. A range of zero width at 0 gets scale 1. Ends too
    small for a normal float32 are 0, as they are where the processor flushes them to zero.

    The grid of a `FloatFormat` has the scales of its standard for the largest magnitude of each unit, see
    `scales_of`. The powers of two of MX formats are those of OCP Microscaling Formats 1.0, section 6.3, with
    which values beyond the largest element saturate. `tensor_scale` is that of `NVFP4`; None stands for the
    one of all ranges given.

    Raises:
        NumericsError: the range needs a scale that float32 cannot hold.

    >>> params = params_from_range(
    ...     torch.tensor(-1.0), torch.tensor(3.0), DType.uint(4), symmetric=False, granularity=PerTensor()
    ... )
    >>> round(params.scale.item(), 4), params.zero_point.item()
    (0.2667, 4)
    """
    if isinstance(dtype, FloatFormat):
        low, high = _normal(minimum), _normal(maximum)
        return params_from_largest(torch.maximum(-low, high), dtype, granularity, tensor_scale)
    if minimum.ndim == 0 and minimum.is_cpu and math.isfinite(maximum.item() - minimum.item()):
        ends = (minimum.item(), maximum.item())
        return _of_one_range(*ends, dtype, symmetric=symmetric, granularity=granularity)
    low, high = _normal(minimum).clamp(max=0.0), _normal(maximum).clamp(min=0.0)
    if symmetric:
        width = torch.maximum(high / dtype.qmax, low / dtype.qmin)
    else:
        width = (high - low) / (dtype.qmax - dtype.qmin)
    scale = torch.where(width == 0, 1.0, width).clamp(min=SMALLEST_SCALE).to(torch.float32)
    if symmetric:
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
    else:
        offset = torch.round(low / scale.to(torch.float64)).clamp(min=dtype.qmin - dtype.qmax)
        zero_point = (dtype.qmin - offset).to(torch.int32)
    return AffineParams(scale=scale, zero_point=zero_point, dtype=dtype, granularity=granularity)


def params_from_largest(
    largest: Tensor, dtype: FloatFormat, granularity: Granularity, tensor_scale: Tensor | None = None
) -> AffineParams:
    """Return the grid of a floating-point format for the largest magnitude of each unit.

    `tensor_scale` is that of `NVFP4`; None stands for the one of all of `largest`.

    >>> from tico_config import MXFP4
    >>> print(params_from_largest(torch.tensor(5.0), MXFP4(), PerTensor()))
    mxfp4, scale 1
    """
    if dtype.scale_format == "e4m3" and tensor_scale is None:
        tensor_scale = tensor_scale_of(largest)
    scale = scales_of(largest, dtype, tensor_scale)
    return AffineParams(
        scale=scale,
        zero_point=torch.zeros_like(scale, dtype=torch.int32),
        dtype=dtype,
        granularity=granularity,
        tensor_scale=tensor_scale,
    )


def _normal(end: Tensor) -> Tensor:
    """Return one end of ranges as float64, 0 where it is too small for a normal float32."""
    wide = end.detach().to(torch.float64)
    return torch.where(wide.abs() < SMALLEST_SCALE, 0.0, wide)


def _of_one_range(
    minimum: float, maximum: float, dtype: DType, *, symmetric: bool, granularity: Granularity
) -> AffineParams:
    """Return what `params_from_range` does, with the same bits: Python's floats are float64."""
    low, high = (0.0 if abs(end) < SMALLEST_SCALE else end for end in (minimum, maximum))
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        width = max(high / dtype.qmax, low / dtype.qmin)
    else:
        width = (high - low) / (dtype.qmax - dtype.qmin)
    scale = torch.tensor(max(width or 1.0, SMALLEST_SCALE), dtype=torch.float32)
    offset = 0 if symmetric else max(round(low / scale.item()), dtype.qmin - dtype.qmax)
    zero_point = torch.tensor(0 if symmetric else dtype.qmin - offset, dtype=torch.int32)
    return AffineParams(scale=scale, zero_point=zero_point, dtype=dtype, granularity=granularity)


def params_per_token(x: Tensor, dtype: NumberFormat, *, symmetric: bool) -> AffineParams:
    """Return the grid of each vector along the last axis of `x`, from its own range (dynamic).

    >>> params_per_token(torch.tensor([[254.0, 0.0], [127.0, 0.0]]), DType.int(8), symmetric=True).scale
    tensor([2., 1.])
    """
    if x.numel() == 0:
        low = high = x.new_zeros(x.shape[:-1])
    else:
        low, high = x.detach().amin(-1), x.detach().amax(-1)
    return params_from_range(low, high, dtype, symmetric=symmetric, granularity=PerToken())


def broadcast(values: Tensor, granularity: Granularity, shape: torch.Size) -> Tensor:
    """Return `values`, one per unit of `granularity`, in a shape that broadcasts against `shape`.

    Raises:
        NumericsError: the number of values does not fit `shape`.

    >>> broadcast(torch.ones(3), PerChannel(axis=0), torch.Size((3, 5))).shape
    torch.Size([3, 1])
    """
    # Not `match`: forward passes come by here, and torch.compile of torch 2.6 does not trace that.
    if isinstance(granularity, PerTensor):
        return values
    if statistic_shape(granularity, shape) != values.shape:
        raise NumericsError(_misfit(values.shape, granularity, shape, "x"))
    if isinstance(granularity, PerChannel):
        return values.view([-1 if i == granularity.axis % len(shape) else 1 for i in range(len(shape))])
    if isinstance(granularity, PerGroup):
        axis = granularity.axis
        return values.repeat_interleave(granularity.size, axis).narrow(axis, 0, shape[axis])
    if isinstance(granularity, PerToken):
        return values.unsqueeze(-1)
    assert_never(granularity)


def require_fit(params: AffineParams, shape: torch.Size, name: str = "x") -> None:
    """Refuse a tensor shape that the grid's scales do not fit.

    Raises:
        NumericsError: with both shapes.

    >>> params = AffineParams(scale=torch.ones(3), zero_point=torch.zeros(3), dtype=DType.int(8),
    ...                       granularity=PerChannel(axis=0))
    >>> require_fit(params, torch.Size((3, 5)))
    """
    if statistic_shape(params.granularity, shape) != params.scale.shape:
        raise NumericsError(_misfit(params.scale.shape, params.granularity, shape, name))


def _misfit(scales: torch.Size, granularity: Granularity, shape: torch.Size, name: str) -> Problem:
    needed = statistic_shape(granularity, shape)
    needs = "has no such axis" if needed is None else f"needs scales of shape {tuple(needed)}"
    return Problem(
        field=name,
        value=Found(f"a tensor of shape {tuple(shape)}"),
        expected=f"one that fits scales of shape {tuple(scales)} ({granularity})",
        sentence=f"the grid has scales of shape {tuple(scales)}, {granularity}; "
        f"{name} of shape {tuple(shape)} {needs}",
    )


def statistic_shape(granularity: Granularity, shape: torch.Size) -> torch.Size | None:
    """Return the shape of one value per unit of `granularity` over `shape`; None without such an axis.

    >>> statistic_shape(PerGroup(axis=-1, size=4), torch.Size((3, 10)))
    torch.Size([3, 3])
    """
    # Not `match`, as in `broadcast`.
    if isinstance(granularity, PerTensor):
        return torch.Size(())
    if isinstance(granularity, PerToken):
        return shape[:-1] if shape else None
    if not -len(shape) <= granularity.axis < len(shape):
        return None
    if isinstance(granularity, PerChannel):
        return torch.Size((shape[granularity.axis],))
    axis, groups = granularity.axis % len(shape), -(-shape[granularity.axis] // granularity.size)
    return torch.Size(groups if i == axis else n for i, n in enumerate(shape))
