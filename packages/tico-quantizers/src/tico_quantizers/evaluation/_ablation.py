"""How much each part of a quantized model costs, in values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Final, Literal, TypeAlias, final

import attrs

Grouping: TypeAlias = Literal["kind", "block", "role"]
_TITLES: Final[dict[Grouping, str]] = {"kind": "kinds", "block": "blocks", "role": "roles"}


@final
@attrs.frozen(kw_only=True)
class AblationLine:
    """What one group of quantized parts costs.

    Attributes:
        by: what its parts have in common: their ``"kind"``, ``"block"`` or ``"role"``.
        name: which kind, block or role.
        kind: that of the parts; empty in a block, where there may be several.
        parts: how many parts it has.
        without: the divergence of the model with these parts in float, and all others quantized.
        alone: the divergence with these parts quantized, and all others in float.
    """

    by: Grouping
    name: str
    kind: str
    parts: int
    without: float
    alone: float


@final
@attrs.frozen(kw_only=True)
class Ablation:
    """Which parts of a quantized model hurt: leave-one-out, and one alone, for each group of parts.

    Divergences are means of KL(float, quantized) of a row of the output, in nats.

    Attributes:
        lines: a line for each kind, where there are several, for each block, and for each role.
        kl: the divergence with everything quantized.
        rest: the divergence with everything in float: what the sums of other kernels and unquantized changes
            make of it, close to 0. Nothing below it means anything.
        rows: the number of rows of the output that were compared.
    """

    lines: tuple[AblationLine, ...]
    kl: float
    rest: float
    rows: int

    def worst(self, by: Grouping) -> AblationLine:
        """Return the line of the kind, block or role that the model gains most from having in float.

        Raises:
            ValueError: there is no such line.

        >>> lines = [AblationLine(by="block", name=n, kind="", parts=1, without=v, alone=0.0)
        ...          for n, v in (("0", 0.3), ("1", 0.1))]
        >>> Ablation(lines=tuple(lines), kl=0.4, rest=0.0, rows=1).worst("block").name
        '1'
        """
        return min((line for line in self.lines if line.by == by), key=lambda line: line.without)

    def to_json(self) -> str:
        """Return the ablation as JSON; what is infinite or no number is null."""
        lines = [
            {**attrs.asdict(line), "without": _number(line.without), "alone": _number(line.alone)}
            for line in self.lines
        ]
        totals = {"kl": _number(self.kl), "rest": _number(self.rest), "rows": self.rows}
        return json.dumps({**totals, "lines": lines})

    def to_markdown(self) -> str:
        """Return a table for each grouping, with what the whole diverges by below."""
        tables = [table for by in _TITLES for table in self._table(by)]
        end = f"KL divergence over {self.rows:,} rows: {self.kl:.4g} nats with everything quantized"
        return "\n\n".join([*tables, f"{end}, {self.rest:.4g} with everything in float"])

    def _table(self, by: Grouping) -> Iterator[str]:
        lines = [line for line in self.lines if line.by == by]
        if not lines:
            return
        rows = [
            f"| {line.name or 'the model itself'} | {line.kind if by == 'role' else ''} | {line.parts:,} "
            f"| {line.without:.4g} | {self.kl - line.without:+.2g} | {line.alone:.4g} |"
            for line in lines
        ]
        head = (
            f"| {_TITLES[by]} | | parts | KL without it | gain | KL of it alone |\n|---|---|---|---|---|---|"
        )
        yield "\n".join([head, *rows])

    def __str__(self) -> str:
        """Return the Markdown tables."""
        return self.to_markdown()


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
