"""tico inspect: what a folder of save_quantized holds, read from its files alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import final

import attrs

from tico_cli._model_folders import require_quantized
from tico_cli._output import bytes_text, config_text, table
from tico_config import from_json
from tico_modules import LayerReport, Run, SavedModel


@final
@attrs.frozen(kw_only=True)
class SavedLayer:
    """One line: what the report says of a module, and the bytes of its tensors in the files."""

    line: LayerReport
    bytes: int


@final
@attrs.frozen(kw_only=True)
class Contents:
    """What a folder holds, every byte of it checked against its seal.

    Attributes:
        folder: the folder.
        architecture: the class of the transformers model; None for any other.
        files: the names of the files with tensors, and their bytes.
        runs: the conversions, oldest first.
        layers: a line for each module.
    """

    folder: Path
    architecture: str | None
    files: tuple[tuple[str, int], ...]
    runs: tuple[Run, ...]
    layers: tuple[SavedLayer, ...]

    @property
    def bytes(self) -> int:
        """The bytes of all files with tensors."""
        return sum(size for _, size in self.files)

    @property
    def bits(self) -> tuple[tuple[int, int], ...]:
        """How many modules have codes of how many bits."""
        widths = (each.line.bits for each in self.layers)
        return tuple(sorted(Counter(bits for bits in widths if bits is not None).items()))

    def to_json(self) -> str:
        """Return the contents as JSON."""
        return json.dumps(
            {
                "folder": str(self.folder),
                "architecture": self.architecture,
                "bytes": self.bytes,
                "files": dict(self.files),
                "bits": {str(bits): count for bits, count in self.bits},
                "runs": [_run_values(run) for run in self.runs],
                "layers": [attrs.asdict(each.line) | {"bytes": each.bytes} for each in self.layers],
            }
        )

    def to_markdown(self) -> str:
        """Return the contents as text, with a table of the modules."""
        widths = ", ".join(f"{count} of {bits} bits" for bits, count in self.bits) or "none"
        size = f"{bytes_text(self.bytes)} in {len(self.files)} file(s)"
        rows: list[tuple[str, ...]] = [
            (
                each.line.path,
                each.line.module,
                each.line.algorithm,
                each.line.weight,
                each.line.activation,
                f"{each.bytes:,}",
            )
            for each in self.layers
            if each.bytes or each.line.bits
        ]
        parts = [
            f"{self.folder}: {self.architecture or 'a model'}, {size}",
            f"modules with codes: {widths}",
            *(_run_text(number, run) for number, run in enumerate(self.runs, 1)),
            table(("module", "kind", "algorithm", "weight", "activation", "bytes"), rows),
        ]
        return "\n\n".join(parts)


def inspect_folder(folder: Path) -> Contents:
    """Return what `folder` holds; neither transformers nor the code of the model is needed.

    Raises:
        ConfigError: it holds no quantized model.
        ArtifactError: a file is missing or damaged.
        OSError: a file cannot be read.
    """
    require_quantized(folder)
    saved = SavedModel.open(folder)
    runs = saved.manifest.runs
    lines = {line.path: line for run in runs for line in run.report.layers}
    sizes = _sizes(saved, lines)
    for path in [each for each in sizes if each not in lines]:  # of modules no algorithm has looked at
        lines[path] = LayerReport(path=path, module="", algorithm="", reason="no algorithm was run on it")
    return Contents(
        folder=folder,
        architecture=saved.architecture,
        files=tuple((shard.name, shard.bytes) for shard in saved.manifest.shards),
        runs=runs,
        layers=tuple(SavedLayer(line=line, bytes=sizes[path]) for path, line in lines.items()),
    )


def _sizes(saved: SavedModel, lines: dict[str, LayerReport]) -> Counter[str]:
    """Return the bytes of the tensors of each line, those below its path and below no longer one.

    Tensors below no line count for the module that has them.
    """
    sizes: Counter[str] = Counter()
    for name, tensor in saved.tensors.items():
        if name not in saved.manifest.aliases:
            own = path = name.rpartition(".")[0]
            while path and path not in lines:
                path = path.rpartition(".")[0]
            sizes[path if path in lines else own] += tensor.nbytes
    return sizes


def _run_values(run: Run) -> dict[str, object]:
    config: object = json.loads(run.config)["config"] if run.config else None
    return {
        "config": config,
        "model": run.model,
        "data": run.data,
        "calls": run.calls,
        "versions": dict(run.versions),
    }


def _run_text(number: int, run: Run) -> str:
    config = config_text(from_json(run.config)) if run.config else "a config that is not known"
    versions = ", ".join(f"{name} {text}" for name, text in run.versions)
    seen = f"{run.calls} calls, data {run.data[:12]}" if run.calls else "no data"
    return f"conversion {number}: {config}; {seen}; float model {run.model[:12]}; {versions}"
