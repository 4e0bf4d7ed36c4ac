"""Histogram: how often each value was seen, to 8 significant bits, beside the exact range."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor
from typing_extensions import Self

from tico_config import Granularity, PerTensor
from tico_observers._bins import BINS, OFFSET, bin_values, merged_counts, unit_counts
from tico_observers._range import Extremes, extremes_of, merged_extremes, seen_extremes
from tico_observers._statistic import Statistic, require_same
from tico_observers._tensor_checks import OnNonfinite


def _integers() -> Tensor:
    field: Tensor = attrs.field(
        factory=lambda: torch.empty(0, dtype=torch.int64), eq=attrs.cmp_using(eq=torch.equal)
    )
    return field


@attrs.frozen(kw_only=True)
class HistogramStatistic(Statistic):
    """Counts over bins that never depend on the data: commutative and exact, bit for bit.

    Bin b stands for the bfloat16 with the sign of b and the bits ``abs(b)``; each value is counted at the
    nearest one. Only bins that occur are held: `keys`, ascending, are ``unit * 65536 + 32768 + bin``, where
    units are numbered in the order of the flattened `extremes`, and `counts` says how often (int64, exact up
    to 2**63). `extremes` is the exact range.

    >>> seen = HistogramStatistic().observe(torch.tensor([1.0, 1.001, -2.0]))
    >>> seen.values().tolist(), seen.counts.tolist(), seen.extremes.maximum.item() > 1.0
    ([-2.0, 1.0], [1, 2], True)
    """

    __hash__ = None  # type: ignore[assignment]

    granularity: Granularity = PerTensor()
    extremes: Extremes | None = None
    keys: Tensor = _integers()
    counts: Tensor = _integers()
    on_nonfinite: OnNonfinite = "error"
    dropped: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether no element was seen."""
        return self.extremes is None

    def observe(self, x: Tensor) -> Self:
        """Return the histogram of everything seen so far and `x`; an empty `x` changes nothing."""
        with torch.inference_mode(mode=False):
            extremes, dropped = extremes_of(x, self.granularity, self.on_nonfinite, "histogram")
            if extremes is None:
                return attrs.evolve(self, dropped=self.dropped + dropped) if dropped else self
            finite = x.isfinite() if dropped else None
            keys, counts = unit_counts(x, self.granularity, finite)
            return self.merge(
                attrs.evolve(self, extremes=extremes, keys=keys, counts=counts, dropped=dropped)
            )

    def merge(self, other: Self) -> Self:
        """Return the histogram of everything that both have seen."""
        require_same("granularity", self.granularity, other.granularity)
        require_same("on_nonfinite", self.on_nonfinite, other.on_nonfinite)
        dropped = self.dropped + other.dropped
        extremes = merged_extremes(self.extremes, other.extremes)
        if extremes is None or self.is_empty or other.is_empty:
            filled = other if self.is_empty else self
            return attrs.evolve(filled, dropped=dropped)
        keys, counts = merged_counts(
            (self.keys, self.counts), (other.keys, other.counts), extremes.minimum.numel()
        )
        return attrs.evolve(self, extremes=extremes, keys=keys, counts=counts, dropped=dropped)

    def units(self) -> Tensor:
        """Return the number of the unit that each of `keys` belongs to."""
        return self.keys // BINS

    def values(self) -> Tensor:
        """Return the value, float64, that each of `keys` stands for: its bin's, moved into the unit's range.

        Raises:
            CalibrationError: no data were seen, or none of some unit.
        """
        extremes = seen_extremes(self.extremes)
        units = self.units()
        low, high = (end.flatten().double()[units] for end in (extremes.minimum, extremes.maximum))
        return bin_values(self.keys % BINS - OFFSET).clamp(low, high)

    def totals(self) -> Tensor:
        """Return how many elements were seen of each unit, in the shape of the range.

        Raises:
            CalibrationError: no data were seen, or none of some unit.
        """
        shape = seen_extremes(self.extremes).minimum.shape
        totals = self.counts.new_zeros(shape.numel())
        return totals.index_add_(0, self.units(), self.counts).view(shape)
