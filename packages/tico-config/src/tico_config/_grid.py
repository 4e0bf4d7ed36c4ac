"""How codes share a scale: symmetric or not, and over which elements."""

from __future__ import annotations

import enum
from typing import TypeAlias

import attrs

from tico_config._named_fields import NamedFields
from tico_config.validation import check_integer, refuse


class QScheme(enum.Enum):
    """Symmetry and coarse granularity of an affine grid.

    >>> QScheme.PER_CHANNEL_SYMM.is_symmetric, QScheme.PER_CHANNEL_SYMM.is_per_channel
    (True, True)
    """

    PER_TENSOR_ASYMM = "per_tensor_asymm"
    PER_TENSOR_SYMM = "per_tensor_symm"
    PER_CHANNEL_ASYMM = "per_channel_asymm"
    PER_CHANNEL_SYMM = "per_channel_symm"

    @property
    def is_symmetric(self) -> bool:
        """Whether the zero point is fixed at 0."""
        return self in (QScheme.PER_TENSOR_SYMM, QScheme.PER_CHANNEL_SYMM)

    @property
    def is_per_channel(self) -> bool:
        """Whether every channel has its own scale."""
        return self in (QScheme.PER_CHANNEL_ASYMM, QScheme.PER_CHANNEL_SYMM)


_AXIS_LIMIT = 7


@attrs.frozen
class PerTensor(NamedFields):
    """One scale for the whole tensor.

    >>> PerTensor()
    PerTensor()
    """


@attrs.frozen
class PerChannel(NamedFields):
    """One scale for each index along `axis` (negative counts from the end).

    >>> PerChannel(axis=1)
    PerChannel(axis=1)
    """

    axis: int = 0

    def __attrs_post_init__(self) -> None:
        """Validate the axis."""
        refuse(check_integer("axis", self.axis, -_AXIS_LIMIT - 1, _AXIS_LIMIT))


@attrs.frozen
class PerGroup(NamedFields):
    """One scale for each run of `size` elements along `axis`, separately for every other index.

    >>> PerGroup(size=32)
    PerGroup(axis=-1, size=32)
    """

    axis: int = -1
    size: int = 128

    def __attrs_post_init__(self) -> None:
        """Validate axis and size."""
        refuse(
            check_integer("axis", self.axis, -_AXIS_LIMIT - 1, _AXIS_LIMIT),
            check_integer("size", self.size, 1),
        )


@attrs.frozen
class PerToken(NamedFields):
    """One scale for each vector along the last axis, computed when the tensor is seen (dynamic).

    >>> PerToken()
    PerToken()
    """


@attrs.frozen
class SuperBlock(NamedFields):
    """Scales on a grid of their own: those of `columns` neighbouring columns share a scale of float16.

    A group's scale is that one times a positive integer of `scale_bits` bits, as in llama.cpp's K-quants.

    With `offset_bits`, codes are unsigned, and each group has an offset in the place of a zero point:
    ``value = code * scale - offset``. It is another float16 of the super-block times an integer from 0, of
    `offset_bits` bits.

    >>> SuperBlock(scale_bits=7)
    SuperBlock(columns=256, scale_bits=7, offset_bits=None)
    >>> str(SuperBlock(offset_bits=6))
    'scales of 6 bits and offsets of 6 bits under super-blocks of 256'
    """

    columns: int = 256
    scale_bits: int = 6
    offset_bits: int | None = None

    def __attrs_post_init__(self) -> None:
        """Validate the fields; a product of at most 8 bits with a float16 is exact in float32."""
        refuse(
            check_integer("columns", self.columns, 1),
            check_integer("scale_bits", self.scale_bits, 1, 8),
            None if self.offset_bits is None else check_integer("offset_bits", self.offset_bits, 1, 8),
        )

    @property
    def has_offsets(self) -> bool:
        """Whether groups have offsets."""
        return self.offset_bits is not None

    def __str__(self) -> str:
        """Return the grids of scales and offsets in words."""
        offsets = "" if self.offset_bits is None else f" and offsets of {self.offset_bits} bits"
        return f"scales of {self.scale_bits} bits{offsets} under super-blocks of {self.columns}"


Granularity: TypeAlias = PerTensor | PerChannel | PerGroup | PerToken
