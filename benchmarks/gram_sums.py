"""Gram matrices summed in one order, and exactly in any: what each takes, and how near it comes.

    python benchmarks/gram_sums.py [--columns 576 1536] [--rows 512] [--chunks 4] [--rounds 3]

Ways that take turns, each on the same chunks of rows, of which one column is far larger than the others:

- ``product`` is ``xᵀx`` of each chunk in float32, added up: what any way needs at least.
- ``one order`` is `GramStatistic`, float32 in halves, whose bits hold for one order of the rows.
- ``float64, exact`` is `ExactGramStatistic`: rows rounded to 21 bits of each column's maximum.
- ``digits, exact`` splits such rows into three digits of 7 bits, and sums their products in integers
  (``torch._int_mm``).

Both exact ones need each column's largest magnitude beforehand, which takes a pass of its own over the data.
Seconds are the processor's on one thread, relative to those of ``product`` in the same round. The error is
the largest of an element, relative to the norms of its two columns. The last column tells whether the chunks
the other way round give the same bits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from recorded import Recording, add_option, recording
from tico_observers import AbsMaxStatistic, ExactGramStatistic, GramStatistic

Sum = Callable[[Sequence[Tensor], Tensor], Tensor]
_DIGIT: Final = 7  # bits


def product(chunks: Sequence[Tensor], maximum: Tensor) -> Tensor:
    """Return the sum of plain products."""
    total = torch.zeros(len(maximum), len(maximum))
    for chunk in chunks:
        total += chunk.T @ chunk
    return total


def one_order(chunks: Sequence[Tensor], maximum: Tensor) -> Tensor:
    """Return what GPTQ takes."""
    seen = GramStatistic(columns=len(maximum))
    for chunk in chunks:
        seen = seen.observe_in_place(chunk)
    return seen.matrix()


def exact(chunks: Sequence[Tensor], maximum: Tensor) -> Tensor:
    """Return the sum by products in float64 of integers."""
    seen = ExactGramStatistic(maximum=maximum)
    for chunk in chunks:
        seen = seen.observe_in_place(chunk)
    return seen.matrix()


def by_digits(chunks: Sequence[Tensor], maximum: Tensor) -> Tensor:
    """Return the sum by products of three digits; those below the last place of a digit are left out."""
    exponent = torch.frexp(maximum).exponent
    size = len(maximum)
    sums = [torch.zeros(size, size, dtype=torch.int64) for _ in range(4)]
    for chunk in chunks:
        first, second, third = _digits(torch.ldexp(chunk, -exponent))
        pairs = ((first, first), (first, second), (first, third), (second, second))
        for total, (one, other) in zip(sums, pairs, strict=True):
            total.add_(torch._int_mm(one.T.contiguous(), other))
    high, middle, low, square = (total.double() for total in sums)
    step = 2.0**-_DIGIT
    total = high + step * (middle + middle.T) + step**2 * (low + low.T + square)
    scale = torch.ldexp(torch.ones(size, dtype=torch.float64), exponent - (_DIGIT - 1))
    return total * scale * scale[:, None]


def _digits(rows: Tensor) -> list[Tensor]:
    """Return three int8 digits of `rows` (rows, columns) from -1 to 1."""
    rest, found = rows * 2 ** (_DIGIT - 1), []
    for _ in range(3):
        digit = rest.round()
        found.append(digit.to(torch.int8))
        rest = (rest - digit) * 2**_DIGIT
    return found


WAYS: Final[Mapping[str, Sum]] = {
    "product": product,
    "one order": one_order,
    "float64, exact": exact,
    "digits, exact": by_digits,
}


def compare(columns: int, rows: int, count: int, rounds: int, record: Recording) -> None:
    """Print a table for one number of columns."""
    chance = torch.Generator().manual_seed(0)
    chunks = [torch.randn(rows, columns, generator=chance) for _ in range(count)]
    for chunk in chunks:
        chunk[:, 0] *= 100.0
    seen = AbsMaxStatistic()
    for chunk in chunks:
        seen = seen.observe(chunk)
    maximum = seen.maximum()
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            start = time.process_time()
            way(chunks, maximum)
            taken[name].append(time.process_time() - start)
    wide = [chunk.double() for chunk in chunks]
    right = product_in_float64(wide)
    norms = right.diagonal().sqrt()
    record.table(f"{columns} columns, {count} chunks of {rows} rows", "/ product", "error", "any order")
    for name, way in WAYS.items():
        ratio = statistics.median(map(float.__truediv__, taken[name], taken["product"]))
        found, other = way(chunks, maximum), way(chunks[::-1], maximum)
        error = float(((found.double() - right).abs() / norms / norms[:, None]).max())
        record.row(name, f"{ratio:.2f}", f"{error:.1e}", "same bits" if torch.equal(found, other) else "no")


def product_in_float64(chunks: Sequence[Tensor]) -> Tensor:
    """Return the Gram matrix of rows in float64."""
    rows = torch.cat(list(chunks))
    return rows.T @ rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--columns", type=int, nargs="+", default=[576, 1536])
    parser.add_argument("--rows", type=int, default=512, help="of a chunk")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with recording(options.result) as record, torch.no_grad():
        for columns in options.columns:
            compare(columns, options.rows, options.chunks, options.rounds, record)


if __name__ == "__main__":
    main()
