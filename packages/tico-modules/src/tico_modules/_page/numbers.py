"""Numbers as people read them."""

from __future__ import annotations

from typing import Final

_BYTES: Final = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_COUNTS: Final = ((10**9, "billion"), (10**6, "million"))
_LEAST: Final = 0.1


def bytes_text(size: float) -> str:
    """Return a number of bytes in the unit that suits it.

    >>> bytes_text(12), bytes_text(1234), bytes_text(538_000_000)
    ('12 bytes', '1.23 kB', '538 MB')
    """
    return next((f"{size / unit:.3g} {name}" for unit, name in _BYTES if size >= unit), f"{size:.0f} bytes")


def count_text(count: int) -> str:
    """Return a large number in words.

    >>> count_text(999), count_text(134_515_008)
    ('999', '135 million')
    """
    return next((f"{count / unit:.3g} {name}" for unit, name in _COUNTS if count >= unit), f"{count:,}")


def share_text(part: float, whole: float) -> str:
    """Return a share in percent.

    >>> share_text(1, 8), share_text(1, 5000), share_text(0, 0)
    ('12.5 %', 'under 0.1 %', '0 %')
    """
    percent = 100 * part / whole if whole else 0.0
    return "under 0.1 %" if 0 < percent < _LEAST else f"{percent:.3g} %"


def plural(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun.

    >>> plural(1, "module"), plural(1200, "module")
    ('1 module', '1,200 modules')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def ratio_text(value: float | None, digits: int = 1) -> str:
    """Return a figure with so many digits after the point; nothing for None.

    >>> ratio_text(12.345), ratio_text(None)
    ('12.3', '')
    """
    return "" if value is None else f"{value:.{digits}f}"
