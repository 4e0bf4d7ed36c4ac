"""The plan of one config, or of several, for a model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final, final

import attrs

from tico_quantizers.planning._plan_line import PlanLine

_HEAD: Final = (
    "| module | kind | algorithm | weight | activation | rule | bytes before | after | notes |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
_DIGITS: Final = re.compile(r"\d+")


@final
@attrs.frozen(kw_only=True)
class Plan:
    """What `prepare` and `convert` will do to a model, with a line for each that the report will have.

    Attributes:
        lines: what becomes of each module, in the order of the model.
        bytes_before: of all parameters and buffers of the model.
        bytes: of the same afterwards, codes, scales and zero points included. A line whose bytes the data
            decide counts with what its module has without grids for activations.
        memory: what `convert` holds at a time on top of each other: what it is, and bytes. What is not known
            without data is left out: the inputs of blocks; what a solver needs for the layer in work; and
            that modules which were replaced may be given back earlier, as an offload does.
        notes: what the data may change in any line.
    """

    lines: tuple[PlanLine, ...]
    bytes_before: int
    bytes: int
    memory: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """The sum of what `memory` lists: an estimate from below, as the inputs of blocks are not in it."""
        return sum(size for _, size in self.memory)

    def to_json(self) -> str:
        """Return the plan as JSON.

        >>> Plan(lines=(), bytes_before=8, bytes=2).to_json()
        '{"bytes_before": 8, "bytes": 2, "memory": {}, "peak_bytes": 0, "notes": [], "lines": []}'
        """
        return json.dumps(
            {
                "bytes_before": self.bytes_before,
                "bytes": self.bytes,
                "memory": dict(self.memory),
                "peak_bytes": self.peak_bytes,
                "notes": self.notes,
                "lines": [attrs.asdict(line) for line in self.lines],
            }
        )

    def to_markdown(self, *, every_module: bool = False) -> str:
        """Return the plan as a Markdown table with the sums below.

        Modules that differ in the numbers in their paths alone share a row. With `every_module` each has one.
        """
        rows = [[line] for line in self.lines] if every_module else _alike(self.lines)
        table = "\n".join([_HEAD, *map(_row, rows)])
        before, after = _bytes_text(self.bytes_before), _bytes_text(self.bytes)
        parts = ", ".join(f"{what} {_bytes_text(size)}" for what, size in self.memory)
        sentences = [f"The model has {before}, and will have {after}."]
        sentences += [f"While it is converted: {parts}; and what depends on the data."] if parts else []
        return "\n\n".join([table, *sentences, *self.notes])

    def __str__(self) -> str:
        """Return the Markdown table."""
        return self.to_markdown()


def _alike(lines: Iterable[PlanLine]) -> list[list[PlanLine]]:
    """Return the lines that share a row together, in the order of their firsts."""
    found: dict[PlanLine, list[PlanLine]] = {}
    for line in lines:
        anywhere = attrs.evolve(
            line,
            path=_DIGITS.sub("#", line.path),
            reason=_DIGITS.sub("#", line.reason),
            rule=_DIGITS.sub("#", line.rule),
        )
        found.setdefault(anywhere, []).append(line)
    return list(found.values())


def _row(lines: list[PlanLine]) -> str:
    line = lines[0]
    path = line.path if len(lines) == 1 else f"{_places(lines)} ({len(lines)} modules)"
    sizes = [each.bytes_after for each in lines]
    after = "" if any(size is None for size in sizes) else f"{sum(size or 0 for size in sizes):,}"
    before = f"{sum(each.bytes_before for each in lines):,}"
    notes = "; ".join(filter(None, (line.reason, line.undecided)))
    cells = (path, line.module, line.algorithm, line.weight, line.activation, line.rule, before, after, notes)
    return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"


def _places(lines: list[PlanLine]) -> str:
    """Return the paths of lines that are alike, with ``first…last`` where their numbers differ."""
    numbers = [_DIGITS.findall(line.path) for line in lines]
    ranges = iter([_range(map(int, column)) for column in zip(*numbers, strict=True)])
    return _DIGITS.sub(lambda _: next(ranges), lines[0].path)


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]}…{found[-1]}"


def _bytes_text(size: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << power:
            return f"{size / (1 << power):.2f} {unit}"
    return f"{size} bytes"
