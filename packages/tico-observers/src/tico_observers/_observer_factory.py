"""From what a spec asks for to the observer that gives it."""

from __future__ import annotations

import copy
import functools

from typing_extensions import assert_never

from tico_config import (
    CustomObserverSpec,
    EMASpec,
    EntropySpec,
    Granularity,
    HistogramSpec,
    MinMaxSpec,
    MSESpec,
    NoQuant,
    PercentileSpec,
    QuantSpec,
)
from tico_observers._custom_observers import AnyObserver, custom_observer
from tico_observers._gridless_observers import IdentityObserver
from tico_observers._histogram import HistogramStatistic
from tico_observers._histogram_observers import (
    EntropyObserver,
    HistogramObserver,
    MSEObserver,
    PercentileObserver,
)
from tico_observers._observer import Observer
from tico_observers._range_observers import EMAObserver, MinMaxObserver


def observer_for(spec: QuantSpec, name: str, default: Granularity) -> AnyObserver:
    """Return the observer that `spec` asks for; `default` is the granularity of the point it watches.

    Raises:
        UnsupportedError: it asks for an observer of another package, which none has registered.

    >>> from tico_config import DType, PerTensor, affine
    >>> observer_for(affine(DType.int(8)), "act_in", PerTensor())
    MinMaxObserver('act_in', int8 symmetric, PerTensor())
    """
    observer = copy.copy(_unnamed(spec, default))
    observer.name = name
    return observer


@functools.lru_cache(maxsize=64)
def _unnamed(spec: QuantSpec, default: Granularity) -> AnyObserver:
    """Return the observer that all points which ask for the same have a copy of."""
    name = ""
    units, on_nonfinite = spec.granularity_or(default), spec.on_nonfinite
    grid = (name, spec.dtype, spec.qscheme)
    match spec.observer:
        case MinMaxSpec():
            return MinMaxObserver(*grid, granularity=units, on_nonfinite=on_nonfinite)
        case EMASpec(momentum=momentum):
            return EMAObserver(*grid, granularity=units, on_nonfinite=on_nonfinite, momentum=momentum)
        case NoQuant():
            return IdentityObserver(name)
        case CustomObserverSpec() as own:
            return custom_observer(own, spec, units)
        case other:
            return _histogram_observer(other, spec, name, units)


def _histogram_observer(
    kind: HistogramSpec | PercentileSpec | MSESpec | EntropySpec,
    spec: QuantSpec,
    name: str,
    units: Granularity,
) -> Observer[HistogramStatistic]:
    grid, ignored = (name, spec.dtype, spec.qscheme), spec.on_nonfinite
    match kind:
        case HistogramSpec():
            return HistogramObserver(*grid, granularity=units, on_nonfinite=ignored)
        case PercentileSpec(lower=low, upper=high):
            return PercentileObserver(*grid, granularity=units, on_nonfinite=ignored, lower=low, upper=high)
        case MSESpec(steps=steps):
            return MSEObserver(*grid, granularity=units, on_nonfinite=ignored, steps=steps)
        case EntropySpec(steps=steps):
            return EntropyObserver(*grid, granularity=units, on_nonfinite=ignored, steps=steps)
        case _:
            assert_never(kind)
