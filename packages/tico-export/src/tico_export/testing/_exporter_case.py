"""A target and a model to try its exporter with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import attrs
from torch import nn

from tico_export import ExportResult, export
from tico_export.protocol import ExporterRegistry, ExportTarget


@attrs.frozen(eq=False, kw_only=True)
class ExporterCase:
    """A target, and what makes a model that it takes.

    Attributes:
        target: the target.
        make: returns a converted model, the same one in every process.
        args: positional example inputs.
        kwargs: example inputs by name.
        file_name: the name of the export, for formats that ask for an ending.
    """

    target: ExportTarget
    make: Callable[[], nn.Module]
    args: tuple[object, ...]
    kwargs: Mapping[str, object] = attrs.field(factory=dict)
    file_name: str = "model"

    def export(
        self,
        folder: Path,
        registry: ExporterRegistry | None,
        *,
        model: nn.Module | None = None,
        verify: Literal["require"] | bool = False,
        examples: bool = True,
    ) -> ExportResult:
        """Export the model of the case, or another one, to `folder`."""
        return export(
            self.make() if model is None else model,
            folder / self.file_name,
            self.target,
            args=self.args if examples else None,
            kwargs=self.kwargs if examples else None,
            verify=verify,
            registry=registry,
        )
