"""tico report: what was done to each module of a saved model, and what its grids see of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import final

import attrs
import torch

from tico_api import Report, report, watch_points
from tico_cli._evaluating import Text
from tico_cli._model_folders import load_model, quiet_libraries, require_quantized
from tico_cli._output import tell
from tico_quantizers.evaluation import SeenPoints


@final
@attrs.frozen(kw_only=True)
class Reported:
    """The report of a model, and what its grids have seen; None without a text."""

    report: Report
    seen: SeenPoints | None = None

    def to_json(self) -> str:
        """Return the report as JSON, with ``seen`` in it where there is a text."""
        if self.seen is None:
            return self.report.to_json()
        values: dict[str, object] = json.loads(self.report.to_json())
        return json.dumps({**values, "seen": json.loads(self.seen.to_json())["points"]})

    def to_markdown(self) -> str:
        """Return the tables of both."""
        tables = [each.to_markdown() for each in (self.report, self.seen) if each is not None]
        return "\n\n".join(tables)


def report_folder(folder: Path, text: Text | None = None, page: Path | None = None) -> Reported:
    """Return the report of the quantized model in `folder`, and write it to `page`.

    Raises:
        ConfigError: it holds none, or there is no such text.
        TicoError: the model cannot be loaded, or has no activations on grids for a text to be read by.
        OSError: the page cannot be written.
    """
    require_quantized(folder)
    windows = None if text is None else torch.split(text.read(folder), 1)
    model = load_model(folder)
    found, seen = report(model), None
    if windows is not None:
        with quiet_libraries():
            seen = watch_points(model, windows)
    if page is not None:
        tell(f"page: {found.to_html(page, seen=seen)}")
    return Reported(report=found, seen=seen)
