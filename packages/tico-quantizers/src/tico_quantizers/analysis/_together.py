"""Layers that get the same bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tico_config import ConfigError, Rule, pattern_problems, unmatched_problems


def share_bits(paths: Sequence[str], patterns: Iterable[str], owners: Sequence[str]) -> list[list[int]]:
    """Return the places in `paths` that form one item each, in the order of their firsts.

    Layers of one parent that match the same of `patterns` share their bits, and so do those whose weights
    belong to one module: the experts of a parameter. `owners` are the paths of these modules.

    Raises:
        ConfigError: a pattern cannot be matched, or matches no layer.

    >>> share_bits(["a.q", "a.k", "b.q", "b.k"], ["*.[qk]"], ["a.q", "a.k", "b.q", "b.k"])
    [[0, 1], [2, 3]]
    """
    patterns = tuple(patterns)
    problems = pattern_problems(patterns, "together") or unmatched_problems(patterns, paths, "together")
    if problems:
        raise ConfigError(*problems)
    items = {place: [place] for place in range(len(paths))}
    for group in _groups(paths, patterns, owners):
        first, *others = group
        for other in others:
            if items[other] is not items[first]:
                items[first] += items[other]
                for place in items[other]:
                    items[place] = items[first]
    distinct = {id(each): sorted(each) for each in items.values()}
    return sorted(distinct.values())


def _groups(paths: Sequence[str], patterns: Sequence[str], owners: Sequence[str]) -> Iterable[list[int]]:
    """Return the places that share for one reason each."""
    found: dict[tuple[str, str], list[int]] = {}
    for place, (path, owner) in enumerate(zip(paths, owners, strict=True)):
        found.setdefault(("", owner), []).append(place)
        for rule in map(Rule, patterns):
            if rule.matches(path):
                found.setdefault((rule.pattern, path.rpartition(".")[0]), []).append(place)
    return found.values()
