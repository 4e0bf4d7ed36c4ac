"""What an analysis has found, in values."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import final

import attrs

from tico_config import GPTQConfig
from tico_quantizers.analysis._overriding import with_choices
from tico_quantizers.analysis._picture import Mark, draw_curve


@final
@attrs.frozen(kw_only=True)
class AnalysisLine:
    """What each candidate would cost at one layer.

    Attributes:
        path: the full path of the layer.
        weights: how many weights it has.
        bytes: of its codes, scales and zero points, for each candidate.
        loss: the estimated share of the layer in the divergence of the output, for each candidate.
        chosen: the number of the candidate that the config has here.
    """

    path: str
    weights: int
    bytes: tuple[int, ...]
    loss: tuple[float, ...]
    chosen: int


@final
@attrs.frozen(kw_only=True)
class CurvePoint:
    """A choice for which no other of the same size is estimated to be better.

    Attributes:
        bytes: of the whole model.
        bits: the mean over the weights of the layers, with scales and zero points.
        loss: the estimated divergence of the output, the sum over the layers.
        divergence: the same as measured on held-out batches: see `Analysis`.
        error: what a `Budget` calls error, as measured.
        choices: the number of the candidate of each layer, in the order of the lines.
    """

    bytes: int
    bits: float
    loss: float
    divergence: float
    error: float
    choices: tuple[int, ...]


@final
@attrs.frozen(kw_only=True)
class Analysis:
    """The bits of each layer that cost least, and what others would have cost.

    Divergence is the mean over held-out tokens of KL(float, quantized) in nats where the model gives logits;
    otherwise the squared error of its output as a share of the squared norm of the float one.

    Attributes:
        base: what holds for each layer besides the bits.
        chosen: what the config gives; for a budget of error its `error` is that of a model that `prepare` and
            `convert` have made with it.
        curve: the least loss at sizes from the smallest to the largest.
        candidates: what the layers could get.
        lines: each layer that was chosen for, in the order of the model.
    """

    base: GPTQConfig
    chosen: CurvePoint
    curve: tuple[CurvePoint, ...]
    candidates: tuple[Mapping[str, object], ...]
    lines: tuple[AnalysisLine, ...]

    @property
    def config(self) -> GPTQConfig:
        """An ordinary config, with an override for each layer that is to differ from the base."""
        return self.config_of(self.chosen)

    def config_of(self, point: CurvePoint) -> GPTQConfig:
        """Return the config for another point of the curve."""
        pairs = zip(self.lines, point.choices, strict=True)
        return with_choices(self.base, {line.path: self.candidates[choice] for line, choice in pairs})

    def to_json(self) -> str:
        """Return the analysis as JSON, with the overrides of the config."""
        return json.dumps(
            {
                "candidates": [dict(each) for each in self.candidates],
                "overrides": {path: _plain(change) for path, change in self.config.overrides.items()},
                "chosen": _point_values(self.chosen),
                "curve": [*map(_point_values, self.curve)],
                "lines": [attrs.asdict(each) for each in self.lines],
            },
            default=str,
        )

    def to_markdown(self) -> str:
        """Return two tables: the curve, and the layers with what was chosen for them."""
        return "\n\n".join(["\n".join(self._curve_rows()), "\n".join(self._line_rows())])

    def to_svg(self) -> str:
        """Return a picture of the curve, with what was estimated and measured; the choice is filled."""
        return draw_curve([self._mark(point) for point in self._points()])

    def _points(self) -> list[CurvePoint]:
        """Return the curve with what was chosen, in the order of sizes."""
        return sorted({*self.curve, self.chosen}, key=lambda point: (point.bytes, point.loss))

    def _mark(self, point: CurvePoint) -> Mark:
        return Mark(
            size=point.bytes / 1e6,
            estimated=point.loss,
            measured=point.divergence,
            text=f"{point.bits:.3f} bits, {point.bytes:,} bytes: divergence {point.divergence:.4g}",
            chosen=point == self.chosen,
        )

    def __str__(self) -> str:
        """Return the tables."""
        return self.to_markdown()

    def _curve_rows(self) -> Iterator[str]:
        yield "| bytes | bits | estimated loss | divergence | error | layers of each candidate |"
        yield "|---|---|---|---|---|---|"
        for point in self._points():
            mark = " (chosen)" if point == self.chosen else ""
            counts = Counter(point.choices)
            shares = ", ".join(f"{counts[at]} of {label(each)}" for at, each in enumerate(self.candidates))
            yield (
                f"| {point.bytes:,}{mark} | {point.bits:.3f} | {point.loss:.4g} | {point.divergence:.4g} "
                f"| {point.error:.3%} | {shares} |"
            )

    def _line_rows(self) -> Iterator[str]:
        titles = [f"{what} at {label(each)}" for each in self.candidates for what in ("bytes", "loss")]
        yield f"| module | weights | chosen | {' | '.join(titles)} |"
        yield "|---" * (3 + len(titles)) + "|"
        for line in self.lines:
            pairs = zip(line.bytes, line.loss, strict=True)
            cells = [text for size, loss in pairs for text in (f"{size:,}", f"{loss:.3g}")]
            chosen = label(self.candidates[line.chosen])
            yield f"| {line.path} | {line.weights:,} | {chosen} | {' | '.join(cells)} |"


def label(candidate: Mapping[str, object]) -> str:
    """Return a candidate in a few words.

    >>> label({"bits": 4, "group_size": 32})
    'bits=4 group_size=32'
    """
    return " ".join(f"{name}={value}" for name, value in candidate.items())


def _point_values(point: CurvePoint) -> dict[str, object]:
    """Return a point as values for JSON; what is infinite or no number is None."""
    values: dict[str, object] = attrs.asdict(point)
    return values | {
        name: number if math.isfinite(number) else None
        for name, number in values.items()
        if isinstance(number, float)
    }


def _plain(change: object) -> object:
    return dict(change) if isinstance(change, Mapping) else str(change)
