"""The graph of a converted model, by torch.export."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from tico_config import ArtifactError, Found, Problem, UnsupportedError
from tico_export.protocol import Example
from tico_export.source import Source


def exported(source: Source, example: Example) -> ExportedProgram:
    """Return the program of the model, with nodes of ``quantized_decomposed`` and the bits of the reference.

    Raises:
        UnsupportedError: torch.export cannot trace the model; the error has its first line.
    """
    return traced(source.model, example, type(source.model).__name__)


def traced(module: nn.Module, example: Example, name: str) -> ExportedProgram:
    """Return the program of `module`, which is a model of the class `name` or its graph.

    Raises:
        UnsupportedError: torch.export cannot trace it.
    """
    try:
        with torch.no_grad():
            return torch.export.export(
                module,
                example.args,
                dict(example.kwargs),
                dynamic_shapes=example.dynamic_shapes,  # type: ignore[arg-type]  # as the user gave it
                strict=False,
            )
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        sentence = f"torch.export cannot trace the model: {type(error).__name__}: {first}"
        raise UnsupportedError(
            Problem(
                field="model",
                value=Found(name),
                expected="a model that torch.export traces",
                sentence=sentence,
                remedy="see the error that this one was raised from; a model that returns a cache is told "
                "use_cache=False",
            )
        ) from error


def load_program(path: str | os.PathLike[str]) -> ExportedProgram:
    """Return the program at `path`, and register the operators that quantized programs are made of.

    Raises:
        ArtifactError: there is no such file, or it is no program.
    """
    register_dialect()
    file = Path(path)
    if not file.is_file():
        raise ArtifactError(Problem(field="path", value=str(file), expected="a file of torch.export"))
    try:
        return torch.export.load(file)
    except Exception as error:
        found = Found(f"{type(error).__name__}: {error}")
        raise ArtifactError(
            Problem(field="path", value=found, expected="a whole file of torch.export")
        ) from error


def register_dialect() -> None:
    """Register the operators of ``quantized_decomposed``, which torch does only when this is imported."""
    importlib.import_module("torch.ao.quantization.fx._decomposed")
