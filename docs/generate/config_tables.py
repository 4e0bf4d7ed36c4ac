"""Tables of the fields of configs and specs: type, default, effect, whether an override may change it."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Final

import attrs
import griffe

import tico_config
from tico_config import BaseConfig, ModuleConfig

PLACE: Final = re.compile(r"^<!-- fields: (?P<name>\w+) -->$", re.MULTILINE)


def with_fields(text: str) -> str:
    """Return `text` with a table for each line ``<!-- fields: CLASS -->``, a class of `tico_config`."""
    return PLACE.sub(lambda found: _table(getattr(tico_config, found["name"])), text)


def _table(owner: type[attrs.AttrsInstance]) -> str:
    texts = _descriptions(owner)
    per_module = issubclass(owner, ModuleConfig) and bool(_changeable(owner))
    titles = ["field", "default", *(["override"] if per_module else []), "what it does"]
    lines = [titles, ["---"] * len(titles)]
    for field in sorted(attrs.fields(owner), key=lambda field: field.name in {"overrides", "target"}):
        kind = re.sub(r"\s+", " ", str(field.type)).replace("|", chr(92) + "|")
        mark = ["yes" if field.name in _changeable(owner) else "no"] if per_module else []
        lines.append([f"`{field.name}`", _default(field), *mark, f"*{kind}*. {texts.get(field.name, '')}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _changeable(owner: type[attrs.AttrsInstance]) -> set[str]:
    """Return the fields that an override may change for a single module."""
    names = {field.name for field in attrs.fields(owner)}
    fixed = owner.fixed_fields if issubclass(owner, BaseConfig) else frozenset[str]()
    return names - fixed - {"target"}


def _default(field: attrs.Attribute[object]) -> str:
    default = field.default
    if default is attrs.NOTHING:
        return "required"
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # it is a class at run time
        return "`{}`"
    if isinstance(default, enum.Enum):
        return f"`{default}`"
    plain = isinstance(default, str | int | float | tuple) or default is None
    return f"`{default!r}`" if plain else str(default)


def _descriptions(owner: type[object]) -> Mapping[str, str]:
    """Return what the docstrings of a class and its bases say of each field, the nearest first."""
    texts: dict[str, str] = {}
    for base in owner.__mro__:
        for name, text in _documented(base):
            texts.setdefault(name, text)
    return texts


def _documented(owner: type[object]) -> Iterator[tuple[str, str]]:
    docstring = griffe.Docstring(inspect.cleandoc(owner.__dict__.get("__doc__") or ""))
    for section in docstring.parse("google", warnings=False):
        if isinstance(section, griffe.DocstringSectionAttributes):
            for each in section.value:
                yield each.name, re.sub(r"\s+", " ", each.description).replace("|", chr(92) + "|")
