"""The choices of least cost under a bound on size: a multiple-choice knapsack."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

from tico_config import ConfigError, Found, MissingExtraError, NumericsError, Problem

_GAP: Final = 1e-4
"""How far the cost may be above the least possible, as a share."""


def choose(costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], most: int) -> tuple[int, ...]:
    """Return the number of the choice of each item, so that all sizes add up to `most` at most.

    `costs` and `sizes` have a row for each item, with a number for each of its choices. The sum of the costs
    is within 0.01 % of the least that is possible, which an integer program finds (Sinha and Zoltners 1979,
    "The multiple-choice knapsack problem"). Where items are alike in all their numbers, the first of them
    get the larger sizes. The same numbers give the same choices.

    Raises:
        ConfigError: even the smallest sizes add up to more than `most`.
        NumericsError: the integer program is not solved.
        MissingExtraError: SciPy is not installed.

    >>> choose([(4.0, 1.0), (9.0, 1.0)], [(3, 4), (3, 4)], 7)
    (0, 1)
    """
    least = sum(map(min, sizes))
    if least > most:
        raise ConfigError(
            Problem(field="most", value=most, expected=f"{least} or more, the sum of the smallest sizes")
        )
    bound = most
    while True:
        found = _solved(costs, sizes, bound)
        excess = sum(own[at] for own, at in zip(sizes, found, strict=True)) - most
        if excess <= 0:
            return _settled(costs, sizes, found)
        # The solver works with floating-point numbers, and may be above the bound by a rounding.
        bound = max(least, bound - excess)


def _settled(
    costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], found: Sequence[int]
) -> tuple[int, ...]:
    """Return `found` with the larger sizes first among items that are alike."""
    alike: dict[tuple[tuple[float, ...], tuple[int, ...]], list[int]] = {}
    for item, (cost, size) in enumerate(zip(costs, sizes, strict=True)):
        alike.setdefault((tuple(cost), tuple(size)), []).append(item)
    settled = [*found]
    for (_, size), items in alike.items():
        ordered = sorted((found[item] for item in items), key=lambda choice: (-size[choice], choice))
        for item, choice in zip(items, ordered, strict=True):
            settled[item] = choice
    return tuple(settled)


def _solved(costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], most: int) -> list[int]:
    """Return what the integer program gives: a variable for each choice of each item, 1 where it is taken."""
    require_solver()
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    counts = [len(own) for own in costs]
    largest = max(itertools.chain.from_iterable(costs), default=0.0) or 1.0
    unit = float(max(itertools.chain.from_iterable(sizes)))
    items = [item for item, count in enumerate(counts) for _ in range(count)]
    variables = range(len(items))
    one_each = csr_array(([1.0] * len(items), (items, [*variables])), shape=(len(counts), len(items)))
    size = csr_array([[each / unit for own in sizes for each in own]])
    found = milp(
        [each / largest for own in costs for each in own],
        integrality=[1] * len(items),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(size, 0, most / unit)],
        options={"mip_rel_gap": _GAP},
    )
    if found.x is None:
        message = Found(str(found.message))
        raise NumericsError(Problem(field="choices", value=message, expected="a solved integer program"))
    values = iter(found.x)
    taken = [[float(next(values)) for _ in range(count)] for count in counts]
    return [own.index(max(own)) for own in taken]


def require_solver() -> None:
    """Refuse to go on without SciPy.

    Raises:
        MissingExtraError: naming the extra.
    """
    if find_spec("scipy") is None:
        sentence, remedy = "scipy is not installed", "pip install 'tico-quantizers[analyze]'"
        raise MissingExtraError(
            Problem(
                field="scipy",
                value=Found("not installed"),
                expected="installed",
                sentence=sentence,
                remedy=remedy,
            )
        )
