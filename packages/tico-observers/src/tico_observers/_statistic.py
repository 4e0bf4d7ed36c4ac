"""What every statistic is: an immutable value that observing and merging turn into another."""

from __future__ import annotations

from abc import ABC, abstractmethod

import attrs
from torch import Tensor
from typing_extensions import Self

from tico_config import CalibrationError, Found, Problem


@attrs.frozen(kw_only=True)
class Statistic(ABC):
    """What was seen of a tensor: a monoid under `merge`, with the value made without data as its identity.

    >>> from tico_observers import RangeStatistic
    >>> isinstance(RangeStatistic(), Statistic), RangeStatistic().is_empty
    (True, True)
    """

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether no element was seen."""

    @abstractmethod
    def observe(self, x: Tensor) -> Self:
        """Return the statistic of everything seen so far and `x`.

        Raises:
            UnsupportedError: `x` is not a dense floating-point tensor.
            NumericsError: `x` holds NaN or infinity.
            CalibrationError: the shape of `x` does not fit what was seen before.
        """

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Return the statistic of everything that both have seen.

        Raises:
            CalibrationError: the two were not made with the same settings.
        """


def require_same(field: str, one: object, other: object) -> None:
    """Refuse to merge statistics whose setting or shape `field` differs.

    Raises:
        CalibrationError: with both values.
    """
    if one != other:
        found = Found(f"{one} and {other}")
        sentence = f"two statistics of different {field} cannot be merged: {found}"
        raise CalibrationError(
            Problem(field=field, value=found, expected="the same in both statistics", sentence=sentence)
        )
