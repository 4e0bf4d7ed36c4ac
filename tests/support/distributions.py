"""The five distributions as their files declare them, bottom-up."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Final

import attrs
from packaging.requirements import Requirement
from packaging.version import Version

ROOT: Final = Path(__file__).parents[2]

LAYERS: Final = ("tico-config", "tico-observers", "tico-quantizers", "tico-wrapq", "tico-api")

MODULES: Final = {
    "tico-config": ("tico_config",),
    "tico-observers": ("tico_observers",),
    "tico-quantizers": ("tico_quantizers",),
    "tico-wrapq": ("tico_wrapq",),
    "tico-api": ("tico_api", "tico.quantization"),
}


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
    """Return the import names of the layers above the distribution `name`."""
    upper = LAYERS[LAYERS.index(name) + 1 :]
    return tuple(module for layer in upper for module in MODULES[layer])
