"""From what a spec asks for to the observer that gives it."""

from __future__ import annotations

from typing import TypeAlias

from typing_extensions import assert_never

from tico_config import (
    EMASpec,
    EntropySpec,
    Granularity,
    HistogramSpec,
    MinMaxSpec,
    MSESpec,
    MXSpec,
    NoQuant,
    PercentileSpec,
    QuantSpec,
)
from tico_observers._ema import EMAStatistic
from tico_observers._gridless_observers import IdentityObserver, MXObserver
from tico_observers._histogram import HistogramStatistic
from tico_observers._histogram_observers import (
    EntropyObserver,
    HistogramObserver,
    MSEObserver,
    PercentileObserver,
)
from tico_observers._identity import IdentityStatistic
from tico_observers._observer import Observer
from tico_observers._range import RangeStatistic
from tico_observers._range_observers import EMAObserver, MinMaxObserver

AnyObserver: TypeAlias = (
    Observer[RangeStatistic]
    | Observer[EMAStatistic]
    | Observer[HistogramStatistic]
    | Observer[IdentityStatistic]
)


def observer_for(spec: QuantSpec, name: str, default: Granularity) -> AnyObserver:
    """Return the observer that `spec` asks for; `default` is the granularity of the point it watches.

    >>> from tico_config import DType, PerTensor, affine
    >>> observer_for(affine(DType.int(8)), "act_in", PerTensor())
    MinMaxObserver('act_in', int8 symmetric, PerTensor())
    """
    granularity = spec.granularity_or(default)
    match spec.observer:
        case MinMaxSpec():
            return MinMaxObserver(name, spec.dtype, spec.qscheme, granularity=granularity)
        case EMASpec(momentum=momentum):
            return EMAObserver(name, spec.dtype, spec.qscheme, granularity=granularity, momentum=momentum)
        case MXSpec(format=element, axis=axis):
            return MXObserver(name, format=element, axis=axis)
        case NoQuant():
            return IdentityObserver(name)
        case other:
            return _histogram_observer(other, spec, name, granularity)


def _histogram_observer(
    kind: HistogramSpec | PercentileSpec | MSESpec | EntropySpec,
    spec: QuantSpec,
    name: str,
    granularity: Granularity,
) -> Observer[HistogramStatistic]:
    dtype, qscheme = spec.dtype, spec.qscheme
    match kind:
        case HistogramSpec():
            return HistogramObserver(name, dtype, qscheme, granularity=granularity)
        case PercentileSpec(lower=low, upper=high):
            return PercentileObserver(name, dtype, qscheme, granularity=granularity, lower=low, upper=high)
        case MSESpec(steps=steps):
            return MSEObserver(name, dtype, qscheme, granularity=granularity, steps=steps)
        case EntropySpec(steps=steps):
            return EntropyObserver(name, dtype, qscheme, granularity=granularity, steps=steps)
        case _:
            assert_never(kind)
