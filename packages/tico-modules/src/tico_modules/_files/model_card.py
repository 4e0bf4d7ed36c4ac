"""The model card of a saved model: a README about its origin, its contents, and how to load it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tico_modules._files.manifest import Manifest
from tico_modules._record.report import Report
from tico_modules._record.run import Run
from tico_observers import replaced_file

CARD_NAME: Final = "README.md"
_MARK: Final = (
    "<!-- written by save_quantized, which replaces this file; without this line it leaves it alone -->"
)


def write_model_card(folder: Path, kind: str, manifest: Manifest, report: Report, call: str) -> None:
    """Write the card of a model of the class `kind` to `folder`, unless somebody else's file has its name.

    `call` is the call that loads it.

    Raises:
        OSError: it cannot be written.
    """
    target = folder / CARD_NAME
    if target.exists() and not target.is_file():
        return
    if target.exists() and _MARK not in target.read_text(encoding="utf-8", errors="replace"):
        return
    with replaced_file(target) as file:
        file.write("\n".join(_lines(kind, manifest, report, call)).encode())


def _lines(kind: str, manifest: Manifest, report: Report, call: str) -> Iterator[str]:
    size = sum(shard.bytes for shard in manifest.shards)
    yield f"# A quantized {kind}\n"
    yield f"{_MARK}\n"
    yield f"{len(manifest.modules)} integer modules, {size:,} bytes in {len(manifest.shards)} file(s)."
    yield "Any tool for safetensors reads the tensors; `quantized.json` says how the codes are packed.\n"
    yield "```python\nfrom tico_modules import load_quantized\n"
    if ", model" in call:
        yield f"model = ...  # a float {kind}, made as the one that was converted; its weights are not used"
    yield f"model = {call}\n```\n"
    for number, run in enumerate(manifest.runs, start=1):
        yield from _run_lines(number, run)
    yield "## What was done to every module\n"
    yield f"{report.to_markdown()}\n"


def _run_lines(number: int, run: Run) -> Iterator[str]:
    yield f"## Conversion {number}\n"
    yield f"- config: `{run.config or 'not known'}`"
    yield f"- calibration: {run.calls} calls of the model, fingerprint `{run.data or 'not known'}`"
    yield f"- started from the model with the fingerprint `{run.model or 'not known'}`"
    yield f"- versions: {', '.join(f'{name} {text}' for name, text in run.versions) or 'not known'}\n"
