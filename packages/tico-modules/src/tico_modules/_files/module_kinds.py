"""The classes of saved modules, which packages offer in the entry-point group ``tico.modules``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeGuard

import attrs

from tico_config import ArtifactError, Found, Problem, UnsupportedError
from tico_modules._layers.restorable import RestorableModule
from tico_modules._storage.layout import Layout
from tico_modules._tree.entry_points import find_entry_points
from tico_modules._tree.plug_ins import BrokenPlugIn, load_plug_in

ENTRY_POINT_GROUP: Final = "tico.modules"


def package_of(module: RestorableModule) -> str:
    """Return the import name of the package that a module's class is from, for example ``tico_wrapq``."""
    return type(module).__module__.partition(".")[0]


@attrs.frozen
class ModuleKinds:
    """The classes that can be restored, by kind, and why packages that offer more cannot be imported."""

    _classes: Mapping[str, type[RestorableModule]]
    _broken: Mapping[str, str]

    def find(self, entry: Layout) -> type[RestorableModule]:
        """Return the class of the module that `entry` of a manifest describes.

        Raises:
            ArtifactError: no installed package has it; naming the package to install, where the file does.
        """
        kind = entry.text("kind")
        if kind not in self._classes:
            package = entry.text("package") if "package" in entry.values else ""
            raise ArtifactError(self._explain(entry.where, kind, package))
        return self._classes[kind]

    def _explain(self, where: str, kind: str, package: str) -> Problem:
        found = f"{kind!r} of the package {package}" if package else repr(kind)
        if package in self._broken:
            found += f", which cannot be imported ({self._broken[package]})"
        remedy = f"pip install --upgrade {package.replace('_', '-')}" if package else "install its package"
        expected = "one that an installed package has"
        return Problem(module=where, field="kind", value=Found(found), expected=expected, remedy=remedy)


def load_kinds() -> ModuleKinds:
    """Return the kinds of modules that installed packages have.

    A package that cannot be imported, or offers something else, does not keep models from being loaded that
    need none of its modules.

    Raises:
        UnsupportedError: two classes have the same kind.
    """
    classes: dict[str, type[RestorableModule]] = {}
    broken: dict[str, str] = {}
    for point in find_entry_points(ENTRY_POINT_GROUP):
        offered = load_plug_in(point)
        if isinstance(offered, BrokenPlugIn) or not _are_kinds(offered):
            reason = offered.reason if isinstance(offered, BrokenPlugIn) else f"it offers {offered!r}"
            broken[point.module.partition(".")[0]] = reason
            continue
        for new in offered:
            old = classes.setdefault(new.kind, new)
            if old is not new:
                found = Found(f"the kind {new.kind!r} of both {old.__qualname__} and {new.__qualname__}")
                expected, field = "the only one to offer its kinds", f"entry point {point.name}"
                raise UnsupportedError(Problem(field=field, value=found, expected=expected))
    return ModuleKinds(classes, broken)


def _are_kinds(offered: object) -> TypeGuard[tuple[type[RestorableModule], ...]]:
    kinds = offered if isinstance(offered, tuple) else ()
    return bool(kinds) and all(
        isinstance(kind, type) and issubclass(kind, RestorableModule) for kind in kinds
    )
