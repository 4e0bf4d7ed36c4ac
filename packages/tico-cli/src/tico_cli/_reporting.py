"""tico report: what was done to each module of a saved model."""

from __future__ import annotations

from pathlib import Path

from tico_api import Report, report
from tico_cli._model_folders import load_model, require_quantized


def report_folder(folder: Path) -> Report:
    """Return the report of the quantized model in `folder`.

    Raises:
        ConfigError: it holds none.
        TicoError: it cannot be loaded.
    """
    require_quantized(folder)
    return report(load_model(folder))
