"""Values made of fields by name; a name that no field has is answered with the one that is meant."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence

import attrs
from typing_extensions import Self

from tico_config._errors import CallError
from tico_config._foreign_names import INSTEAD, SAME
from tico_config._problem import Found, Problem, describe


class NamedFields:
    """Base of the values that users make: a call with names that are no fields is refused."""

    __slots__ = ()

    def __new__(cls, *args: object, **fields: object) -> Self:
        """Check the names before attrs takes the fields.

        Raises:
            ConfigError: a name is no field, or a value has no name; it is a `TypeError` too.
        """
        problems = list(_call_problems(cls, args, fields))
        if problems:
            raise CallError(*problems)
        return super().__new__(cls)


def unknown_field(owner: str, name: str, names: Sequence[str]) -> Problem:
    """Return the problem that `owner`, whose fields are `names`, has no field `name`.

    >>> str(unknown_field("GPTQConfig", "groupsize", ["bits", "group_size"]))
    "GPTQConfig has no field 'groupsize'; the nearest is 'group_size'"
    """
    return Problem(
        field=name,
        value=Found(repr(name)),
        expected=f"one of {', '.join(names)}",
        remedy=_remedy(name, names),
        sentence=f"{owner} has no field {describe(name)}",
    )


def _remedy(name: str, names: Sequence[str]) -> str:
    """Return which of `names` is meant by `name`, or what to do in its place."""
    near = [known for known in SAME.get(name, ()) if known in names]
    if not near and name in INSTEAD:
        return INSTEAD[name]
    near = near or difflib.get_close_matches(name, names, n=1)
    if near:
        return f"the nearest is {near[0]!r}"
    return f"the fields are {', '.join(names)}" if names else "it has no fields"


@attrs.frozen
class _Call:
    """How a class is called: the names of its fields, those that need no name, those that must be given."""

    names: tuple[str, ...]
    by_place: tuple[str, ...]
    required: tuple[str, ...]


@functools.cache
def _call_of(owner: type) -> _Call:
    known: tuple[attrs.Attribute[object], ...] = getattr(owner, "__attrs_attrs__", ())
    taken = {field.alias or field.name: field for field in known if field.init}
    return _Call(
        names=tuple(taken),
        by_place=tuple(name for name, field in taken.items() if not field.kw_only),
        required=tuple(name for name, field in taken.items() if field.default is attrs.NOTHING),
    )


def _call_problems(owner: type, args: tuple[object, ...], fields: Mapping[str, object]) -> Iterator[Problem]:
    """Yield what is wrong with the number of `args` and the names of `fields`, values aside."""
    call = _call_of(owner)
    places = len(call.by_place)
    if len(args) > places:
        expected = f"at most {places} values without a name" if places else "every field by its name"
        example = f"for example {owner.__name__}({call.names[0]}=…)" if call.names else None
        yield Problem(module=owner.__name__, value=Found(f"{len(args)}"), expected=expected, remedy=example)
    for name in fields:
        if name not in call.names:
            yield _without_attrs(owner, name) or unknown_field(owner.__name__, name, call.names)
    given = {*call.by_place[: len(args)], *fields}
    for name in call.required if given else ():  # copies and pickles are made without any value
        if name not in given:
            sentence, expected = f"{owner.__name__} needs {name}", "given, as it has no default"
            yield Problem(field=name, value=Found("nothing"), expected=expected, sentence=sentence)


def _without_attrs(owner: type, name: str) -> Problem | None:
    """Return the problem that `owner` declares the field but attrs has not made the class."""
    if "__attrs_attrs__" in vars(owner) or name not in vars(owner).get("__annotations__", {}):
        return None
    return Problem(
        field=name,
        value=Found("a field of a plain class"),
        expected="a class made by attrs",
        remedy="write @attrs.frozen(kw_only=True) above the class",
        sentence=f"{owner.__name__} declares {name}, but attrs has not made the class",
    )
