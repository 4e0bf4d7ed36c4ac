"""Patterns that name layers of a model, and no others."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final

_NUMBER: Final = re.compile(r"(?<=\.)[0-9]+(?=\.)")


def targets_of(members: Iterable[str], others: Collection[str]) -> list[str]:
    r"""Return the patterns ``re:^…$`` that match the paths `members`, and none of `others`.

    Paths that differ in the numbers of blocks have one pattern: with any number where none of `others` fits
    it too, else with the numbers listed.

    >>> targets_of(["h.0.up", "h.1.up"], ["h.0.down"])
    ['re:^h\\.[0-9]+\\.up$']
    >>> targets_of(["h.0.up", "h.1.up"], ["h.2.up"])
    ['re:^h\\.(0|1)\\.up$']
    """
    families: dict[str, list[str]] = {}
    for path in members:
        families.setdefault(_NUMBER.sub("#", path), []).append(path)
    return [f"re:^{each}$" for family, paths in families.items() for each in _patterns(family, paths, others)]


def _patterns(family: str, paths: list[str], others: Collection[str]) -> Iterator[str]:
    escaped = re.escape(family)
    any_number = escaped.replace(r"\#", "[0-9]+")
    if not any(re.fullmatch(any_number, each) for each in others):
        yield any_number
        return
    if escaped.count(r"\#") == 1:
        numbers = sorted(int(found.group()) for path in paths if (found := _NUMBER.search(path)))
        yield escaped.replace(r"\#", f"({'|'.join(map(str, numbers))})")
        return
    yield from map(re.escape, paths)
