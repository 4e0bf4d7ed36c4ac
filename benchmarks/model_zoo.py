"""What each algorithm makes of many architectures: right, refused with a reason, or worse.

Every architecture is a tiny random model of transformers, or a network written by hand. A cell is

- the signal-to-noise ratio of the converted model's output in dB (`ok` where only the rounding of float32 is
  left), or `ok` for a law that holds, such as the same tokens with either cache;
- `refused`, with the error's sentence below the table; `float` where the float model itself can't do it;
- `low`, where the output is further off than rounding at random gives it, and `FAULT` for an error of another
  library, for wrong tokens or bits, and for outputs that are not finite. Both are there to be mended.

    python benchmarks/model_zoo.py [--only NAME …] [--columns NAME …] [--result FILE] [--resume]

A run takes 20 minutes of one core. Each row is kept as it is done, beside the result, until that is written:
`--resume` goes on after the rows that a run of the same code has left.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterable, Mapping
from functools import partial

import torch

import recorded
from zoo import (
    ABSENT,
    ARCHITECTURES,
    COLUMNS,
    FAULT,
    FLOAT,
    LOW,
    REFUSED,
    Architecture,
    KeptRows,
    Row,
    Trial,
    tried,
)


def row(architecture: Architecture, columns: Iterable[str]) -> Row:
    """Return the cells of an architecture by their columns."""
    trial = Trial(architecture)
    return {name: tried(partial(COLUMNS[name], trial)) for name in columns}


def counts(rows: Mapping[str, Row]) -> str:
    """Return how many cells there are of each kind."""
    cells = [cell for each in rows.values() for cell in each.values() if cell.shown != ABSENT]
    named = {kind: sum(kind in cell.shown for cell in cells) for kind in (REFUSED, FLOAT, LOW, FAULT)}
    right = len(cells) - sum(named.values())
    return f"{len(rows)} architectures, {right} cells right, " + ", ".join(
        f"{count} {kind}" for kind, count in named.items()
    )


def reasons(rows: Mapping[str, Row]) -> list[str]:
    """Return why cells hold no figure, one line for each reason and column."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for name, cells in rows.items():
        for column, cell in cells.items():
            if cell.reason:
                alike.setdefault((column, cell.shown, cell.reason), []).append(name)
    found = sorted(alike.items(), key=lambda each: list(COLUMNS).index(each[0][0]))
    return [f"{column}, {shown}: {reason} [{', '.join(names)}]" for (column, shown, reason), names in found]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of architectures")
    parser.add_argument("--columns", nargs="*", default=list(COLUMNS), choices=list(COLUMNS))
    parser.add_argument("--resume", action="store_true", help="keep the rows that a run has left")
    recorded.add_option(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for library in ("tico_quantizers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    logging.getLogger("torch.fx.experimental").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    chosen = [
        one for one in ARCHITECTURES if not options.only or any(part in one.name for part in options.only)
    ]
    kept = KeptRows(options.result, options.columns, resume=options.resume)
    with recorded.recording(options.result) as out:
        out.table("Architectures", *options.columns, width=36)
        rows: dict[str, Row] = {}
        for one in chosen:
            rows[one.name] = kept.get(one.name, partial(row, one, options.columns))
            out.row(one.name, *(cell.shown for cell in rows[one.name].values()))
        for line in reasons(rows):
            out.note(line)
        out.note(counts(rows))
    kept.drop()


if __name__ == "__main__":
    main()
