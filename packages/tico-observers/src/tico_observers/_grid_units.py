"""A granularity as the plain numbers that operators take."""

from __future__ import annotations

from typing import Final

from tico_config import Granularity, PerChannel, PerGroup, PerTensor, PerToken

_UNITS: Final = {PerTensor: "tensor", PerChannel: "channel", PerGroup: "group", PerToken: "token"}


def settings_of(granularity: Granularity) -> tuple[str, int, int]:
    """Return the unit of `granularity`, its axis and its group size; what does not apply is 0."""
    axis = granularity.axis if isinstance(granularity, PerChannel | PerGroup) else 0
    size = granularity.size if isinstance(granularity, PerGroup) else 0
    return _UNITS[type(granularity)], axis, size


def granularity_of(unit: str, axis: int, size: int) -> Granularity:
    """Return the granularity for which `settings_of` gave these."""
    if unit == "channel":
        return PerChannel(axis)
    if unit == "group":
        return PerGroup(axis, size)
    return PerTensor() if unit == "tensor" else PerToken()
