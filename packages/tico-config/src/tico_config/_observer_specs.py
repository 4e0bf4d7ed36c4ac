"""Observers named by data: which statistic is kept and how it determines a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import attrs

from tico_config._declared_types import field_problems
from tico_config._named_fields import NamedFields
from tico_config._problem import Problem
from tico_config.validation import as_float, check_integer, check_number, refuse


@attrs.frozen
class MinMaxSpec(NamedFields):
    """The smallest and the largest value seen.

    >>> MinMaxSpec() == MinMaxSpec()
    True
    """


@attrs.frozen
class EMASpec(NamedFields):
    """Exponential moving average of each batch's range: new = momentum * old + (1 - momentum) * batch.

    >>> EMASpec(momentum=0).momentum
    0.0
    """

    momentum: float = attrs.field(default=0.9, converter=as_float)

    def __attrs_post_init__(self) -> None:
        """Validate the momentum."""
        refuse(check_number("momentum", self.momentum, 0.0, 1.0, open_high=True))


@attrs.frozen
class HistogramSpec(NamedFields):
    """Counts over bins that never depend on the data; the grid spans the range seen.

    >>> HistogramSpec()
    HistogramSpec()
    """


@attrs.frozen
class PercentileSpec(NamedFields):
    """The values at two percentiles of all values seen, in percent.

    >>> PercentileSpec(upper=99).upper
    99.0
    """

    lower: float = attrs.field(default=0.01, converter=as_float)
    upper: float = attrs.field(default=99.99, converter=as_float)

    def __attrs_post_init__(self) -> None:
        """Validate both percentiles and their order."""
        ends = (check_number("lower", self.lower, 0.0, 100.0), check_number("upper", self.upper, 0.0, 100.0))
        disordered = (
            Problem(field="lower", value=self.lower, expected=f"below upper ({self.upper!r})")
            if ends == (None, None) and not self.lower < self.upper
            else None
        )
        refuse(*ends, disordered)


@attrs.frozen
class MSESpec(NamedFields):
    """The range whose grid has the smallest squared error, among `steps` shrunken ranges.

    >>> MSESpec().steps
    100
    """

    steps: int = 100

    def __attrs_post_init__(self) -> None:
        """Validate the number of candidates."""
        refuse(check_integer("steps", self.steps, 1, 10_000))


@attrs.frozen
class HessianMSESpec(NamedFields):
    """As `MSESpec`, with the error of each input column weighted by what it costs in the layer's output.

    Rounding to nearest weighs it by the mean square of that input, the diagonal of the Hessian. GPTQ weighs
    it by what is left once the columns that follow have made up for it. For algorithms that know the
    inputs; observers of tensors do not.

    >>> HessianMSESpec(steps=20)
    HessianMSESpec(steps=20)
    """

    steps: int = 100

    def __attrs_post_init__(self) -> None:
        """Validate the number of candidates."""
        refuse(check_integer("steps", self.steps, 1, 10_000))


@attrs.frozen
class EntropySpec(NamedFields):
    """The range whose grid has the smallest Kullback-Leibler divergence, among `steps` shrunken ranges.

    >>> EntropySpec(steps=10)
    EntropySpec(steps=10)
    """

    steps: int = 100

    def __attrs_post_init__(self) -> None:
        """Validate the number of candidates."""
        refuse(check_integer("steps", self.steps, 1, 10_000))


@attrs.frozen
class NoQuant(NamedFields):
    """The tensor stays in floating point.

    >>> NoQuant()
    NoQuant()
    """


@attrs.frozen
class CustomObserverSpec(NamedFields):
    """Base of the specs that name observers of other packages.

    A spec of your own has fields, whose declared types are checked, and nothing else; `field_problems` says
    what a type does not. `register_observer_spec` lets JSON name it, and `tico_observers.register_observer`
    says which observer it stands for.

    >>> @attrs.frozen
    ... class TrimmedSpec(CustomObserverSpec):
    ...     share: float = 0.99
    >>> from tico_config import UINT8, affine
    >>> affine(UINT8, observer=TrimmedSpec(share=0.9)).observer
    TrimmedSpec(share=0.9)
    """

    def __attrs_post_init__(self) -> None:
        """Validate the fields."""
        refuse(*field_problems(self, self.field_problems))

    def field_problems(self) -> Sequence[Problem | None]:
        """Return what is wrong with the fields beyond their types; None is no problem."""
        return ()


ObserverSpec: TypeAlias = (
    MinMaxSpec
    | EMASpec
    | HistogramSpec
    | PercentileSpec
    | MSESpec
    | EntropySpec
    | NoQuant
    | CustomObserverSpec
)
