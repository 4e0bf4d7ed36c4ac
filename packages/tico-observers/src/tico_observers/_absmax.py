"""Largest magnitude of each channel, as SmoothQuant needs it of activations and weights."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor
from typing_extensions import Self

from tico_config import Granularity, PerChannel
from tico_observers._range import RangeStatistic, seen_extremes
from tico_observers._statistic import Statistic
from tico_observers._tensor_checks import OnNonfinite


@attrs.frozen(kw_only=True)
class AbsMaxStatistic(Statistic):
    """The largest magnitude seen of each channel: commutative, associative and idempotent, bit for bit.

    The channels are those of the last axis unless `granularity` says otherwise.

    >>> AbsMaxStatistic().observe(torch.tensor([[1.0, -4.0], [-3.0, 2.0]])).maximum().tolist()
    [3.0, 4.0]
    """

    __hash__ = None  # type: ignore[assignment]

    granularity: Granularity = PerChannel(axis=-1)
    on_nonfinite: OnNonfinite = "error"
    seen: RangeStatistic = attrs.field()

    @seen.default
    def _no_data(self) -> RangeStatistic:
        return RangeStatistic(granularity=self.granularity, on_nonfinite=self.on_nonfinite)

    @property
    def is_empty(self) -> bool:
        """Whether no element was seen."""
        return self.seen.is_empty

    @property
    def dropped(self) -> int:
        """How many elements were left out because they are not finite."""
        return self.seen.dropped

    def observe(self, x: Tensor) -> Self:
        """Return the magnitudes of everything seen so far and `x`; an empty `x` changes nothing."""
        return attrs.evolve(self, seen=self.seen.observe(x))

    def merge(self, other: Self) -> Self:
        """Return the magnitudes of everything that both have seen."""
        return attrs.evolve(self, seen=self.seen.merge(other.seen))

    def maximum(self) -> Tensor:
        """Return the largest magnitude of each channel.

        Raises:
            CalibrationError: no data were seen, or none of some channel.
        """
        extremes = seen_extremes(self.seen.extremes)
        return torch.maximum(extremes.maximum, -extremes.minimum)
