"""Which rule of a config's `overrides` holds for a path.

A key of `overrides` is one of

1. an exact observer path, ``model.layers.0.mlp.down_proj.act_in``,
2. an exact module path, ``model.layers.0.mlp.down_proj``,
3. a glob, ``*.down_proj`` or ``*.down_proj.act_in`` (``*`` crosses dots, case matters),
4. ``re:`` and a regular expression that must match the whole path, in a time that its length bounds: there
   are no backreferences and no atomic groups, and repeats are nested at most three deep.

It is compared with the observer path and with the path of the module that owns the observer. The most
specific rule wins alone: the kinds in the order above, and among globs the one with more literal
characters. Two rules that are equally specific and say different things are an error.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Generic, TypeVar

import attrs

from tico_config._errors import ConfigError
from tico_config._path_pattern import UnsupportedPatternError, matches_whole, parse
from tico_config._problem import Found, Problem, describe

T_co = TypeVar("T_co", covariant=True)

_REGEX = "re:"
_WILDCARD = re.compile(r"\[[^\]]*\]|[*?]")


@attrs.frozen
class Resolution(Generic[T_co]):
    """What holds for a path, and why: `origin` names the field or the override that decided.

    >>> Resolution(8, "defaults").origin
    'defaults'
    """

    spec: T_co
    origin: str


@attrs.frozen
class Rule:
    """A key of `overrides` and what it matches.

    >>> Rule("*.down_proj").matches("layers.0.mlp.down_proj")
    True
    """

    pattern: str

    @property
    def is_regex(self) -> bool:
        """Whether the pattern is a regular expression."""
        return self.pattern.startswith(_REGEX)

    @property
    def is_glob(self) -> bool:
        """Whether the pattern has wildcards."""
        return not self.is_regex and _WILDCARD.search(self.pattern) is not None

    def matches(self, path: str) -> bool:
        """Return whether the pattern matches the whole of `path`."""
        if path == self.pattern:
            return True
        if self.is_regex:
            return matches_whole(self.pattern.removeprefix(_REGEX), path)
        return fnmatch.fnmatchcase(path, self.pattern)

    def specificity(self, paths: tuple[str, ...]) -> tuple[int, int] | None:
        """Return how specific the match with the first of `paths` that matches is; None without a match.

        `paths` starts with the most specific name of the thing: observer path, then module path.
        """
        for rank, path in enumerate(paths):
            if self.pattern == path:
                return (3 if rank == 0 and len(paths) > 1 else 2, 0)
        if not any(self.matches(path) for path in paths):
            return None
        literal = len(_WILDCARD.sub("", self.pattern))
        return (0, 0) if self.is_regex else (1, literal)


def winning_rule(overrides: Mapping[str, object], paths: tuple[str, ...]) -> Rule | None:
    """Return the most specific rule for `paths`, or None where no rule matches.

    Raises:
        ConfigError: two equally specific rules say different things.

    >>> winning_rule({"*.up": 1, "a.up": 2}, ("a.up",))
    Rule(pattern='a.up')
    """
    for path in paths:
        if not isinstance(path, str):
            raise ConfigError(Problem(field="path", value=path, expected="a path, as text"))
    ranked: dict[tuple[int, int], list[Rule]] = {}
    for rule in map(Rule, overrides):
        specificity = rule.specificity(paths)
        if specificity is not None:
            ranked.setdefault(specificity, []).append(rule)
    if not ranked:
        return None
    winner, *ties = ranked[max(ranked)]
    for tie in ties:
        if overrides[tie.pattern] != overrides[winner.pattern]:
            raise ConfigError(_tie(paths[0], winner, tie))
    return winner


def _tie(path: str, one: Rule, other: Rule) -> Problem:
    both = f"{one.pattern!r} and {other.pattern!r}"
    return Problem(
        module=path,
        field="overrides",
        value=Found(f"{both}, which say different things"),
        expected="one most specific rule",
        remedy="make one of them more specific",
        sentence=f"the overrides {both} both match, are equally specific and say different things",
    )


def pattern_problems(patterns: Iterable[str], field: str = "overrides") -> list[Problem]:
    """Return what is wrong with patterns themselves: empty, or regular expressions that cannot be matched.

    >>> [problem.value for problem in pattern_problems(["*.up", "re:("])]
    ['re:(']
    """
    problems = []
    for pattern in patterns:
        if not pattern:
            problems.append(Problem(field=field, value=pattern, expected="a path, a glob or 're:' pattern"))
        elif Rule(pattern).is_regex:
            reason = _refusal(pattern.removeprefix(_REGEX))
            if reason is not None:
                expected = f"a regular expression after 're:' ({reason})"
                sentence = f"{field} has {describe(pattern)}, which cannot be matched: {reason}"
                problems.append(Problem(field=field, value=pattern, expected=expected, sentence=sentence))
    return problems


def _refusal(expression: str) -> str | None:
    try:
        parse(expression)
    except (re.error, UnsupportedPatternError, OverflowError, Warning) as error:
        return str(error)
    except RecursionError:
        return "its groups are nested too deeply"
    return None


def unmatched_problems(
    patterns: Iterable[str], paths: Collection[str], field: str = "overrides"
) -> list[Problem]:
    """Return a problem for each pattern that matches none of `paths`, with the nearest real paths.

    >>> unmatched_problems(["a.upp"], ["a.up", "a.down"])[0].remedy
    "the nearest paths are 'a.up', 'a.down'"
    """
    problems = []
    for rule in map(Rule, patterns):
        if not any(rule.matches(path) for path in paths):
            near = difflib.get_close_matches(rule.pattern, paths, n=3, cutoff=0.0)
            remedy = f"the nearest paths are {', '.join(map(repr, near))}" if near else None
            problems.append(
                Problem(
                    field=field,
                    value=rule.pattern,
                    expected="a rule that matches at least one module",
                    remedy=remedy,
                    sentence=f"{field} has {describe(rule.pattern)}, which matches no module",
                )
            )
    return problems
