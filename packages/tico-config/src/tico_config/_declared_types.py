"""Whether the fields of a value are of the types that its class declares."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import NoneType, SimpleNamespace, UnionType
from typing import Final, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from tico_config._problem import Problem


@attrs.frozen
class _DeclaredType:
    """A test for values, and words for each of the alternatives that pass it."""

    words: tuple[str, ...]
    holds: Callable[[object], bool]

    @property
    def text(self) -> str:
        *others, last = self.words
        return f"{', '.join(others)} or {last}" if others else last


def type_problems(value: attrs.AttrsInstance) -> list[Problem]:
    """Return a problem for each field of `value` that is not of its declared type.

    Known are bool, int, float (which takes an int), str, None, classes, unions, `Literal`, ``tuple[X, ...]``
    and mappings. A field with any other annotation is left alone.
    """
    fields: list[tuple[str, object]] = [(name, getattr(value, name)) for name in _declared(type(value))]
    return [
        Problem(field=name, value=given, expected=_declared(type(value))[name].text)
        for name, given in fields
        if not _declared(type(value))[name].holds(given)
    ]


def field_problems(
    value: attrs.AttrsInstance, check: Callable[[], Sequence[Problem | None]]
) -> list[Problem | None]:
    """Return what the types of the fields of `value` say is wrong, and what its own `check` says."""
    wrong_types = type_problems(value)
    if not wrong_types:
        return [*check()]
    try:
        found = [*check()]
    except Exception:  # noqa: BLE001  # a check may fail in any way on a value of a type that it does not expect
        return [*wrong_types]
    # The check of a field says more than its type does.
    said = {_root(problem) for problem in found if problem is not None}
    return [*(problem for problem in wrong_types if problem.field not in said), *found]


def _root(problem: Problem) -> str:
    return re.split(r"[.\[]", problem.field or "")[0]


@cache
def _declared(owner: type[attrs.AttrsInstance]) -> Mapping[str, _DeclaredType]:
    found = {attribute.name: _understand(_annotation(owner, attribute)) for attribute in attrs.fields(owner)}
    return {name: declared for name, declared in found.items() if declared is not None}


def _annotation(owner: type, attribute: attrs.Attribute[object]) -> object:
    """Return what the annotation of a field stands for; the text itself where that can't be found out."""
    home = next(base for base in owner.__mro__ if _defines(base, attribute.name))
    names = vars(sys.modules[home.__module__]) if home.__module__ in sys.modules else {}
    holder = SimpleNamespace(__annotations__={"field": attribute.type})
    try:
        hints: dict[str, object] = get_type_hints(holder, globalns=names)
    except (AttributeError, NameError, SyntaxError, TypeError):
        return attribute.type
    return hints["field"]


def _defines(base: type, name: str) -> bool:
    return attrs.has(base) and any(each.name == name and not each.inherited for each in attrs.fields(base))


def _understand(annotation: object) -> _DeclaredType | None:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _understand_literal(arguments)
    if origin in (Union, UnionType):
        return _understand_union(arguments)
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return _understand_tuple(arguments[0])
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) > 0:
        return _understand_mapping(origin, arguments[-1])
    if origin is None and isinstance(annotation, type):
        return _SIMPLE.get(annotation) or _understand_class(annotation)
    return None


def _is_number(value: object) -> bool:
    return type(value) is int or isinstance(value, float)


_SIMPLE: Final[Mapping[type, _DeclaredType]] = {
    bool: _DeclaredType(("True", "False"), lambda value: isinstance(value, bool)),
    int: _DeclaredType(("an integer",), lambda value: type(value) is int),
    float: _DeclaredType(("a number",), _is_number),
    str: _DeclaredType(("text",), lambda value: isinstance(value, str)),
    NoneType: _DeclaredType(("None",), lambda value: value is None),
}


def _understand_literal(choices: tuple[object, ...]) -> _DeclaredType:
    def holds(value: object) -> bool:
        return any(_is_choice(value, choice) for choice in choices)

    return _DeclaredType(tuple(map(repr, choices)), holds)


def _is_choice(value: object, choice: object) -> bool:
    alike = isinstance(value, type(choice)) and isinstance(value, bool) == isinstance(choice, bool)
    return alike and value == choice


def _understand_union(members: tuple[object, ...]) -> _DeclaredType | None:
    known = [declared for declared in map(_understand, members) if declared is not None]
    if len(known) < len(members):
        return None
    words = tuple(word for declared in known for word in declared.words)
    return _DeclaredType(words, lambda value: any(declared.holds(value) for declared in known))


def _understand_tuple(item: object) -> _DeclaredType:
    each = _understand(item) or _ANYTHING
    words = "a tuple" if each is _ANYTHING else f"a tuple with {each.text} for each item"

    def holds(value: object) -> bool:
        return isinstance(value, tuple) and all(map(each.holds, value))

    return _DeclaredType((words,), holds)


def _understand_mapping(kind: type[Mapping[str, object]], item: object) -> _DeclaredType:
    each = _understand(item) or _ANYTHING
    words = "a mapping" if each is _ANYTHING else f"a mapping with {each.text} for each value"

    def holds(value: object) -> bool:
        return isinstance(value, kind) and all(map(each.holds, value.values()))

    return _DeclaredType((words,), holds)


def _understand_class(kind: type) -> _DeclaredType | None:
    if kind is object:
        return _ANYTHING
    try:
        isinstance(None, kind)
    except TypeError:  # a protocol that is not for run time, a TypedDict
        return None
    return _DeclaredType(
        (f"{_article(kind.__name__)} {kind.__name__}",), lambda value: isinstance(value, kind)
    )


_ANYTHING: Final = _DeclaredType(("anything",), lambda value: True)


def _article(name: str) -> str:
    spelt = name[:2].isupper()  # MSESpec is spoken as letters, MinMaxSpec is not
    return "an" if name[0] in ("AEFHILMNORSX" if spelt else "AEIOU") else "a"
