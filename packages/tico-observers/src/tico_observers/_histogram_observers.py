"""Observers on top of the histogram: exact range, percentiles, least squared error, least divergence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch

from tico_config import (
    ConfigError,
    EntropySpec,
    FloatFormat,
    Granularity,
    MSESpec,
    NumberFormat,
    PercentileSpec,
    Problem,
    QScheme,
)
from tico_observers._affine_params import AffineParams
from tico_observers._histogram import HistogramStatistic
from tico_observers._observer import Observer
from tico_observers._range import Extremes, seen_extremes
from tico_observers._range_search import least_divergence_range, least_error_range, percentile_range
from tico_observers._scale_search import least_error_params
from tico_observers._tensor_checks import OnNonfinite


class _HistogramBasedObserver(Observer[HistogramStatistic], ABC):
    """An observer whose grid is computed from the histogram of what was seen."""

    def _empty(self) -> HistogramStatistic:
        return HistogramStatistic(granularity=self.granularity, on_nonfinite=self.on_nonfinite)


class _HistogramRangeObserver(_HistogramBasedObserver, ABC):
    """An observer whose range is computed from the histogram of what was seen."""

    def _grid(self) -> AffineParams:
        return self._spanning(self._chosen_range())

    @abstractmethod
    def _chosen_range(self) -> Extremes | None:
        """Return the range that the grid spans."""


@final
class HistogramObserver(_HistogramRangeObserver):
    """The grid spans the exact range; the counts are there for whoever wants to look at them.

    >>> import torch
    >>> from tico_config import DType
    >>> observer = HistogramObserver("act_in", DType.uint(8))
    >>> observer.collect(torch.tensor([0.0, 1.0, 1.0, 255.0]))
    >>> observer.compute_qparams()[0].item(), observer.statistics.counts.tolist()
    (1.0, [1, 2, 1])
    """

    def _chosen_range(self) -> Extremes | None:
        return self._seen.extremes


@final
class PercentileObserver(_HistogramRangeObserver):
    """The grid spans the values between two percentiles of everything seen, in percent.

    Where both are 0 although other values were seen, as in a map with one peak, it spans the whole range: no
    grid loses everything.

    Raises:
        ConfigError: the percentiles are not from 0 to 100, the lower one below the upper one.

    >>> import torch
    >>> from tico_config import DType
    >>> observer = PercentileObserver("act_in", DType.uint(8), lower=0.0, upper=99.0)
    >>> observer.collect(torch.cat([torch.full((999,), 51.0), torch.tensor([1e6])]))
    >>> round(observer.compute_qparams()[0].item(), 6)
    0.2
    """

    def __init__(
        self,
        name: str = "act_in",
        dtype: NumberFormat | type[FloatFormat] | None = None,
        qscheme: QScheme | None = None,
        channel_axis: int | None = None,
        *,
        granularity: Granularity | None = None,
        on_nonfinite: OnNonfinite = "error",
        lower: float = 0.01,
        upper: float = 99.99,
    ) -> None:
        self.percentiles = PercentileSpec(lower, upper)
        super().__init__(
            name, dtype, qscheme, channel_axis, granularity=granularity, on_nonfinite=on_nonfinite
        )

    def _chosen_range(self) -> Extremes:
        chosen, seen = percentile_range(self._seen, self.percentiles), seen_extremes(self._seen.extremes)
        lost = (chosen.minimum == 0) & (chosen.maximum == 0)
        return Extremes(
            minimum=torch.where(lost, seen.minimum.double(), chosen.minimum),
            maximum=torch.where(lost, seen.maximum.double(), chosen.maximum),
        )


@final
class MSEObserver(_HistogramBasedObserver):
    """The grid spans the part of the range that has the smallest squared error, among `steps` candidates.

    Raises:
        ConfigError: `steps` is not from 1 to 10,000.

    >>> import torch
    >>> from tico_config import DType
    >>> observer = MSEObserver("act_in", DType.int(4))
    >>> observer.collect(torch.cat([torch.linspace(-1.0, 1.0, 9999), torch.tensor([8.0])]))
    >>> observer.compute_qparams()[0].item() < 0.4
    True
    """

    def __init__(
        self,
        name: str = "act_in",
        dtype: NumberFormat | type[FloatFormat] | None = None,
        qscheme: QScheme | None = None,
        channel_axis: int | None = None,
        *,
        granularity: Granularity | None = None,
        on_nonfinite: OnNonfinite = "error",
        steps: int = 100,
    ) -> None:
        self.search = MSESpec(steps)
        super().__init__(
            name, dtype, qscheme, channel_axis, granularity=granularity, on_nonfinite=on_nonfinite
        )

    def _grid(self) -> AffineParams:
        if isinstance(self.dtype, FloatFormat):
            return least_error_params(self._seen, self.search, self.dtype)
        return self._spanning(
            least_error_range(self._seen, self.search, self.dtype, symmetric=self.symmetric)
        )


@final
class EntropyObserver(_HistogramBasedObserver):
    """The grid spans the part of the range that has the smallest divergence, among `steps` candidates.

    Raises:
        ConfigError: `steps` is not from 1 to 10,000, or `dtype` is no `DType`.

    >>> import torch
    >>> from tico_config import DType
    >>> observer = EntropyObserver("act_in", DType.int(8), steps=10)
    >>> observer.collect(torch.linspace(-1.0, 1.0, 999))
    >>> observer.compute_qparams()[0].item() <= 1 / 127
    True
    """

    def __init__(
        self,
        name: str = "act_in",
        dtype: NumberFormat | type[FloatFormat] | None = None,
        qscheme: QScheme | None = None,
        channel_axis: int | None = None,
        *,
        granularity: Granularity | None = None,
        on_nonfinite: OnNonfinite = "error",
        steps: int = 100,
    ) -> None:
        self.search = EntropySpec(steps)
        super().__init__(
            name, dtype, qscheme, channel_axis, granularity=granularity, on_nonfinite=on_nonfinite
        )
        form = self.dtype
        if isinstance(form, FloatFormat):
            raise ConfigError(
                Problem(field="dtype", value=form, expected="integers, whose grids are compared")
            )
        self._integers = form

    def _grid(self) -> AffineParams:
        found = least_divergence_range(self._seen, self.search, self._integers, symmetric=self.symmetric)
        return self._spanning(found)
