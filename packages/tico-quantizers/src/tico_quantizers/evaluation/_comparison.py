"""How far a quantized model is from the float one, in values."""

from __future__ import annotations

import json
import math
from typing import final

import attrs


@final
@attrs.frozen(kw_only=True)
class BlockError:
    """How far the output of a block is off, as a share of the squared norm of the float output.

    Attributes:
        path: the path of the block; empty for a model that has none, which is one.
        own: of the quantized block on the inputs that the float block has: what it adds by itself.
        accumulated: of the quantized block in the quantized model: what has come together so far.

    >>> BlockError(path="layers.0", own=0.01, accumulated=0.1).own_db
    20.0
    """

    path: str
    own: float
    accumulated: float

    @property
    def own_db(self) -> float:
        """The ratio of the float output to the block's own error, in dB; infinite without an error."""
        return _decibels(self.own)

    @property
    def accumulated_db(self) -> float:
        """The ratio of the float output to the accumulated error, in dB; infinite without an error."""
        return _decibels(self.accumulated)


@final
@attrs.frozen(kw_only=True)
class Comparison:
    """Where the error of a quantized model enters, how it accumulates, and what is left of it in the end.

    Attributes:
        lines: the error of each block, in the order of the model.
        kl: the mean divergence KL(float, quantized) of the distributions of the output, in nats.
        agreement: the share of rows whose largest logit is the same one in both.
        rows: the number of rows of the output that were compared: tokens, or samples of a classifier.
    """

    lines: tuple[BlockError, ...]
    kl: float
    agreement: float
    rows: int

    def to_json(self) -> str:
        """Return the comparison as JSON; what is infinite or no number is null.

        >>> line = BlockError(path="0", own=0.0, accumulated=0.0)
        >>> Comparison(lines=(line,), kl=0.5, agreement=1.0, rows=2).to_json()
        '{"kl": 0.5, "agreement": 1.0, "rows": 2, "lines": [{"path": "0", "own": 0.0, "accumulated": 0.0}]}'
        """
        lines = [
            {"path": line.path, "own": _number(line.own), "accumulated": _number(line.accumulated)}
            for line in self.lines
        ]
        totals = {"kl": _number(self.kl), "agreement": self.agreement, "rows": self.rows}
        return json.dumps({**totals, "lines": lines})

    def to_markdown(self) -> str:
        """Return the comparison as a Markdown table, with the output below."""
        head = "| block | own error | dB | accumulated | dB |\n|---|---|---|---|---|"
        rows = [
            f"| {line.path} | {line.own:.3g} | {line.own_db:.1f} "
            f"| {line.accumulated:.3g} | {line.accumulated_db:.1f} |"
            for line in self.lines
        ]
        end = f"KL divergence {self.kl:.4g} nats"
        end += f", same first choice in {self.agreement:.2%} of {self.rows:,} rows"
        return "\n".join([head, *rows, "", end])

    def __str__(self) -> str:
        """Return the Markdown table."""
        return self.to_markdown()


def _decibels(share: float) -> float:
    return -10 * math.log10(share) if share else math.inf


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
