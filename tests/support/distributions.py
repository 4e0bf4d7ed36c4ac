"""The distributions as their files declare them, bottom-up."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Final

import attrs
from packaging.requirements import Requirement
from packaging.version import Version

ROOT: Final = Path(__file__).parents[2]

MODULES: Final = {
    "tico-config": ("tico_config",),
    "tico-observers": ("tico_observers",),
    "tico-modules": ("tico_modules",),
    "tico-export": ("tico_export",),
    "tico-quantizers": ("tico_quantizers",),
    "tico-pt2e": ("tico_pt2e",),
    "tico-wrapq": ("tico_wrapq",),
    "tico-api": ("tico_api", "tico.quantization"),
    "tico-cli": ("tico_cli",),
}

LAYERS: Final = tuple(MODULES)

# Wrappers know no graphs, and graphs no wrappers; no algorithm knows a format, and no format an algorithm.
BESIDE: Final = {
    "tico-export": {"tico-quantizers", "tico-pt2e", "tico-wrapq"},
    "tico-quantizers": {"tico-export"},
    "tico-pt2e": {"tico-wrapq", "tico-export"},
    "tico-wrapq": {"tico-pt2e", "tico-export"},
    "tico-api": {"tico-export"},  # which it only hands on where it is installed
}


def layers_below(name: str) -> set[str]:
    """Return the distributions that `name` may use: those before it, less the ones beside it."""
    return {*LAYERS[: LAYERS.index(name)]} - BESIDE.get(name, set())


@attrs.frozen
class Distribution:
    """What one `pyproject.toml` declares; an extra's requirements are in `optional`, by its name."""

    name: str
    version: Version
    dependencies: tuple[Requirement, ...]
    optional: dict[str, tuple[Requirement, ...]]

    @property
    def source(self) -> Path:
        """The folder that holds the distribution's import packages."""
        return ROOT / "packages" / self.name / "src"

    @property
    def siblings(self) -> dict[str, Requirement]:
        """The requirements on other distributions of this repository."""
        return {each.name: each for each in self.dependencies if each.name in LAYERS}


@cache
def distribution(name: str) -> Distribution:
    """Read the declarations of one of the `LAYERS`."""
    path = ROOT / "packages" / name / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    return Distribution(
        name=project["name"],
        version=Version(project["version"]),
        dependencies=tuple(Requirement(text) for text in project["dependencies"]),
        optional={extra: tuple(map(Requirement, texts)) for extra, texts in extras.items()},
    )


def modules_above(name: str) -> tuple[str, ...]:
    """Return the import names of the layers that the distribution `name` may not use."""
    above = {*LAYERS} - layers_below(name) - {name}
    return tuple(module for layer in LAYERS if layer in above for module in MODULES[layer])
