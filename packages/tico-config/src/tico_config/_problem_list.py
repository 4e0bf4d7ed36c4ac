"""The text of several problems: a list, one a line, with equal ones grouped."""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs

from tico_config._problem import Problem

_SPELT_OUT = 3
"""Problems of one kind that are all given a line; of more, all but `_FIRST` are counted."""
_FIRST = 2
_PATHS = 3
_LINES = 24


def describe_problems(problems: Sequence[Problem]) -> str:
    """Return one problem as a sentence, several as a list below their number.

    Problems that differ in their module alone are of one kind: the first ones have a line each, the others
    are counted.
    """
    if len(problems) == 1:
        return f"{problems[0]}."
    lines, listed = [f"{len(problems)} problems:"], 0
    for group in _group(problems):
        if len(lines) > _LINES:
            lines.append(f"and {len(problems) - listed} more of other kinds")
            break
        lines += _describe_group(group)
        listed += len(group)
    return "\n".join(lines)


def _group(problems: Sequence[Problem]) -> list[list[Problem]]:
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(_kind(problem), []).append(problem)
    return list(groups.values())


def _kind(problem: Problem) -> str:
    """Return the text of `problem` without its module, which a remedy may name again."""
    text = str(attrs.evolve(problem, module=None))
    if not problem.module:
        return text
    return re.sub(rf"(?<![\w.]){re.escape(problem.module)}(?![\w.])", "…", text)


def _describe_group(group: list[Problem]) -> list[str]:
    first = len(group) if len(group) <= _SPELT_OUT else _FIRST
    lines = [f"- {problem}.".replace("\n", "\n  ") for problem in group[:first]]
    if first < len(group):
        lines.append(f"  and {len(group) - first} more of the same kind{_describe_paths(group[first:])}")
    return lines


def _describe_paths(rest: list[Problem]) -> str:
    paths = list(dict.fromkeys(problem.module for problem in rest if problem.module))
    if not paths:
        return ""
    return f": {', '.join(paths[:_PATHS])}{', …' if len(paths) > _PATHS else ''}"
