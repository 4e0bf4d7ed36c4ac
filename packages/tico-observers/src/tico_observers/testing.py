"""Hypothesis strategies for tests of code that observes or quantizes; install `tico-observers[testing]`.

Every tensor drawn is finite and on the CPU. Sizes are small, so that examples are found and shrunk quickly.

>>> from hypothesis import given
>>> from tico_observers import RangeStatistic
>>> @given(st.data(), tensors(shape=(3, 4)))
... def test_layout_does_not_matter(data, x):
...     other = data.draw(layouts(x))
...     assert RangeStatistic().observe(x) == RangeStatistic().observe(other)
>>> test_layout_does_not_matter()
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tico_config import (
    FLOAT_FORMATS,
    DType,
    EMASpec,
    EntropySpec,
    FloatFormat,
    Granularity,
    HistogramSpec,
    MinMaxSpec,
    MissingExtraError,
    MSESpec,
    ObserverSpec,
    PercentileSpec,
    PerChannel,
    PerGroup,
    PerTensor,
    Problem,
    QuantSpec,
    affine,
    no_quant,
)
from tico_observers._affine_params import AffineParams, statistic_shape
from tico_observers._tensor_checks import OnNonfinite

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise MissingExtraError(
        Problem(
            field="hypothesis",
            expected="installed",
            remedy="install the extra testing: tico-observers[testing]",
        )
    ) from error

__all__ = [
    "affine_specs",
    "float_dtypes",
    "float_formats",
    "granularities",
    "integer_dtypes",
    "layouts",
    "observer_specs",
    "params_for",
    "partitions",
    "quant_specs",
    "shapes",
    "tensors",
]

_CHOICES: tuple[OnNonfinite, ...] = ("error", "ignore")

LARGEST = 2.0**120
"""Bound on the magnitudes drawn unless another is given: sums and differences of a few stay finite."""


def float_dtypes() -> st.SearchStrategy[torch.dtype]:
    """Draw one of the four floating-point formats that observers take."""
    return st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])


def integer_dtypes(max_bits: int = 16) -> st.SearchStrategy[DType]:
    """Draw the format of codes, of 2 to `max_bits` bits, signed or not."""
    return st.builds(DType, st.integers(2, max_bits), st.booleans())


def shapes(
    min_dims: int = 1, max_dims: int = 4, min_side: int = 1, max_side: int = 5
) -> st.SearchStrategy[torch.Size]:
    """Draw a shape of `min_dims` to `max_dims` axes of `min_side` to `max_side` elements each."""
    sides = st.lists(st.integers(min_side, max_side), min_size=min_dims, max_size=max_dims)
    return sides.map(torch.Size)


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    largest: float = LARGEST,
) -> Tensor:
    """Draw a finite contiguous tensor of magnitudes up to `largest`, with subnormals and both zeros."""
    size = draw(shapes()) if shape is None else torch.Size(shape)
    kind = draw(float_dtypes()) if dtype is None else dtype
    bound = min(largest, torch.finfo(kind).max)
    flat = draw(st.lists(_elements(kind, bound), min_size=size.numel(), max_size=size.numel()))
    return torch.tensor(flat, dtype=torch.float64).to(kind).view(size)


def _elements(dtype: torch.dtype, bound: float) -> st.SearchStrategy[float]:
    whole = st.integers(-8, 8).map(lambda n: n / 4)
    normal = torch.finfo(dtype).smallest_normal
    special = [0.0, -0.0, bound, -bound, normal, -normal / 2]
    return st.one_of(whole, st.floats(-bound, bound), st.sampled_from(special))


@st.composite
def layouts(draw: st.DrawFn, x: Tensor) -> Tensor:
    """Draw a tensor equal to `x` that lies otherwise in memory.

    Its axes are permuted (as by a transpose or channels-last), and it is a slice that starts at some offset
    and leaves gaps; `x` is expanded where an axis holds one value repeated.
    """
    order = draw(st.permutations(range(x.ndim)))
    offsets = [draw(st.integers(0, 3)) for _ in order]
    steps = [draw(st.integers(1, 3)) for _ in order]
    sides = [offset + x.shape[axis] * step for axis, offset, step in zip(order, offsets, steps, strict=True)]
    storage = torch.full(sides, torch.nan, dtype=x.dtype)
    for axis, (offset, step) in enumerate(zip(offsets, steps, strict=True)):
        storage = storage.narrow(axis, offset, storage.shape[axis] - offset)
        index = [slice(None)] * axis + [slice(None, None, step)]
        storage = storage[tuple(index)]
    view = storage.permute([order.index(axis) for axis in range(x.ndim)])
    view.copy_(x)
    return _expanded(view) if draw(st.booleans()) else view


def _expanded(x: Tensor) -> Tensor:
    for axis in range(x.ndim):
        if x.shape[axis] > 1:
            first = x.narrow(axis, 0, 1).expand_as(x)
            if _same_bits(first, x):
                x = first
    return x


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())


@st.composite
def partitions(draw: st.DrawFn, x: Tensor, axis: int = 0) -> list[Tensor]:
    """Draw a split of `x` along `axis` into consecutive parts, empty ones among them, that join to `x`."""
    length = x.shape[axis]
    cuts = sorted(draw(st.lists(st.integers(0, length), max_size=4)))
    edges = pairwise([0, *cuts, length])
    return [x.narrow(axis, start, stop - start) for start, stop in edges]


@st.composite
def granularities(draw: st.DrawFn, ndim: int) -> Granularity:
    """Draw a granularity that a statistic can have over tensors of `ndim` axes."""
    if not ndim:
        return PerTensor()
    axis = draw(st.integers(-ndim, ndim - 1))
    size = draw(st.integers(1, 4))
    choices: list[Granularity] = [PerTensor(), PerChannel(axis), PerGroup(axis, size)]
    return draw(st.sampled_from(choices))


def observer_specs() -> st.SearchStrategy[ObserverSpec]:
    """Draw the spec of an observer that determines an affine grid."""
    ends = st.tuples(st.floats(0.0, 40.0), st.floats(60.0, 100.0))
    return st.one_of(
        st.builds(MinMaxSpec),
        st.builds(HistogramSpec),
        st.builds(EMASpec, st.floats(0.0, 0.99)),
        ends.map(lambda pair: PercentileSpec(*pair)),
        st.builds(MSESpec, st.integers(1, 8)),
        st.builds(EntropySpec, st.integers(1, 8)),
    )


@st.composite
def affine_specs(draw: st.DrawFn, observer: ObserverSpec | None = None) -> QuantSpec:
    """Draw the spec of an affine grid, with the observer given or any."""
    granularity = draw(st.one_of(st.none(), granularities(2)))
    return affine(
        draw(integer_dtypes()),
        granularity=granularity,
        observer=draw(observer_specs()) if observer is None else observer,
        on_nonfinite=draw(st.sampled_from(_CHOICES)),
    )


def quant_specs() -> st.SearchStrategy[QuantSpec]:
    """Draw any spec: of integers, of floating-point elements, or none."""
    return st.one_of(affine_specs(), st.builds(affine, float_formats()), st.builds(no_quant))


def float_formats() -> st.SearchStrategy[FloatFormat]:
    """Draw a format of floating-point elements.

    >>> from hypothesis import find
    >>> find(float_formats(), lambda dtype: dtype.bits == 6)
    MXFP6(element='e2m3')
    """
    return st.sampled_from(FLOAT_FORMATS)


@st.composite
def params_for(
    draw: st.DrawFn, x: Tensor, dtype: DType | None = None, granularity: Granularity | None = None
) -> AffineParams:
    """Draw a grid that fits the shape of `x`, of any scale from 2**-60 to 2**60."""
    kind = draw(integer_dtypes()) if dtype is None else dtype
    units = draw(granularities(x.ndim)) if granularity is None else granularity
    shape = statistic_shape(units, x.shape) or torch.Size(())
    count = shape.numel()
    mantissas = draw(st.lists(st.floats(1.0, 2.0, width=32), min_size=count, max_size=count))
    exponent = draw(st.integers(-60, 60))
    zero_points = draw(st.lists(st.integers(kind.qmin, kind.qmax), min_size=count, max_size=count))
    return AffineParams(
        scale=(torch.tensor(mantissas, dtype=torch.float64) * 2.0**exponent).view(shape),
        zero_point=torch.tensor(zero_points, dtype=torch.int64).view(shape),
        dtype=kind,
        granularity=units,
    )
