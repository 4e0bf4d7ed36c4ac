"""Integer formats of 2 to 16 bits, and the int32 of biases."""

from __future__ import annotations

import builtins

import attrs

from tico_config._named_fields import NamedFields
from tico_config.validation import check_boolean, check_integer, refuse


@attrs.frozen
class DType(NamedFields):
    """An integer format; `bits` is 2 to 16, or 32 for signed biases.

    Raises:
        ConfigError: `bits` is out of range or not an int, or `signed` is not a bool.

    >>> DType.int(8).qmin, DType.uint(4).qmax, str(DType.int(4))
    (-128, 15, 'int4')
    """

    bits: builtins.int
    signed: bool = False

    def __attrs_post_init__(self) -> None:
        """Validate both fields."""
        is_bias = type(self.bits) is builtins.int and self.bits == 32 and self.signed is True
        refuse(
            None if is_bias else check_integer("bits", self.bits, 2, 16),
            check_boolean("signed", self.signed),
        )

    @classmethod
    def int(cls, bits: builtins.int) -> DType:
        """Return the signed format of `bits` bits."""
        return cls(bits, signed=True)

    @classmethod
    def uint(cls, bits: builtins.int) -> DType:
        """Return the unsigned format of `bits` bits."""
        return cls(bits, signed=False)

    @property
    def qmin(self) -> builtins.int:
        """Smallest code."""
        return -(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> builtins.int:
        """Largest code."""
        return builtins.int(2 ** (self.bits - self.signed) - 1)

    def __str__(self) -> str:
        """Return the usual name, for example ``uint8``."""
        return f"{'int' if self.signed else 'uint'}{self.bits}"


INT4 = DType.int(4)
INT8 = DType.int(8)
INT16 = DType.int(16)
INT32 = DType.int(32)
UINT4 = DType.uint(4)
UINT8 = DType.uint(8)
UINT16 = DType.uint(16)
