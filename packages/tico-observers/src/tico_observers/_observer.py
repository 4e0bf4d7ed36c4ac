"""The observer: what users hold while data pass, over an immutable statistic."""

from __future__ import annotations

import difflib
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final, Generic, TypeVar

import attrs
import torch
from torch import Tensor
from typing_extensions import Self

from tico_config import (
    CalibrationError,
    DType,
    FloatFormat,
    Found,
    Granularity,
    LifecycleError,
    NumberFormat,
    PerChannel,
    PerTensor,
    Problem,
    QScheme,
    QuantSpec,
    TicoError,
)
from tico_config.validation import check_instance, check_optional_integer, refuse
from tico_observers._affine_params import AffineParams, params_from_range
from tico_observers._fake_quant import fake_quantize
from tico_observers._range import Extremes, require_plausible, seen_extremes
from tico_observers._statistic import Statistic
from tico_observers._tensor_checks import OnNonfinite, require_choice

S = TypeVar("S", bound=Statistic)

# One for all observers, so that copying and pickling them stays simple: it is held for an assignment only.
_ASSIGNMENT: Final = threading.Lock()


class Observer(ABC, Generic[S]):
    """A collector: it watches tensors, then gives the grid that what it saw determines.

    `collect` any number of times, from any number of threads, `compute_qparams` once, then `fake_quant`;
    `reset` starts over.

    Args:
        name: how errors call it.
        dtype: format of the codes.
        qscheme: symmetric or not, per tensor or per channel.
        channel_axis: axis of the channels, for the per-channel schemes (default 0).
        granularity: the units that get a grid each, where `qscheme` does not say it.
        on_nonfinite: ``"ignore"`` leaves NaN and infinity out and counts them in the statistic's `dropped`.

    Raises:
        ConfigError: `dtype`, `qscheme` and `granularity` contradict each other, an argument is of another
            kind, or there is no such argument.

    >>> from tico_observers import MinMaxObserver
    >>> isinstance(MinMaxObserver(), Observer)
    True
    """

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Refuse keywords that the class does not have.

        Raises:
            ConfigError: with the nearest keyword that it has.
        """
        if kwargs:
            taken = inspect.signature(cls.__init__).parameters.values()
            known = [each.name for each in taken if each.name != "self"]
            unknown = [name for name in kwargs if name not in known]
            if all(each.kind is not each.VAR_KEYWORD for each in taken):
                refuse(*(_unknown_keyword(cls, name, known) for name in unknown))
        return super().__new__(cls)

    def __init__(
        self,
        name: str = "act_in",
        dtype: NumberFormat | type[FloatFormat] | None = None,
        qscheme: QScheme | None = None,
        channel_axis: int | None = None,
        *,
        granularity: Granularity | None = None,
        on_nonfinite: OnNonfinite = "error",
    ) -> None:
        require_choice(on_nonfinite)
        refuse(
            check_instance("name", name, str, "a text"),
            check_optional_integer("channel_axis", channel_axis, -8, 7),
        )
        channels = PerChannel(axis=channel_axis or 0)
        spec = QuantSpec(
            dtype=DType.uint(8) if dtype is None else dtype, qscheme=qscheme, granularity=granularity
        )
        self.name = name
        self.dtype = spec.dtype
        self.symmetric = spec.is_symmetric
        self.granularity = spec.granularity_or(PerTensor() if channel_axis is None else channels)
        if isinstance(self.granularity, PerChannel) and channel_axis is not None:
            self.granularity = channels
        self.on_nonfinite = on_nonfinite
        self._params: AffineParams | None = None
        self._seen = self._empty()
        self._batches = 0

    @abstractmethod
    def _empty(self) -> S:
        """Return the statistic of no data."""

    @abstractmethod
    def _grid(self) -> AffineParams:
        """Return the grid that the statistic determines; called only where data were seen."""

    def _spanning(self, extremes: Extremes | None) -> AffineParams:
        """Return the grid that spans `extremes`."""
        span = require_plausible(seen_extremes(extremes))
        return params_from_range(
            span.minimum, span.maximum, self.dtype, symmetric=self.symmetric, granularity=self.granularity
        )

    @property
    def statistics(self) -> S:
        """What was seen so far, an immutable value."""
        return self._seen

    def collect(self, x: Tensor) -> None:
        """Add what `x` shows; what was collected before stays where `x` is refused.

        Raises:
            LifecycleError: `compute_qparams` or `load_qparams` already fixed the grid.
            UnsupportedError: `x` is not a dense floating-point tensor.
            NumericsError: `x` holds NaN or infinity.
            CalibrationError: the shape of `x` does not fit what was seen before.
        """
        while True:
            seen = self._seen
            self._require_open()
            try:
                more = seen.observe(x)
            except TicoError as error:
                raise located(error, self.name, f"this was batch {self._batches}, counted from 0") from None
            if self._count(seen, more):
                return

    def _require_open(self) -> None:
        if self._params is not None:
            found = Found("a call after the grid was fixed")
            remedy = "call reset() to start over"
            expected = "collect() before compute_qparams()"
            raise LifecycleError(
                Problem(
                    module=self.name,
                    value=found,
                    expected=expected,
                    sentence="its grid is fixed, so it no longer collects",
                    remedy=remedy,
                )
            )

    def _count(self, seen: S, more: S) -> bool:
        """Put `more` in the place of `seen`, unless another thread has put something there since."""
        with _ASSIGNMENT:
            self._require_open()
            if self._seen is not seen:
                return False
            self._seen = more
            self._batches += 1
            return True

    def compute_qparams(self) -> tuple[Tensor, Tensor]:
        """Fix the grid that the data seen determine and return copies of its scale and zero point.

        Raises:
            CalibrationError: no data were seen.
            NumericsError: the data are none that a trained network computes.
        """
        params = self.params
        return params.scale.clone(), params.zero_point.clone()

    @property
    def params(self) -> AffineParams:
        """The grid; computed and fixed at the first use.

        Raises:
            CalibrationError: no data were seen.
            NumericsError: the data are none that a trained network computes, or need a scale that float32
                cannot hold.
        """
        while (fixed := self._params) is None:
            seen = self._seen
            self._require_data()
            try:
                with torch.inference_mode(mode=False):
                    params = self._grid()
            except TicoError as error:
                raise located(error, self.name) from None
            with _ASSIGNMENT:
                if self._seen is seen and self._params is None:
                    self._params = params
        return fixed

    def _require_data(self) -> None:
        if self._seen.is_empty:
            found = Found("none")
            remedy = "run calibration data through the model before it is converted"
            raise CalibrationError(
                Problem(
                    module=self.name,
                    value=found,
                    expected="data for the grid",
                    sentence="it has seen no data",
                    remedy=remedy,
                )
            )

    def fake_quant(self, x: Tensor) -> Tensor:
        """Return `x` moved to the grid.

        Raises:
            CalibrationError: no data were seen.
            UnsupportedError: `x` is not a dense floating-point tensor.
            NumericsError: the shape of `x` does not fit the grid.
        """
        params = self.params
        try:
            return fake_quantize(x, params)
        except TicoError as error:
            raise located(error, self.name) from None

    def load_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        """Fix the grid to the given one, whatever was seen.

        Raises:
            NumericsError: a scale is not a positive normal float, or a zero point is not a code.
        """
        try:
            self._params = AffineParams(
                scale=scale, zero_point=zero_point, dtype=self.dtype, granularity=self.granularity
            )
        except TicoError as error:
            raise located(error, self.name) from None

    def reset(self) -> None:
        """Forget everything seen and the grid."""
        with _ASSIGNMENT:
            self._seen, self._params, self._batches = self._empty(), None, 0

    def merge(self, other: Self) -> Self:
        """Return a new observer, its grid not fixed, that has seen what both have seen.

        Raises:
            CalibrationError: the two differ in kind or settings, or in the shape of what they saw.
            UnsupportedError: the statistic depends on the order of the data.
        """
        if type(other) is not type(self) or other._settings() != self._settings():
            found = Found(f"{other!r} and {self!r}")
            expected = "observers of the same kind and settings"
            sentence = f"{other!r} and {self!r} cannot be merged"
            raise CalibrationError(
                Problem(module=self.name, value=found, expected=expected, sentence=sentence)
            )
        return self._with_statistics(other._seen, self._batches + other._batches)

    def _with_statistics(self, seen: S, batches: int) -> Self:
        try:
            both = self._seen.merge(seen)
        except TicoError as error:
            raise located(error, self.name) from None
        merged = type(self).__new__(type(self))
        vars(merged).update(vars(self) | {"_params": None, "_seen": both, "_batches": batches})
        return merged

    def merge_statistics(self, statistics: Statistic) -> Self:
        """Return a new observer, its grid not fixed, that has also seen what `statistics` holds.

        Raises:
            CalibrationError: they are not those of such an observer, or differ in settings or shape.
            UnsupportedError: the statistic depends on the order of the data.

        >>> from tico_observers import MinMaxObserver
        >>> seen = MinMaxObserver().statistics.observe(torch.tensor([255.0]))
        >>> MinMaxObserver().merge_statistics(seen).compute_qparams()[0].item()
        1.0
        """
        if not isinstance(statistics, type(self._seen)):
            found, expected = Found(type(statistics).__name__), f"a {type(self._seen).__name__}"
            problem = Problem(
                module=self.name,
                field="statistics",
                value=found,
                expected=expected,
                sentence=f"it is merged with {expected}, not with a {found}",
            )
            raise CalibrationError(problem)
        return self._with_statistics(statistics, self._batches)

    def _settings(self) -> Mapping[str, object]:
        state = ("_params", "_seen", "_batches", "name")
        return {key: value for key, value in vars(self).items() if key not in state}

    def __repr__(self) -> str:
        """Return kind, name and settings."""
        scheme = "symmetric" if self.symmetric else "asymmetric"
        return f"{type(self).__name__}({self.name!r}, {self.dtype} {scheme}, {self.granularity})"


def _unknown_keyword(cls: type[object], name: str, known: list[str]) -> Problem:
    near = difflib.get_close_matches(name, known, n=1)
    return Problem(
        module=cls.__name__,
        field=name,
        value=name,
        expected=f"one of {', '.join(known)}",
        sentence=f"there is no argument {name!r}",
        remedy=f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}",
    )


def located(error: TicoError, name: str, remedy: str | None = None) -> TicoError:
    """Return `error` with the observer's name, and `remedy` where a problem about numbers has none."""
    found = [
        attrs.evolve(problem, module=name, remedy=problem.remedy or remedy) for problem in error.problems
    ]
    return type(error)(found[0], *found[1:])
