"""What every package promises about its public names, written once for the test of each."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from functools import cache
from types import ModuleType
from typing import ClassVar

_LOADED_BY = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"


@cache
def loaded_by(name: str) -> frozenset[str]:
    """Return the top-level modules that a fresh interpreter has loaded once it has imported `name`."""
    command = [sys.executable, "-c", _LOADED_BY, name]
    modules = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return frozenset(module.partition(".")[0] for module in modules)


class PublicNames:
    """Tests of a public module; the class that inherits them names it and lists its public names."""

    package: ClassVar[str]
    names: ClassVar[tuple[str, ...]]

    def test_all_is_exactly_the_list(self) -> None:
        """A name enters or leaves the public API only together with this list."""
        found, expected = sorted(self._module().__all__), sorted(self.names)
        difference = sorted(set(found) ^ set(expected))
        assert found == expected, f"in one of them only: {difference}; the package has {found}"

    def test_every_name_can_be_imported(self) -> None:
        """`from package import *` fulfils every promise of `__all__`."""
        module = self._module()
        absent = [name for name in self.names if not hasattr(module, name)]
        assert absent == [], absent

    def test_every_name_is_documented(self) -> None:
        """Modules, classes and functions have a docstring of their own, not one that they inherit."""
        module = self._module()
        described = {name: getattr(module, name) for name in self.names if _can_be_described(module, name)}
        values = {self.package: module} | described
        bare = [name for name, value in values.items() if not (value.__doc__ or "").strip()]
        assert bare == [], bare

    def _module(self) -> ModuleType:
        """Import the package."""
        return importlib.import_module(self.package)


class PublicAPI(PublicNames):
    """Tests of a distribution's package, and of what importing it loads."""

    hidden: ClassVar[tuple[str, ...]]
    """Top-level modules that importing the package must not load."""

    def test_import_loads_no_layer_above(self) -> None:
        """Importing the package loads nothing that it may not depend on."""
        found = loaded_by(self.package) & set(self.hidden)
        assert found == set(), found


def _can_be_described(module: ModuleType, name: str) -> bool:
    """Tell whether the value of `name` can carry a docstring of its own."""
    value: object = getattr(module, name)
    return inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value)
