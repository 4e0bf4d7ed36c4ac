"""Names that moved or were renamed go on working for a while."""

from __future__ import annotations

import importlib

import pytest

import tico_quantizers
from tico_quantizers._renamed import RENAMED


@pytest.mark.parametrize("name", RENAMED)
def test_an_old_name_gives_the_new_one_with_a_warning(name: str) -> None:
    """The warning says where the name is now."""
    package, new = RENAMED[name]
    with pytest.warns(DeprecationWarning, match=f"{package}.{new} now"):
        found: object = getattr(tico_quantizers, name)
    assert found is getattr(importlib.import_module(package), new)


def test_other_names_are_as_unknown_as_ever() -> None:
    """A misspelt name is an AttributeError."""
    assert not hasattr(tico_quantizers, "GPTQQuantiser")
