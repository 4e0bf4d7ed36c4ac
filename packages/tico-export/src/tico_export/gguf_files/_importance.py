"""Importance matrices, by which llama.cpp's own quantizer weighs the columns of a weight.

The file is the one that ``llama-imatrix`` writes: for each weight the sums of the squares of its inputs, and
how many inputs there were.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from tico_config import CalibrationError, Found, Problem, UnsupportedError
from tico_export.gguf_files._architectures import ARCHITECTURES, Architecture
from tico_export.gguf_files._container import FileTensor, Value, write_gguf
from tico_export.gguf_files._tensor_types import F32, tensor_bytes
from tico_observers import GramStatistic, load_statistics

_GRAM: Final = "|gram"


def write_imatrix(
    model: nn.Module, calibration: str | os.PathLike[str], path: str | os.PathLike[str]
) -> None:
    """Write an importance matrix for ``llama-quantize --imatrix`` to `path`, where there is no file yet.

    Args:
        model: a model that `GGUF()` has names for; only its config is read.
        calibration: a file of `save_calibration` with Gram matrices, which GPTQ, AWQ and SmoothQuant with
            ``alpha="auto"`` give; their diagonals are the sums of squares.
        path: of the new file.

    Raises:
        UnsupportedError: the model is of another architecture.
        CalibrationError: the file has no Gram matrices, or one of a layer that llama.cpp does not know.
        ArtifactError: the file of statistics is damaged or of another kind.
        OSError: a file cannot be read or written, or `path` exists.
    """
    architecture = _architecture_of(model)
    sums = dict(_sums(architecture, calibration))
    rows = max(count for _, count in sums.values())
    metadata: dict[str, Value] = {
        "general.type": "imatrix",
        "imatrix.datasets": (os.fspath(Path(calibration).name),),
        "imatrix.chunk_count": 1,
        "imatrix.chunk_size": rows,
    }
    target = Path(path)
    target.touch(exist_ok=False)
    try:
        write_gguf(target, metadata, list(_tensors(sums)))
    except BaseException:
        target.unlink()
        raise


def _architecture_of(model: nn.Module) -> Architecture:
    kind: object = getattr(getattr(model, "config", None), "model_type", None)
    architecture = ARCHITECTURES.get(str(kind))
    if architecture is None:
        expected, found = f"one of {', '.join(ARCHITECTURES)}", Found(str(kind or type(model).__name__))
        sentence = f"importance matrices are written for {', '.join(ARCHITECTURES)}, and this is a {found}"
        raise UnsupportedError(Problem(field="model", value=found, expected=expected, sentence=sentence))
    return architecture


def _sums(
    architecture: Architecture, calibration: str | os.PathLike[str]
) -> Iterator[tuple[str, tuple[Tensor, int]]]:
    """Yield for each layer, by its weight's name in a file, the sums of squares and the number of rows."""
    statistics = load_statistics(calibration)
    unknown = []
    grams = {name: each for name, each in statistics.items() if isinstance(each, GramStatistic)}
    for name, each in grams.items():
        path = name.removesuffix(_GRAM)
        named = architecture.name_of(f"{path}.weight")
        if named is None:
            unknown.append(path)
        else:
            yield named, (each.matrix().diagonal().to(torch.float32), each.rows)
    if unknown or not grams:
        raise _other_layers(architecture, unknown)


def _other_layers(architecture: Architecture, unknown: list[str]) -> CalibrationError:
    """Return the error that a file has no Gram matrices, or those of other layers."""
    found = Found(f"those of {', '.join(unknown[:3])}" if unknown else "none")
    sentence = f"the calibration has Gram matrices of layers that llama.cpp's {architecture.name} lacks"
    return CalibrationError(
        Problem(
            field="calibration",
            value=found,
            expected="Gram matrices of the model's layers",
            sentence=f"{sentence}: {found}" if unknown else "the calibration has no Gram matrices",
            remedy="take a file of save_calibration for this model prepared with GPTQConfig()",
        )
    )


def _tensors(sums: Mapping[str, tuple[Tensor, int]]) -> Iterator[FileTensor]:
    for name, (squares, rows) in sorted(sums.items()):
        count = torch.tensor([[float(rows)]])
        for part, values in (("counts", count), ("in_sum2", squares[None])):
            content = partial(tensor_bytes, values)
            yield FileTensor(name=f"{name}.{part}", type=F32, shape=tuple(values.shape), content=content)
