"""Statistics in a sealed file, to be merged by another process or on another machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import attrs

from tico_config import ArtifactError, Found, Problem, TicoError
from tico_observers._sealed_file import read_sealed, write_sealed
from tico_observers._statistic import Statistic
from tico_observers._statistic_records import Record, record_of, statistic_from

SCHEMA_VERSION = 1


@attrs.frozen(kw_only=True)
class StatisticsFile:
    """What a file of statistics holds: these by name, and what the writer says of where they come from.

    >>> StatisticsFile(statistics={}, origin={"model": "0a1b"}).origin["model"]
    '0a1b'
    """

    statistics: Mapping[str, Statistic]
    origin: Mapping[str, str] = attrs.field(factory=dict)


_KIND = "statistics"


def save_statistics(
    path: str | os.PathLike[str],
    statistics: Mapping[str, Statistic],
    origin: Mapping[str, str] | None = None,
) -> None:
    """Write `statistics` to `path`, a sealed file: the same ones give the same bytes in every process.

    `origin` is kept with them as it is: it may say what they were seen of.

    Raises:
        UnsupportedError: a statistic is of a kind that files do not hold, or a name is not printable.
        OSError: the file cannot be written; what was at `path` before is still there.

    >>> import tempfile, torch
    >>> from tico_observers import RangeStatistic
    >>> folder = tempfile.mkdtemp()
    >>> seen = RangeStatistic().observe(torch.tensor([1.0, -2.0]))
    >>> save_statistics(f"{folder}/seen", {"act_in": seen})
    >>> load_statistics(f"{folder}/seen") == {"act_in": seen}
    True
    """
    records = {name: record_of(statistic, name) for name, statistic in statistics.items()}
    settings = {name: {"kind": record.kind, **record.settings} for name, record in records.items()}
    said = {"origin": dict(origin)} if origin else {}
    about = {"kind": _KIND, "schema": SCHEMA_VERSION, "statistics": settings, **said}
    tensors = {
        f"{name}.{field}": tensor
        for name, record in records.items()
        for field, tensor in record.tensors.items()
    }
    write_sealed(path, json.dumps(about, sort_keys=True, separators=(",", ":"), allow_nan=False), tensors)


def load_statistics(path: str | os.PathLike[str]) -> dict[str, Statistic]:
    """Return the statistics that `save_statistics` wrote to `path`, by name.

    Raises:
        ArtifactError: the file is damaged, holds something else or is of another version.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_statistics(f"{folder}/none", {})
    ...     load_statistics(f"{folder}/none")
    {}
    """
    return dict(read_statistics(path).statistics)


def read_statistics(path: str | os.PathLike[str]) -> StatisticsFile:
    """Return the statistics that `save_statistics` wrote to `path`, and their origin.

    Raises:
        ArtifactError: the file is damaged, holds something else or is of another version.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_statistics(f"{folder}/none", {}, {"calls": "3"})
    ...     read_statistics(f"{folder}/none").origin
    {'calls': '3'}
    """
    target = Path(path)
    sealed = read_sealed(target)
    listing, origin = _described(target, sealed.about)
    records = {
        name: Record(kind=str(fields.get("kind")), settings=_without_kind(fields), tensors={})
        for name, fields in listing.items()
    }
    for key, tensor in sealed.tensors.items():
        name, _, field = key.rpartition(".")
        if name not in records:
            raise _refused(target, key, "tensors of the statistics listed only")
        records[name] = attrs.evolve(records[name], tensors={**records[name].tensors, field: tensor})
    statistics = {name: _restored(target, name, record) for name, record in records.items()}
    return StatisticsFile(statistics=statistics, origin=origin)


_Listing: TypeAlias = Mapping[str, Mapping[str, object]]


def _described(path: Path, about: str) -> tuple[_Listing, Mapping[str, str]]:
    """Return the settings of each statistic, and their origin."""
    try:
        document: object = json.loads(about)
    except (ValueError, RecursionError):
        raise _refused(path, "text", "a JSON description") from None
    match document:
        case {"kind": kind, "schema": int(schema)} if kind == _KIND and schema != SCHEMA_VERSION:
            newer = "a newer" if schema > SCHEMA_VERSION else "another"
            raise _refused(path, f"version {schema}, from {newer} version of this library", "version 1")
        case {"kind": kind, "statistics": dict(listing), "schema": _, **rest} if (
            kind == _KIND and rest.keys() <= {"origin"}
        ):
            settings = {name: _fields(path, name, fields) for name, fields in listing.items()}
            return settings, _origin(path, rest.get("origin", {}))
        case _:
            raise _refused(path, "a file about something else", "a file of statistics")


def _fields(path: Path, name: str, fields: object) -> Mapping[str, object]:
    if not isinstance(fields, dict):
        raise _refused(path, f"{fields!r} for {name!r}", "the settings of every statistic")
    return fields


def _origin(path: Path, said: object) -> Mapping[str, str]:
    if not isinstance(said, dict) or not all(isinstance(text, str) for text in said.values()):
        raise _refused(path, f"{said!r} for 'origin'", "texts by name")
    return said


def _without_kind(fields: Mapping[str, object]) -> Mapping[str, object]:
    return {field: value for field, value in fields.items() if field != "kind"}


def _restored(path: Path, name: str, record: Record) -> Statistic:
    try:
        return statistic_from(record)
    except TicoError as error:
        first, *others = (
            attrs.evolve(problem, module=str(path), field=f"{name}.{problem.field}")
            for problem in error.problems
        )
        raise ArtifactError(first, *others) from None


def _refused(path: Path, found: str, expected: str) -> ArtifactError:
    return ArtifactError(Problem(module=str(path), field="about", value=Found(found), expected=expected))
