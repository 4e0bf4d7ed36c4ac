"""tico export: a saved model in the format of a runtime."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

import attrs
import torch
from torch import Tensor

from tico_cli._model_folders import load_model, load_tokenizer, longest_window, require_quantized
from tico_cli._nearest import unknown
from tico_cli._output import tell
from tico_cli._texts import read_samples
from tico_config import ConfigError, Problem
from tico_export import (
    GGUF,
    PT2,
    AWQFormat,
    CompressedTensors,
    ExecuTorch,
    ExporterRegistry,
    ExportResult,
    ExportTarget,
    GPTQFormat,
    Onnx,
    OpenVINO,
    export,
)

_BUILT_IN: Final = (AWQFormat, CompressedTensors, ExecuTorch, GGUF, GPTQFormat, Onnx, OpenVINO, PT2)
_ENDINGS: Final[Mapping[str, str]] = {"executorch": "pte", "openvino": "xml"}
_EXAMPLE: Final = 32


def target_of(name: str, options: Mapping[str, object]) -> ExportTarget:
    """Return the target of the format `name`, with `options` as its fields.

    Raises:
        ConfigError: there is no such format, or no such option.
    """
    kinds: dict[str, type[ExportTarget]] = {kind.name: kind for kind in _BUILT_IN}
    if name not in kinds:
        kinds = {kind.name: kind for kind in ExporterRegistry().with_installed().target_types} | kinds
    if name not in kinds:
        raise unknown(None, "format", name, kinds)
    kind = kinds[name]
    known = [field.alias or field.name for field in attrs.fields(kind)]
    for option in options:
        if option not in known:
            raise unknown(name, "option", option, known)
    return kind(**options)


def options_of(texts: Iterable[str]) -> dict[str, object]:
    """Return options such as ``cache=true`` with their values as in TOML; what is none is a text.

    Raises:
        ConfigError: one has no name.

    >>> options_of(["cache=true", "scales=exact", "opset=21"])
    {'cache': True, 'scales': 'exact', 'opset': 21}
    """
    found: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(Problem(field="--set", value=text, expected="NAME=VALUE"))
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = value
    return found


def place_in(folder: Path, target: ExportTarget) -> Path:
    """Return where `tico quantize` writes `target` below the folder of the model."""
    ending = _ENDINGS.get(target.name, target.name)
    return folder / "exports" / (target.name if target.is_folder else f"model.{ending}")


def export_folder(
    folder: Path, target: ExportTarget, path: Path, *, data: Path | None = None, require: bool = False
) -> ExportResult:
    """Write the quantized model in `folder` to `path` as `target`, and have its runtime check it.

    Args:
        folder: holds the model.
        target: the format.
        path: is not there yet.
        data: a text whose first tokens it is traced with and checked on; by default, the first token numbers.
        require: make it an error if nothing checks it.

    Raises:
        ConfigError: a path is wrong.
        TicoError: the format cannot hold the model, or the runtime gives something else.
    """
    require_quantized(folder)
    example = _example(folder, data)
    model = load_model(folder)
    tell(f"export: {target.name}, with {example.shape[1]} tokens to be checked on")
    traced = {"use_cache": False} if target.needs_example else None
    verify: Literal["require", True] = "require" if require else True
    return export(model, path, target, args=(example,), kwargs=traced, verify=verify)


def result_json(result: ExportResult) -> str:
    """Return what became of an export as JSON."""
    return json.dumps(result_values(result))


def result_values(result: ExportResult) -> dict[str, object]:
    """Return what became of an export as values; what was not compared is None."""
    figures = {"sqnr": result.sqnr, "max_difference": result.max_difference, "kl": result.kl}
    finite = {
        name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()
    }
    return {
        "path": str(result.path),
        "target": result.target,
        "verified": result.verified,
        "consumer": result.consumer,
        "bytes": result.bytes,
        **finite,
        "notes": list(result.notes),
    }


def result_text(result: ExportResult) -> str:
    """Return what became of an export as sentences."""
    return "\n".join([str(result), *result.notes])


def _example(folder: Path, data: Path | None) -> Tensor:
    length = min(_EXAMPLE, longest_window(folder) or _EXAMPLE)
    if data is None:
        return torch.arange(length)[None]
    return read_samples(data, load_tokenizer(folder), length)[0]
