"""The elements of floating-point formats: which value each code has, in exact arithmetic of Python."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

import attrs

from tico_config._named_fields import NamedFields
from tico_config._problem import Problem
from tico_config.validation import check_integer, refuse


@attrs.frozen(kw_only=True)
class Element(NamedFields):
    """The encoding of one element: a code is a pattern of bits, sign first, then exponent, then mantissa.

    With M bits of mantissa, the code of sign s, exponent e and mantissa m has the value
    ``(-1)**s * 2**(e - bias) * (1 + m / 2**M)``, and ``(-1)**s * 2**(1 - bias) * m / 2**M`` for e = 0, a
    subnormal number. Without bits of exponent the code is a two's complement integer of the value
    ``code / 2**M``.

    Attributes:
        name: the name of the encoding in its standard, such as ``e4m3``.
        exponent_bits: the number of bits of the exponent; 0 for fixed point.
        mantissa_bits: the number of bits after the point.
        bias: what is subtracted from the exponent that is stored.
        largest: the largest finite value that numbers are rounded to.
        has_infinity: whether the largest exponent stands for infinity and NaN.
        has_nan: whether there are codes of NaN.

    >>> E2M1.values[:8]
    (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int = 0
    largest: float
    has_infinity: bool = False
    has_nan: bool = False

    @property
    def bits(self) -> int:
        """The number of bits of a code."""
        return 1 + self.exponent_bits + self.mantissa_bits if self.exponent_bits else self.mantissa_bits + 2

    @property
    def lowest_exponent(self) -> int:
        """The exponent of the smallest normal number; below it, numbers are as far apart as above it."""
        return 1 - self.bias if self.exponent_bits else 0

    @property
    def highest_exponent(self) -> int:
        """The exponent of the largest number."""
        return math.frexp(self.largest)[1] - 1

    @property
    def smallest(self) -> float:
        """The smallest positive value."""
        return math.ldexp(1.0, self.lowest_exponent - self.mantissa_bits)

    @property
    def values(self) -> tuple[float, ...]:
        """The value of each code from 0 on, with a negative zero, infinity and NaN where there are codes."""
        return tuple(map(self.value_of, range(2**self.bits)))

    def value_of(self, code: int) -> float:
        """Return the value of a code.

        Raises:
            ConfigError: it is no code of this encoding.

        >>> E4M3.value_of(0x7E), E4M3.value_of(0x01) == 2.0**-9, E4M3.value_of(0x7F)
        (448.0, True, nan)
        """
        refuse(check_integer("code", code, 0, 2**self.bits - 1))
        if not self.exponent_bits:
            whole = code - (code >> (self.bits - 1) << self.bits)
            return math.ldexp(float(whole), -self.mantissa_bits)
        mantissa = code & (2**self.mantissa_bits - 1)
        exponent = code >> self.mantissa_bits & (2**self.exponent_bits - 1)
        return math.copysign(self._magnitude(exponent, mantissa), -1.0 if code >> (self.bits - 1) else 1.0)

    def _magnitude(self, exponent: int, mantissa: int) -> float:
        is_last = exponent == 2**self.exponent_bits - 1
        if self.has_infinity and is_last:
            return math.nan if mantissa else math.inf
        if self.has_nan and is_last and mantissa == 2**self.mantissa_bits - 1:
            return math.nan
        whole = mantissa + 2**self.mantissa_bits if exponent else mantissa
        return math.ldexp(float(whole), max(exponent, 1) - self.bias - self.mantissa_bits)

    def code_of(self, value: float) -> int:
        """Return the code of the value nearest to `value`, of two equally near ones the even code.

        What is beyond the largest value, infinity included, saturates; zero has the code 0 whatever its sign.

        Raises:
            ConfigError: `value` is NaN, which has no nearest value.

        >>> E2M1.code_of(2.5), E2M1.code_of(-100.0), E2M1.code_of(-0.1)
        (4, 15, 0)
        """
        if math.isnan(value):
            refuse(Problem(field="value", value=value, expected="a number"))
        size = Fraction(min(abs(value), self.largest))
        steps = round(size / Fraction(self._step(float(size))))
        nearest = steps * self._step(float(size))
        code = self._codes[nearest]
        if value >= 0 or not nearest:
            return code
        return int(2**self.bits - code if not self.exponent_bits else code + 2 ** (self.bits - 1))

    def _step(self, size: float) -> float:
        """Return how far apart the values around `size` are."""
        exponent = math.frexp(size)[1] - 1 if size else self.lowest_exponent
        return math.ldexp(1.0, max(exponent, self.lowest_exponent) - self.mantissa_bits)

    @property
    def _codes(self) -> dict[float, int]:
        """The code of each value that is not negative."""
        return {self.value_of(code): code for code in range(2 ** (self.bits - 1))}


E2M1: Final = Element(name="e2m1", exponent_bits=2, mantissa_bits=1, bias=1, largest=6.0)
E2M3: Final = Element(name="e2m3", exponent_bits=2, mantissa_bits=3, bias=1, largest=7.5)
E3M2: Final = Element(name="e3m2", exponent_bits=3, mantissa_bits=2, bias=3, largest=28.0)
E4M3: Final = Element(name="e4m3", exponent_bits=4, mantissa_bits=3, bias=7, largest=448.0, has_nan=True)
E5M2: Final = Element(
    name="e5m2",
    exponent_bits=5,
    mantissa_bits=2,
    bias=15,
    largest=57344.0,
    has_infinity=True,
    has_nan=True,
)
FIXED8: Final = Element(name="int8", exponent_bits=0, mantissa_bits=6, largest=127 / 64)
