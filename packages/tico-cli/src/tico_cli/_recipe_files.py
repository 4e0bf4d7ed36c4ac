"""Recipes that come along, and those in files."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from tico_cli._nearest import unknown
from tico_cli._paths import require_file
from tico_cli._recipe import Recipe

_ENDING: Final = ".toml"


def shipped_names() -> tuple[str, ...]:
    """Return the names of the recipes that come along.

    >>> "w4a16" in shipped_names()
    True
    """
    names = (each.name for each in (files("tico_cli") / "recipes").iterdir())
    return tuple(sorted(name.removesuffix(_ENDING) for name in names if name.endswith(_ENDING)))


def shipped_text(name: str) -> str:
    """Return the text of the recipe `name`, one of `shipped_names`.

    Raises:
        ConfigError: there is none of that name; the nearest is named.
    """
    if name not in shipped_names():
        raise unknown(None, "recipe", name, shipped_names())
    return (files("tico_cli") / "recipes" / f"{name}{_ENDING}").read_text(encoding="utf-8")


def read_recipe(named: str) -> Recipe:
    """Return the recipe `named`: one that comes along, by its name, or a file, by a path that ends in .toml.

    Raises:
        ConfigError: there is none, or it is wrong.
        OSError: the file cannot be read.

    >>> read_recipe("w4a16").stages[0].bits
    4
    """
    name = Path(named).name if named.endswith(_ENDING) else named
    return Recipe.parse(name, recipe_text(named))


def recipe_text(named: str) -> str:
    """Return the text of the recipe `named`, as `read_recipe` reads it.

    Raises:
        ConfigError: there is none.
        OSError: the file cannot be read.
    """
    if not named.endswith(_ENDING):
        return shipped_text(named)
    require_file(Path(named), "recipe")
    return Path(named).read_text(encoding="utf-8")
