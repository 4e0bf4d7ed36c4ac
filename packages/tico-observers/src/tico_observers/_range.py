"""Range: the smallest and the largest value of each unit of a granularity."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor
from typing_extensions import Self

from tico_config import (
    CalibrationError,
    Found,
    Granularity,
    NumericsError,
    PerChannel,
    PerGroup,
    PerTensor,
    Problem,
)
from tico_observers._affine_params import statistic_shape
from tico_observers._statistic import Statistic, require_same
from tico_observers._tensor_checks import (
    OnNonfinite,
    arithmetic_dtype,
    require_choice,
    require_finite,
    require_float_tensor,
)


@attrs.frozen(kw_only=True)
class Extremes:
    """Smallest and largest values, two tensors of one shape.

    A unit of which nothing was seen holds infinity as its minimum and minus infinity as its maximum.

    >>> one, other = torch.tensor(1.0), torch.tensor(2.0)
    >>> Extremes(minimum=one, maximum=one).merge(Extremes(minimum=other, maximum=other)).maximum.item()
    2.0
    """

    __hash__ = None  # type: ignore[assignment]

    minimum: Tensor = attrs.field(eq=attrs.cmp_using(eq=torch.equal))
    maximum: Tensor = attrs.field(eq=attrs.cmp_using(eq=torch.equal))

    def merge(self, other: Extremes) -> Extremes:
        """Return the extremes of both.

        Raises:
            CalibrationError: their shapes differ.
        """
        require_same_units(self, other)
        return Extremes(
            minimum=torch.minimum(self.minimum, other.minimum),
            maximum=torch.maximum(self.maximum, other.maximum),
        )

    @property
    def is_seen(self) -> Tensor:
        """Whether anything was seen, for each unit."""
        return self.minimum <= self.maximum


@attrs.frozen(kw_only=True)
class RangeStatistic(Statistic):
    """The range seen: commutative, associative and idempotent, bit for bit.

    With ``on_nonfinite="ignore"``, NaN and infinity are left out and counted in `dropped`.

    >>> seen = RangeStatistic().observe(torch.tensor([1.0, -2.0])).observe(torch.tensor([3.0]))
    >>> seen.extremes.minimum.item(), seen.extremes.maximum.item()
    (-2.0, 3.0)
    """

    __hash__ = None  # type: ignore[assignment]

    granularity: Granularity = PerTensor()
    extremes: Extremes | None = None
    on_nonfinite: OnNonfinite = "error"
    dropped: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether no element was seen."""
        return self.extremes is None

    def observe(self, x: Tensor) -> Self:
        """Return the range of everything seen so far and `x`; an empty `x` changes nothing."""
        with torch.inference_mode(mode=False):
            extremes, dropped = extremes_of(x, self.granularity, self.on_nonfinite)
            if extremes is None and not dropped:
                return self
            return self.merge(attrs.evolve(self, extremes=extremes, dropped=dropped))

    def merge(self, other: Self) -> Self:
        """Return the range of everything that both have seen."""
        require_same("granularity", self.granularity, other.granularity)
        require_same("on_nonfinite", self.on_nonfinite, other.on_nonfinite)
        dropped = self.dropped + other.dropped
        return attrs.evolve(self, extremes=merged_extremes(self.extremes, other.extremes), dropped=dropped)


def require_same_units(one: Extremes, other: Extremes) -> None:
    """Refuse ranges of different shapes.

    Raises:
        CalibrationError: with both shapes.
    """
    mine, theirs = (tuple(extremes.minimum.shape) for extremes in (one, other))
    if mine != theirs:
        found = Found(f"one of shape {theirs}")
        raise CalibrationError(Problem(field="x", value=found, expected=f"a range of shape {mine}"))


def merged_extremes(one: Extremes | None, other: Extremes | None) -> Extremes | None:
    """Return the extremes of both, where None stands for no data."""
    if one is None or other is None:
        return other if one is None else one
    return one.merge(other)


def seen_extremes(extremes: Extremes | None) -> Extremes:
    """Return `extremes` if data were seen of every unit.

    Raises:
        CalibrationError: data are missing.
    """
    if extremes is None:
        raise CalibrationError(Problem(value=Found("none"), expected="data for the grid"))
    unseen = int((~extremes.is_seen).sum())
    if unseen:
        found = Found(f"none for {unseen} of {extremes.minimum.numel()}")
        raise CalibrationError(Problem(value=found, expected="finite data for every channel or group"))
    return extremes


LARGEST_PLAUSIBLE = 1e30
"""What a trained network computes stays far below; a mask's stand-in for minus infinity does not."""


def require_plausible(extremes: Extremes) -> Extremes:
    """Return `extremes`, the ends of ranges that grids are to span, if a trained network can mean them.

    Raises:
        NumericsError: an end is `LARGEST_PLAUSIBLE` or beyond.

    >>> require_plausible(Extremes(minimum=torch.tensor(-1.0), maximum=torch.tensor(2.0))).maximum.item()
    2.0
    """
    low, high = extremes.minimum.amin().item(), extremes.maximum.amax().item()
    if max(high, -low) < LARGEST_PLAUSIBLE:
        return extremes
    found = Found(f"{low:.4g} to {high:.4g}")
    raise NumericsError(
        Problem(
            field="range",
            value=found,
            expected=f"within {LARGEST_PLAUSIBLE:g} of 0",
            sentence=f"its range is {found}, which no trained network computes; such numbers are a mask's "
            "stand-in for minus infinity, and next to them everything else would be 0",
            remedy="keep the mask out of it, or leave it in float by an override with no_quant()",
        )
    )


def extremes_of(
    x: Tensor, granularity: Granularity, on_nonfinite: OnNonfinite = "error", name: str = "range"
) -> tuple[Extremes | None, int]:
    """Return the extremes of each unit of `granularity` in `x`, and how many elements were left out.

    The extremes are None where `x` has no element, or no finite one.

    Raises:
        UnsupportedError: `x` is not a dense floating-point tensor.
        NumericsError: `x` holds NaN or infinity, and `on_nonfinite` does not say to ignore them.
        CalibrationError: `x` has no such axis, or the granularity has no fixed units (per token).
    """
    require_choice(on_nonfinite)
    require_float_tensor(x, name)
    _require_units(x, granularity)
    if x.numel() == 0:
        return None, 0
    minimum, maximum = _reduced(x.detach(), granularity)
    if math.isfinite(minimum.amin().item()) and math.isfinite(maximum.amax().item()):
        return _widened(x, minimum, maximum), 0
    if on_nonfinite == "error":
        require_finite(x, name)
    return _finite_extremes(x.detach(), granularity)


def _require_units(x: Tensor, granularity: Granularity) -> None:
    shape = statistic_shape(granularity, x.shape)
    if shape is None or not isinstance(granularity, PerTensor | PerChannel | PerGroup):
        found = Found(f"a tensor of shape {tuple(x.shape)}")
        raise CalibrationError(Problem(field="x", value=found, expected=f"one that has {granularity}"))


def _finite_extremes(x: Tensor, granularity: Granularity) -> tuple[Extremes | None, int]:
    finite = torch.isfinite(x)
    dropped = int((~finite).sum())
    if dropped == x.numel():
        return None, dropped
    minimum, _ = _reduced(x.where(finite, torch.inf), granularity)
    _, maximum = _reduced(x.where(finite, -torch.inf), granularity)
    return _widened(x, minimum, maximum), dropped


def _widened(x: Tensor, minimum: Tensor, maximum: Tensor) -> Extremes:
    # Adding 0.0 turns -0.0 into 0.0, so that the bits do not depend on which zero came first.
    dtype = arithmetic_dtype(x)
    return Extremes(minimum=minimum.to(dtype) + 0.0, maximum=maximum.to(dtype) + 0.0)


def _reduced(x: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    match granularity:
        case PerChannel(axis=axis) if x.ndim > 1:
            others = [i for i in range(x.ndim) if i != axis % x.ndim]
            return x.amin(others), x.amax(others)
        case PerChannel():
            return x, x
        case PerGroup(axis=axis, size=size):
            tail = -x.shape[axis] % size
            last = x.movedim(axis, -1)
            # The last group is filled up with copies of its own last value, which change no extreme.
            filled = torch.cat([last, last[..., -1:].expand(*last.shape[:-1], tail)], -1) if tail else last
            groups = filled.reshape(*last.shape[:-1], -1, size)
            return groups.amin(-1).movedim(-1, axis), groups.amax(-1).movedim(-1, axis)
        case _:
            extremes = torch.aminmax(x)
            return extremes.min, extremes.max
