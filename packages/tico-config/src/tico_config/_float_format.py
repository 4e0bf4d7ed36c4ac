"""Number formats whose codes are floating-point elements, alone or in blocks that share a scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Literal, TypeAlias

import attrs

from tico_config._dtype import DType
from tico_config._element import E2M1, E2M3, E3M2, E4M3, E5M2, FIXED8, Element
from tico_config._errors import UnsupportedError
from tico_config._named_fields import NamedFields
from tico_config._problem import Problem
from tico_config.validation import check_choice, refuse

ScaleFormat: TypeAlias = Literal["float32", "e8m0", "e4m3"]
"""What a scale is stored as: a float32, a power of two in 8 bits, or e4m3 under a float32 of the tensor."""


@attrs.frozen
class FloatFormat(NamedFields):
    """Base of the formats of which a value is an element times a scale: ``value = element(code) * scale``.

    Codes are the bit patterns of the standard, from 0 to ``2**bits - 1``. A number becomes the nearest
    element, of two equally near ones the one whose code is even; what is beyond the largest one saturates.
    There is no zero point.

    Attributes:
        encodings: the elements that the format may have, by name; the first is the default.
        block_size: how many neighbouring values share a scale; None leaves that to the granularity.
        scale_format: what a scale is stored as.

    >>> MXFP4().bits, MXFP4().block_size, MXFP4().bits_per_value
    (4, 32, 4.25)
    """

    encodings: ClassVar[Sequence[Element]] = ()
    block_size: ClassVar[int | None] = None
    scale_format: ClassVar[ScaleFormat] = "float32"

    @property
    def encoding(self) -> Element:
        """The encoding of an element."""
        return self.encodings[0]

    @property
    def bits(self) -> int:
        """The number of bits of a code."""
        return self.encoding.bits

    @property
    def signed(self) -> bool:
        """Whether there are negative values: always."""
        return True

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return 0

    @property
    def qmax(self) -> int:
        """Largest code."""
        return int(2**self.bits - 1)

    @property
    def bits_per_value(self) -> float:
        """The bits that a value takes, with its share of the scale of a block.

        >>> NVFP4().bits_per_value
        4.5
        """
        return self.bits + (8 / self.block_size if self.block_size else 0)

    def __str__(self) -> str:
        """Return the usual name, for example ``mxfp6_e2m3``."""
        name = type(self).__name__.lower()
        return name if len(self.encodings) == 1 else f"{name}_{self.encoding.name}"


@attrs.frozen
class _TwoEncodings(FloatFormat):
    """Base of the formats whose standard has two elements."""

    element: str = ""

    def __attrs_post_init__(self) -> None:
        """Validate the name of the element."""
        refuse(check_choice("element", self.element, [each.name for each in self.encodings]))

    @property
    def encoding(self) -> Element:
        """The encoding of an element."""
        return next(each for each in self.encodings if each.name == self.element)


@attrs.frozen
class FP8(_TwoEncodings):
    """Floating point of 8 bits under a float32 scale: per tensor, channel, group or token.

    OCP 8-bit Floating Point Specification 1.0: ``e4m3`` up to 448, without infinity; ``e5m2`` up to 57344.
    Numbers saturate, as its section 5.2.1 calls it.

    >>> str(FP8()), FP8("e5m2").encoding.largest
    ('fp8_e4m3', 57344.0)
    """

    encodings: ClassVar[Sequence[Element]] = (E4M3, E5M2)

    element: Literal["e4m3", "e5m2"] = "e4m3"


@attrs.frozen
class MXFP8(_TwoEncodings):
    """Blocks of 32 FP8 elements under a power of two: OCP Microscaling Formats 1.0, section 5.

    >>> MXFP8().scale_format
    'e8m0'
    """

    encodings: ClassVar[Sequence[Element]] = (E4M3, E5M2)
    block_size: ClassVar[int | None] = 32
    scale_format: ClassVar[ScaleFormat] = "e8m0"

    element: Literal["e4m3", "e5m2"] = "e4m3"


@attrs.frozen
class MXFP6(_TwoEncodings):
    """Blocks of 32 elements of 6 bits under a power of two: OCP Microscaling Formats 1.0, section 5.

    >>> MXFP6().encoding.largest, MXFP6("e3m2").encoding.largest
    (7.5, 28.0)
    """

    encodings: ClassVar[Sequence[Element]] = (E2M3, E3M2)
    block_size: ClassVar[int | None] = 32
    scale_format: ClassVar[ScaleFormat] = "e8m0"

    element: Literal["e2m3", "e3m2"] = "e2m3"


@attrs.frozen
class MXFP4(FloatFormat):
    """Blocks of 32 elements of 4 bits under a power of two: OCP Microscaling Formats 1.0, section 5.

    >>> str(MXFP4())
    'mxfp4'
    """

    encodings: ClassVar[Sequence[Element]] = (E2M1,)
    block_size: ClassVar[int | None] = 32
    scale_format: ClassVar[ScaleFormat] = "e8m0"


@attrs.frozen
class MXINT8(FloatFormat):
    """Blocks of 32 fixed-point numbers from -127/64 to 127/64 under a power of two.

    OCP Microscaling Formats 1.0, section 5. The code of -2 is read and never written, as the standard allows.

    >>> MXINT8().encoding.value_of(1)
    0.015625
    """

    encodings: ClassVar[Sequence[Element]] = (FIXED8,)
    block_size: ClassVar[int | None] = 32
    scale_format: ClassVar[ScaleFormat] = "e8m0"


@attrs.frozen
class NVFP4(FloatFormat):
    """Blocks of 16 elements of 4 bits, each under a scale in e4m3, all scales under a float32 of the tensor.

    NVIDIA 2025, "Pretraining Large Language Models with NVFP4", arXiv 2509.25149, section 2.

    >>> NVFP4().scale_format, NVFP4().block_size
    ('e4m3', 16)
    """

    encodings: ClassVar[Sequence[Element]] = (E2M1,)
    block_size: ClassVar[int | None] = 16
    scale_format: ClassVar[ScaleFormat] = "e4m3"


NumberFormat: TypeAlias = DType | FloatFormat
"""What codes stand for: whole steps (`DType`), or floating-point elements (`FloatFormat`)."""


def integer_format(dtype: NumberFormat) -> DType:
    """Return `dtype`, which has to be one of integers.

    Raises:
        UnsupportedError: it is a format of floating-point elements.

    >>> str(integer_format(DType.int(8)))
    'int8'
    """
    if isinstance(dtype, DType):
        return dtype
    expected, sentence = "a format of integers", f"{dtype} has no integer codes, and this needs some"
    raise UnsupportedError(Problem(field="dtype", value=dtype, expected=expected, sentence=sentence))


FLOAT_FORMATS: Final[Sequence[FloatFormat]] = (
    *(FP8("e4m3"), FP8("e5m2")),
    *(MXFP8("e4m3"), MXFP8("e5m2"), MXFP6("e2m3"), MXFP6("e3m2"), MXFP4(), MXINT8(), NVFP4()),
)
"""Every format of floating-point elements."""


def as_number_format(value: object) -> object:
    """Convert the class of a floating-point format to its default; return anything else for the check.

    >>> as_number_format(MXFP4), as_number_format("mxfp4")
    (MXFP4(), 'mxfp4')
    """
    if isinstance(value, type) and issubclass(value, FloatFormat) and value.encodings:
        return value()
    return value
