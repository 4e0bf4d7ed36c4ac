"""One conversion of a model: its config, the model and the data it started from, its report."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import attrs
from typing_extensions import Self

from tico_modules._facts.layer_report import line_values, parse_lines
from tico_modules._record.report import Report
from tico_modules._storage.layout import Layout

_LIBRARIES = (
    "tico-config",
    "tico-modules",
    "tico-observers",
    "tico-quantizers",
    "torch",
)  # in order, as files keep them


@functools.cache
def library_versions() -> tuple[tuple[str, str], ...]:
    """Return name and version of each library on which the result of a conversion depends."""
    found = []
    for name in _LIBRARIES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # not installed, or a checkout on the path
            found.append((name, "unknown"))
    return tuple(found)


@attrs.frozen(kw_only=True)
class Run:
    """One conversion, as it is kept with every module that it left, and in files.

    Attributes:
        report: the report on every module.
        config: the config, as the canonical JSON of `tico_config.to_json`; empty where it is not known.
        model: the `model_fingerprint` of the model that `prepare` was given.
        data: the digest of the tensors that the model was called with between `prepare` and `convert`,
            whatever the order of the calls.
        calls: the number of these calls.
        versions: library and version.
        seconds: the time that `convert` took, which files do not keep, and which is ignored when runs are
            compared.
    """

    report: Report
    config: str = ""
    model: str = ""
    data: str = ""
    calls: int = 0
    versions: tuple[tuple[str, str], ...] = ()
    seconds: float = attrs.field(default=0.0, eq=False)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return itself: nothing in it can change."""
        return self

    def to_values(self) -> dict[str, object]:
        """Return the run as values for JSON, without times.

        >>> run = Run(report=Report(), model="ab", calls=3)
        >>> Run.from_layout(Layout("file", run.to_values())) == run
        True
        """
        config: object = json.loads(self.config) if self.config else None
        report: object = json.loads(
            json.dumps([line_values(line) for line in self.report.without_times().layers])
        )
        return {
            "report": report,
            "config": config,
            "model": self.model,
            "data": self.data,
            "calls": self.calls,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_layout(cls, layout: Layout) -> Run:
        """Return the run for which `to_values` gave the values in `layout`.

        Raises:
            ArtifactError: a value is missing, wrong or left over.
        """
        layout.require_keys(field.name for field in attrs.fields(cls) if field.name != "seconds")
        config = layout.optional_child("config")
        versions = layout.child("versions")
        return Run(
            report=Report(layers=parse_lines(layout.values["report"])),
            config="" if config is None else _to_canonical(config.values),
            model=layout.text("model"),
            data=layout.text("data"),
            calls=layout.integer("calls"),
            versions=tuple((name, versions.text(name)) for name in sorted(versions.values)),
        )


def _to_canonical(values: Mapping[str, object]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))
