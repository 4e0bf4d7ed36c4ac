"""Observers of other packages, each by the class of the spec that asks for it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final, Generic, TypeAlias, TypeVar, cast

import attrs

from tico_config import (
    ConfigError,
    CustomObserverSpec,
    Found,
    Granularity,
    Problem,
    QuantSpec,
    UnsupportedError,
)
from tico_observers._ema import EMAStatistic
from tico_observers._histogram import HistogramStatistic
from tico_observers._identity import IdentityStatistic
from tico_observers._observer import Observer, S
from tico_observers._range import RangeStatistic

AnyObserver: TypeAlias = (
    Observer[RangeStatistic]
    | Observer[EMAStatistic]
    | Observer[HistogramStatistic]
    | Observer[IdentityStatistic]
)
ENTRY_POINT_GROUP: Final = "tico.observers"

T = TypeVar("T", bound=CustomObserverSpec)

_MAKERS: Final[dict[type[CustomObserverSpec], Callable[[QuantSpec, Granularity], AnyObserver]]] = {}
_HOMES: Final[dict[type[CustomObserverSpec], str]] = {}


@attrs.frozen
class Registration(Generic[T]):
    """The decorator that `register_observer` returns."""

    spec_type: type[T]

    def __call__(
        self, make: Callable[[T, QuantSpec, Granularity], Observer[S]]
    ) -> Callable[[T, QuantSpec, Granularity], Observer[S]]:
        """Register `make`, and return it."""
        home = f"{make.__module__}.{make.__qualname__}"
        known = _HOMES.setdefault(self.spec_type, home)
        if known != home:
            found, expected = Found(f"{home} beside {known}"), f"the only one for {self.spec_type.__name__}"
            raise ConfigError(Problem(field="observer", value=found, expected=expected))
        spec_type = self.spec_type

        def made(spec: QuantSpec, units: Granularity) -> AnyObserver:
            own = spec.observer
            if not isinstance(own, spec_type):
                expected = f"a {spec_type.__name__}"
                raise UnsupportedError(Problem(field="observer", value=own, expected=expected))
            # Its statistic is one of another package: all that is asked of it is in the base class.
            return cast("AnyObserver", make(own, spec, units))

        _MAKERS[self.spec_type] = made
        return make


def register_observer(spec_type: type[T]) -> Registration[T]:
    """Say which observer a spec of your own stands for: a decorator of a function that makes it.

    The function is given the spec that was registered, the whole `QuantSpec`, and the units that get a grid
    each. The observer's name is set afterwards. A package offers the module that registers its observers in
    the entry-point group ``tico.observers``; one that is imported with the spec needs no entry point.

    Raises:
        ConfigError: another function makes the observers of `spec_type`.

    >>> import attrs
    >>> from tico_config import UINT8, PerTensor, affine
    >>> from tico_observers import MinMaxObserver, observer_for
    >>> @attrs.frozen
    ... class PlainSpec(CustomObserverSpec):
    ...     pass
    >>> @register_observer(PlainSpec)
    ... def plain(own: PlainSpec, spec: QuantSpec, units: Granularity) -> MinMaxObserver:
    ...     return MinMaxObserver("", spec.dtype, spec.qscheme, granularity=units)
    >>> observer_for(affine(UINT8, observer=PlainSpec()), "act_in", PerTensor())
    MinMaxObserver('act_in', uint8 asymmetric, PerTensor())
    """
    _require_spec_type(spec_type)
    return Registration(spec_type)


def _require_spec_type(given: object) -> None:
    if not (isinstance(given, type) and issubclass(given, CustomObserverSpec)):
        expected = "a class derived from CustomObserverSpec"
        raise ConfigError(Problem(field="spec_type", value=given, expected=expected))


def custom_observer(own: CustomObserverSpec, spec: QuantSpec, units: Granularity) -> AnyObserver:
    """Return the observer that was registered for the class of `own`.

    Raises:
        UnsupportedError: none was registered, or what was made is no observer.
    """
    failures = [] if type(own) in _MAKERS else _load_plug_ins()
    make, kind = _MAKERS.get(type(own)), type(own).__name__
    if make is None:
        remedy = f"import the module that says @register_observer({kind})"
        expected = "an observer spec with a registered observer"
        raise UnsupportedError(
            Problem(
                field="observer",
                value=own,
                expected=expected,
                sentence=f"no observer is registered for {kind}",
                remedy="; ".join([remedy, *failures]),
            )
        )
    made: object = make(spec, units)
    if not isinstance(made, Observer):
        expected = f"an Observer, from the function registered for {kind}"
        raise UnsupportedError(Problem(field="observer", value=made, expected=expected))
    return made


def _load_plug_ins() -> list[str]:
    """Import what installed packages offer; return why those cannot be imported that cannot."""
    failures = []
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:  # noqa: BLE001  # foreign code may fail in any way
            failures.append(
                f"{point.name} ({point.value}) cannot be imported: {type(error).__name__}: {error}"
            )
    return failures
