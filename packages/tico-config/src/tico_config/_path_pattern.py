"""Regular expressions on paths, matched without backtracking.

Python's own matcher tries one way after another, so that each letter more doubles the time of ``(a+)+$``.
Here all positions that a part of the pattern can lead to are followed at once, as the bits of an integer.
Each pass over a repeat reaches a position that no pass before it has reached, or is the last one: the length
of the path to the power of the depth of the repeats bounds the time.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Iterable
from re import _compiler, _parser  # type: ignore[attr-defined]  # typeshed leaves both out
from typing import Final, Protocol, TypeAlias

import attrs
from typing_extensions import assert_never

_DEEPEST: Final = 3


class UnsupportedPatternError(ValueError):
    """A regular expression whose meaning depends on the order in which ways are tried."""


@attrs.frozen(eq=False)
class _Atom:
    """One character, or a condition on a position: what it is, Python says."""

    test: re.Pattern[str]
    is_character: bool
    known: dict[str, bool] = attrs.field(factory=dict)

    def places(self, text: str) -> int:
        """Return the positions where it holds."""
        if not self.is_character:
            return sum(1 << at for at in range(len(text) + 1) if self.test.match(text, at))
        return sum(1 << at for at, character in enumerate(text) if self._takes(character))

    def _takes(self, character: str) -> bool:
        if character not in self.known:
            self.known[character] = self.test.fullmatch(character) is not None
        return self.known[character]


@attrs.frozen(eq=False)
class _Sequence:
    parts: tuple[_Node, ...]


@attrs.frozen(eq=False)
class _Choice:
    options: tuple[_Node, ...]


@attrs.frozen(eq=False)
class _Repeat:
    low: int
    high: int
    body: _Node


@attrs.frozen(eq=False)
class _Look:
    """A condition on what stands in front of a position, or `behind` characters before it."""

    body: _Node
    behind: int
    wanted: bool


_Node: TypeAlias = _Atom | _Sequence | _Choice | _Repeat | _Look


class _Kind(Protocol):
    """What Python's parser calls a part of an expression."""

    name: str


_Item: TypeAlias = tuple[_Kind, object]


def matches_whole(expression: str, path: str) -> bool:
    """Return whether the regular expression matches the whole of `path`.

    Raises:
        UnsupportedPatternError: it has a backreference, an atomic group, or repeats nested too deeply.
        re.error: it is no regular expression.
    """
    return bool(_Walk(path).follow(parse(expression), 1) >> len(path) & 1)


@functools.lru_cache(maxsize=1024)
def parse(expression: str) -> _Node:
    """Return the parts of a regular expression.

    Raises:
        UnsupportedPatternError: it has a backreference, an atomic group, or repeats nested too deeply.
        re.error: it is no regular expression.
    """
    parsed = _parser.parse(expression)
    return _Reader(parsed.state).sequence(parsed, 0, ())


class _Walk:
    """Follows the parts of a pattern over one text; a set of positions is an integer, one bit for each."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._places: dict[int, int] = {}

    def follow(self, node: _Node, starts: int) -> int:
        """Return the positions where a match of `node` ends that begins at one of `starts`."""
        if not starts:
            return 0
        match node:
            case _Atom():
                return (starts & self._places_of(node)) << node.is_character
            case _Sequence(parts=parts):
                return functools.reduce(lambda reached, part: self.follow(part, reached), parts, starts)
            case _Choice(options=options):
                return functools.reduce(operator.or_, (self.follow(option, starts) for option in options))
            case _Repeat():
                return self._follow_repeat(node, starts)
            case _Look():
                kept = (at for at in range(starts.bit_length()) if starts >> at & 1 and self._sees(node, at))
                return sum(1 << at for at in kept)
            case unreachable:
                assert_never(unreachable)

    def _places_of(self, atom: _Atom) -> int:
        if id(atom) not in self._places:
            self._places[id(atom)] = atom.places(self._text)
        return self._places[id(atom)]

    def _follow_repeat(self, node: _Repeat, starts: int) -> int:
        for _ in range(node.low):
            # Nothing goes backwards: once a pass leads to the same positions, all further ones do.
            before, starts = starts, self.follow(node.body, starts)
            if starts == before:
                break
        seen = fresh = starts
        for _ in range(node.high - node.low):
            fresh = self.follow(node.body, fresh) & ~seen
            if not fresh:
                break
            seen |= fresh
        return seen

    def _sees(self, look: _Look, at: int) -> bool:
        if look.behind < 0:
            return (self.follow(look.body, 1 << at) != 0) == look.wanted
        start = at - look.behind
        return (start >= 0 and bool(self.follow(look.body, 1 << start) >> at & 1)) == look.wanted


class _Reader:
    """Makes the nodes of what Python's parser has understood."""

    def __init__(self, state: object) -> None:
        self._state = state

    def sequence(self, parsed: Iterable[_Item], depth: int, groups: tuple[tuple[int, int], ...]) -> _Node:
        """Return the node of items that follow each other, inside `groups` that set and unset flags."""
        if depth > _DEEPEST:
            raise UnsupportedPatternError(f"repeats and conditions are nested more than {_DEEPEST} deep")
        parts = tuple(self._part(item, depth, groups) for item in parsed)
        return parts[0] if len(parts) == 1 else _Sequence(parts)

    def _part(self, item: _Item, depth: int, groups: tuple[tuple[int, int], ...]) -> _Node:
        kind, content = item[0].name, item[1]
        match kind, content:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN" | "AT", _:
                return _Atom(self._compiled(item, groups), kind != "AT")
            case "SUBPATTERN", (_, int(added), int(removed), _parser.SubPattern() as body):
                return self.sequence(body, depth, (*groups, (added, removed)))
            case "BRANCH", (None, list(options)):
                return _Choice(tuple(self.sequence(option, depth, groups) for option in options))
            case "MAX_REPEAT" | "MIN_REPEAT", (int(low), int(high), _parser.SubPattern() as body):
                return _Repeat(low, high, self.sequence(body, depth + 1, groups))
            case "ASSERT" | "ASSERT_NOT", (int(way), _parser.SubPattern() as body):
                behind: int = body.getwidth()[0] if way < 0 else -1
                return _Look(self.sequence(body, depth + 1, groups), behind, kind == "ASSERT")
            case _:
                words = kind.lower().replace("_", " ").replace("groupref", "backreference")
                raise UnsupportedPatternError(f"{words} is not supported, as it needs backtracking")

    def _compiled(self, item: _Item, groups: tuple[tuple[int, int], ...]) -> re.Pattern[str]:
        for added, removed in reversed(groups):
            inner = _parser.SubPattern(self._state, [item])
            item = (_parser.SUBPATTERN, (None, added, removed, inner))
        made: re.Pattern[str] = _compiler.compile(_parser.SubPattern(self._state, [item]))
        return made
