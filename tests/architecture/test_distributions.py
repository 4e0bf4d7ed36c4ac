"""What the distributions declare agrees with the layers, with their code and with one another."""

from __future__ import annotations

from typing import Final

import pytest

from distributions import LAYERS, MODULES, ROOT, Distribution, distribution, layers_below
from source_imports import SourceImport, source_imports

CORE: Final = {"attrs", "typing-extensions"}

# What a program needs that people use, and a library does not.
PROGRAM: Final = {"rich", "transformers", "typer"}

# Where the name to import is not the distribution's.
DISTRIBUTION_OF: Final = {"typing_extensions": "typing-extensions"} | {
    module.partition(".")[0]: name for name, modules in MODULES.items() for module in modules
}

every_layer = pytest.mark.parametrize("name", LAYERS)


@every_layer
def test_siblings_are_the_layers_below(name: str) -> None:
    """A distribution declares each layer below its own, and none above or beside it."""
    assert set(distribution(name).siblings) == layers_below(name)


@every_layer
def test_core_needs_attrs_typing_extensions_and_torch_only(name: str) -> None:
    """Nothing else is installed with a distribution; anything else is an extra."""
    outside = {each.name for each in distribution(name).dependencies} - set(LAYERS)
    more = {"tico-config": set(), "tico-cli": {"torch", *PROGRAM}}.get(name, {"torch"})
    assert outside == CORE | more


@every_layer
def test_versions_satisfy_the_ranges_of_siblings(name: str) -> None:
    """The distributions of one commit can be installed together."""
    requirements = distribution(name).siblings.values()
    unmet = [str(each) for each in requirements if distribution(each.name).version not in each.specifier]
    assert unmet == []


@every_layer
def test_ranges_have_both_bounds(name: str) -> None:
    """Every requirement says since when it is enough and up to when it is known to be."""
    declared = distribution(name)
    requirements = [*declared.dependencies, *(each for extra in declared.optional.values() for each in extra)]
    operators = {str(each): {part.operator for part in each.specifier} for each in requirements}
    assert {text: found for text, found in operators.items() if found != {">=", "<"}} == {}


@every_layer
def test_every_import_is_declared(name: str) -> None:
    """Code imports dependencies; what an extra brings, only lazily or in the module that the extra is for."""
    declared = distribution(name)
    undeclared = [each for each in source_imports(declared.source) if not _is_declared(each, declared)]
    assert undeclared == []


def test_license_is_the_same_everywhere() -> None:
    """Each distribution ships the repository's licence, word for word."""
    text = (ROOT / "LICENSE").read_bytes()
    assert [name for name in LAYERS if (ROOT / "packages" / name / "LICENSE").read_bytes() != text] == []


def _is_declared(found: SourceImport, declared: Distribution) -> bool:
    """Tell whether a dependency of `declared` provides the module, or an extra that this code may rely on."""
    owner = DISTRIBUTION_OF.get(found.module, found.module)
    parts = {part.removesuffix(".py").lstrip("_") for part in found.path.relative_to(declared.source).parts}
    usable = [extra for name, extra in declared.optional.items() if found.is_lazy or name in parts]
    requirements = [*declared.dependencies, *(each for extra in usable for each in extra)]
    return owner in {declared.name, *(each.name for each in requirements)}
