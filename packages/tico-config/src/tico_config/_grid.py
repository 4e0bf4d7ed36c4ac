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


Granularity: TypeAlias = PerTensor | PerChannel | PerGroup | PerToken
