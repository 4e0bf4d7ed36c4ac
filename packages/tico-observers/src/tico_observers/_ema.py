"""Exponential moving average of batch ranges: ordered, so it cannot be merged."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor
from typing_extensions import Self

from tico_config import Found, Granularity, PerTensor, Problem, UnsupportedError
from tico_observers._range import Extremes, extremes_of, require_same_units
from tico_observers._statistic import Statistic, require_same
from tico_observers._tensor_checks import OnNonfinite


@attrs.frozen(kw_only=True)
class EMAStatistic(Statistic):
    """The range averaged over batches: ``new = momentum * old + (1 - momentum) * batch``; the first as it is.

    >>> seen = EMAStatistic(momentum=0.5).observe(torch.tensor([4.0])).observe(torch.tensor([8.0]))
    >>> seen.extremes.maximum.item()
    6.0
    """

    __hash__ = None  # type: ignore[assignment]

    momentum: float
    granularity: Granularity = PerTensor()
    extremes: Extremes | None = None
    on_nonfinite: OnNonfinite = "error"
    dropped: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether no element was seen."""
        return self.extremes is None

    def observe(self, x: Tensor) -> Self:
        """Return the average with the range of `x` as the newest; an empty `x` changes nothing."""
        with torch.inference_mode(mode=False):
            newest, dropped = extremes_of(x, self.granularity, self.on_nonfinite, "EMA")
            if newest is not None and self.extremes is not None:
                newest = self._mixed(self.extremes, newest)
            return attrs.evolve(self, extremes=newest or self.extremes, dropped=self.dropped + dropped)

    def _mixed(self, old: Extremes, new: Extremes) -> Extremes:
        require_same_units(old, new)
        minimum, maximum = (
            self._averaged(old.minimum, new.minimum),
            self._averaged(old.maximum, new.maximum),
        )
        # A unit with nothing finite in one of the two keeps what the other shows.
        return Extremes(
            minimum=torch.where(minimum.isfinite(), minimum, torch.minimum(old.minimum, new.minimum)),
            maximum=torch.where(maximum.isfinite(), maximum, torch.maximum(old.maximum, new.maximum)),
        )

    def _averaged(self, old: Tensor, new: Tensor) -> Tensor:
        # In float64, so that the average of two finite values is finite, then as wide as they are.
        average = self.momentum * old.double() + (1.0 - self.momentum) * new.double()
        return average.to(torch.promote_types(old.dtype, new.dtype)) + 0.0

    def merge(self, other: Self) -> Self:
        """Refuse: the average depends on the order of the batches, which two averages no longer tell.

        Raises:
            UnsupportedError: always, unless one of the two is empty.
            CalibrationError: the two were not made with the same settings.
        """
        for field in ("momentum", "granularity", "on_nonfinite"):
            require_same(field, getattr(self, field), getattr(other, field))
        if self.is_empty or other.is_empty:
            newest = self.extremes or other.extremes
            return attrs.evolve(self, extremes=newest, dropped=self.dropped + other.dropped)
        expected = "statistics that do not depend on the order of the data"
        remedy = "take MinMaxSpec, or observe all data in one place"
        raise UnsupportedError(Problem(field="merge", value=Found("EMA"), expected=expected, remedy=remedy))
