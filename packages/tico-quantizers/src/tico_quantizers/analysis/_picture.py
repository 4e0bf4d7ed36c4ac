"""A curve of sizes and divergences as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

_WIDTH: Final = 640
_HEIGHT: Final = 360
_LEFT: Final = 72
_RIGHT: Final = 40
_TOP: Final = 32
_BOTTOM: Final = 48


@attrs.frozen(kw_only=True)
class Mark:
    """A point of a picture: megabytes, what was estimated and measured, and whether it was chosen."""

    size: float
    estimated: float
    measured: float
    text: str
    chosen: bool = False


def draw_curve(marks: Sequence[Mark]) -> str:
    """Return an SVG: a line for what was estimated, and a circle for what was measured at each size.

    Divergences are on a logarithmic axis, which has no place for 0. Everything is in the colour of the text
    around it, for light and dark pages alike, and each circle has a title.
    """
    values = [value for mark in marks for value in (mark.estimated, mark.measured) if _is_shown(value)]
    scale = _Scale.of([mark.size for mark in marks], values or [1.0])
    title = "divergence by megabytes: a line as estimated, circles as measured"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12" fill="currentColor" stroke="none"><title>{title}</title>'
    )
    return "\n".join([head, *_axes(scale), *_line(scale, marks), *_circles(scale, marks), "</svg>"])


def _is_shown(value: float) -> bool:
    return math.isfinite(value) and value > 0


@attrs.frozen
class _Scale:
    """Where sizes and powers of ten are in the picture."""

    least: float
    most: float
    low: int
    high: int

    @classmethod
    def of(cls, sizes: Sequence[float], values: Sequence[float]) -> _Scale:
        low = math.floor(math.log10(min(values)))
        high = max(low + 1, math.ceil(math.log10(max(values))))
        return cls(min(sizes), max(sizes), low, high)

    def x(self, size: float) -> float:
        share = (size - self.least) / ((self.most - self.least) or 1.0)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def _axes(scale: _Scale) -> Iterator[str]:
    for power in range(scale.low, scale.high + 1):
        y = scale.y(10.0**power)
        yield f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="currentColor" stroke-opacity="0.2"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">1e{power}</text>'
    for size in dict.fromkeys([scale.least, (scale.least + scale.most) / 2, scale.most]):
        y = _HEIGHT - _BOTTOM + 20
        yield f'<text x="{scale.x(size)}" y="{y}" text-anchor="middle">{size:.4g} MB</text>'
    yield f'<text x="{_LEFT}" y="{_TOP - 14}">divergence</text>'


def _line(scale: _Scale, marks: Sequence[Mark]) -> Iterator[str]:
    shown = [mark for mark in marks if _is_shown(mark.estimated)]
    places = " ".join(f"{scale.x(mark.size)},{scale.y(mark.estimated)}" for mark in shown)
    yield f'<polyline points="{places}" fill="none" stroke="currentColor" stroke-opacity="0.6"/>'


def _circles(scale: _Scale, marks: Sequence[Mark]) -> Iterator[str]:
    for mark in marks:
        if _is_shown(mark.measured):
            fill = "currentColor" if mark.chosen else "none"
            place = f'cx="{scale.x(mark.size)}" cy="{scale.y(mark.measured)}" r="5"'
            style = f'fill="{fill}" stroke="currentColor"'
            yield f"<circle {place} {style}><title>{mark.text}</title></circle>"
