"""Losses of layers made comparable by what was measured of blocks and of roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

_ROUNDS: Final = 50


def fit_losses(
    losses: Sequence[float],
    rows: Sequence[str],
    columns: Sequence[str],
    row_sums: Mapping[str, float],
    column_sums: Mapping[str, float],
) -> list[float]:
    """Return `losses` with a factor for each row and one for each column, so that they have these sums.

    A loss has a row and a column; its share of both sums follows from the others there. This is iterative
    proportional fitting (Deming and Stephan 1940). Columns are first brought to the same total as the rows;
    where no factors give both, the sums of the rows are met. A loss of 0 stays 0.

    >>> fit_losses([1.0, 1.0, 1.0, 1.0], "aabb", "xyxy", {"a": 3.0, "b": 1.0}, {"x": 2.0, "y": 2.0})
    [1.5, 1.5, 0.5, 0.5]
    """
    total, given = sum(row_sums.values()), sum(column_sums.values())
    columns_to = {name: value * total / given if given else 0.0 for name, value in column_sums.items()}
    fitted = [*losses]
    for _ in range(_ROUNDS):
        fitted = _scaled(fitted, columns, columns_to)
        fitted = _scaled(fitted, rows, row_sums)
    return fitted


def _scaled(losses: Sequence[float], keys: Sequence[str], sums: Mapping[str, float]) -> list[float]:
    found = dict.fromkeys(keys, 0.0)
    for loss, key in zip(losses, keys, strict=True):
        found[key] += loss
    factors = {key: sums[key] / value if value else 0.0 for key, value in found.items()}
    return [loss * factors[key] for loss, key in zip(losses, keys, strict=True)]
