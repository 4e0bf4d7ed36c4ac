"""Observers of ranges: smallest and largest value, or their moving average."""

from __future__ import annotations

from typing import final

from tico_config import EMASpec, FloatFormat, Granularity, NumberFormat, QScheme
from tico_observers._affine_params import AffineParams
from tico_observers._ema import EMAStatistic
from tico_observers._observer import Observer
from tico_observers._range import RangeStatistic
from tico_observers._tensor_checks import OnNonfinite


@final
class MinMaxObserver(Observer[RangeStatistic]):
    """The grid spans the smallest and the largest value seen.

    >>> import torch
    >>> from tico_config import DType
    >>> observer = MinMaxObserver("act_in", DType.uint(8))
    >>> observer.collect(torch.tensor([-1.0, 4.1]))
    >>> scale, zero_point = observer.compute_qparams()
    >>> round(scale.item(), 4), zero_point.item()
    (0.02, 50)
    """

    def _empty(self) -> RangeStatistic:
        return RangeStatistic(granularity=self.granularity, on_nonfinite=self.on_nonfinite)

    def _grid(self) -> AffineParams:
        return self._spanning(self._seen.extremes)


@final
class EMAObserver(Observer[EMAStatistic]):
    """The grid spans the exponential moving average of the batches' ranges; the order of data matters.

    Raises:
        ConfigError: the momentum is not from 0 to 1, 1 excluded.

    >>> import torch
    >>> from tico_config import DType
    >>> observer = EMAObserver("act_in", DType.uint(8), momentum=0.5)
    >>> observer.collect(torch.tensor([0.0, 255.0]))
    >>> observer.compute_qparams()[0].item()
    1.0
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
        momentum: float = 0.9,
    ) -> None:
        self.momentum = EMASpec(momentum).momentum
        super().__init__(
            name, dtype, qscheme, channel_axis, granularity=granularity, on_nonfinite=on_nonfinite
        )

    def _empty(self) -> EMAStatistic:
        return EMAStatistic(
            momentum=self.momentum, granularity=self.granularity, on_nonfinite=self.on_nonfinite
        )

    def _grid(self) -> AffineParams:
        return self._spanning(self._seen.extremes)
