"""Which exporter serves which target."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint
from typing import Final, TypeAlias, TypeVar, final

import attrs

from tico_config import ConfigError, Found, Problem, UnsupportedError
from tico_export.protocol._exporter import Exporter
from tico_export.protocol._target import ExportTarget
from tico_modules import BrokenPlugIn, find_entry_points, load_plug_in

ENTRY_POINT_GROUP: Final = "tico.exporters"
T = TypeVar("T", bound=ExportTarget)

AnyExporter: TypeAlias = Exporter[ExportTarget]


@final
@attrs.frozen
class ExporterEntry:
    """One format: the type of its targets, and what makes its exporter."""

    target_type: type[ExportTarget]
    make: Callable[[ExportTarget], AnyExporter]


def exporter_entry(target_type: type[T], exporter: Callable[[T], Exporter[T]]) -> ExporterEntry:
    """Return the entry that ties a type of targets to its exporter; a mismatch is a type error."""

    def make(target: ExportTarget) -> AnyExporter:
        if not isinstance(target, target_type):
            expected = f"a {target_type.__name__}"
            raise ConfigError(Problem(field="target", value=target, expected=expected))
        return exporter(target)  # type: ignore[return-value]  # it is given targets of its own type only

    return ExporterEntry(target_type, make)


@final
class ExporterRegistry:
    """Which exporter serves which type of targets.

    Raises:
        ConfigError: two entries serve one type.

    >>> ExporterRegistry().target_types
    ()
    """

    def __init__(self, entries: Iterable[ExporterEntry] = (), *, broken: Iterable[BrokenPlugIn] = ()) -> None:
        self._entries: dict[type[ExportTarget], ExporterEntry] = {}
        self._broken = tuple(broken)
        for entry in entries:
            name = entry.target_type.__name__
            if entry.target_type in self._entries:
                found, sentence = Found(f"two for {name}"), f"there are two entries for {name}"
                expected = "one entry for each type of targets"
                raise ConfigError(Problem(field="entries", value=found, expected=expected, sentence=sentence))
            self._entries[entry.target_type] = entry

    @property
    def target_types(self) -> tuple[type[ExportTarget], ...]:
        """The types of targets that are served."""
        return tuple(self._entries)

    def with_installed(self) -> ExporterRegistry:
        """Return a registry with what installed packages offer in the group ``tico.exporters``, too.

        A plug-in that cannot be used is left out with a warning: one that cannot be imported, that offers
        something else, or a second exporter for a type of targets.
        """
        entries, broken = dict(self._entries), list(self._broken)
        for point in find_entry_points(ENTRY_POINT_GROUP):
            offered = _entry_of(point)
            if isinstance(offered, ExporterEntry):
                kind = offered.target_type
                if entries.setdefault(kind, offered) is offered:
                    continue
                offered = BrokenPlugIn(point, f"another exporter serves {kind.__name__}")
            offered.warn()
            broken.append(offered)
        return ExporterRegistry(entries.values(), broken=broken)

    def exporter(self, target: ExportTarget) -> AnyExporter:
        """Return the exporter for `target`.

        Raises:
            UnsupportedError: no entry serves its type.
        """
        entry = self._entries.get(type(target))
        if entry is None:
            names = ", ".join(sorted(kind.__name__ for kind in self._entries)) or "nothing"
            kind = type(target).__name__
            raise UnsupportedError(
                Problem(
                    field="target",
                    value=Found(kind),
                    expected=f"one of {names}",
                    sentence=f"no exporter serves {kind}; there is one for each of {names}",
                    remedy="; ".join(map(str, self._broken)) or None,
                )
            )
        return entry.make(target)


def _entry_of(point: EntryPoint) -> ExporterEntry | BrokenPlugIn:
    entry = load_plug_in(point)
    if isinstance(entry, ExporterEntry | BrokenPlugIn):
        return entry
    return BrokenPlugIn(point, f"it is {entry!r}, and not an ExporterEntry, as exporter_entry() gives it")
