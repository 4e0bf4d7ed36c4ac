"""Models of ONNX made of programs, and written so that the same model has the same bytes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import attrs
import torch
from torch.export import ExportedProgram

from tico_config import Found, Problem, UnsupportedError
from tico_export.onnx_files._cached import CacheShape, Logits, WithCache
from tico_export.onnx_files._initializers import Graph, arrange_weights
from tico_export.onnx_files._translations import translations
from tico_export.program import (
    DIALECTS,
    grids_in,
    program_in,
    register_dialect,
    with_elements,
    with_grouped_products,
    with_grouped_rows,
)
from tico_export.protocol import Example, require_extra
from tico_export.source import Source

EXTERNAL_NAME: Final = "{}.data"
OPSETS: Final = range(21, 24)


_DIALECT: Final = attrs.evolve(
    DIALECTS["onnx"], passes=(*DIALECTS["onnx"].passes, with_grouped_rows, with_grouped_products)
)


class Model(Protocol):
    """A model of onnx-ir."""

    graph: Graph
    producer_name: str | None
    producer_version: str | None
    doc_string: str | None
    metadata_props: dict[str, str]


def onnx_problems(source: Source) -> Iterator[Problem]:
    """Yield what of `source` ONNX has no operators for: groups of columns that are no blocks."""
    for grid in grids_in(source):
        if not grid.format.even:
            yield Problem(
                module=grid.path or None,
                field="group_index",
                value=Found("groups of columns that are no neighbours, or of several sizes"),
                expected="even runs of columns",
                sentence="its groups are no even runs of columns, and DequantizeLinear knows blocks only",
                remedy="quantize with static_groups=True and a group_size that divides the columns",
            )


def onnx_program(source: Source, example: Example) -> ExportedProgram:
    """Return the program of a model as ONNX is made of it.

    Raises:
        UnsupportedError: torch.export cannot trace the model.
    """
    register_dialect()
    dialect = attrs.evolve(_DIALECT, passes=(with_elements(source), *_DIALECT.passes))
    return program_in(dialect, source, example)


def onnx_model(program: ExportedProgram, opset: int, *, share: bool = False) -> Model:
    """Return `program` as a model of onnx-ir.

    With `share`, a head that is tied to embeddings is in the file once.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        UnsupportedError: torch cannot translate the program.
    """
    for package in ("onnx", "onnxscript", "onnx_ir"):
        require_extra(package, "onnx")
    table = dict(translations())
    try:
        with warnings.catch_warnings(), _quiet("torch.onnx"):
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                custom_translation_table=table,  # type: ignore[arg-type]  # operators and functions
            )
    except Exception as error:
        raise UnsupportedError(_untranslated(error)) from error
    if made is None:
        raise UnsupportedError(_untranslated(RuntimeError("no program came back")))
    model: Model = made.model
    arrange_weights(model.graph, share=share)
    _strip(model)
    return model


def cached_model(source: Source, opset: int, logits: Logits, *, share: bool = False) -> Model:
    """Return the model of ONNX of a language model with keys and values as inputs and outputs.

    It gives the logits of the ``last`` token of each call, or of ``all``; `share` is that of `onnx_model`.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        UnsupportedError: torch cannot export or translate the model.
    """
    shape = CacheShape.of(source)
    cached = attrs.evolve(source, model=WithCache(source.model, logits).eval())
    model = onnx_model(onnx_program(cached, shape.example()), opset, share=share)
    with_names(model, shape.input_names(), shape.output_names())
    return model


def with_names(model: Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the inputs and outputs of `model` their names, in order."""
    for values, names in ((model.graph.inputs, inputs), (model.graph.outputs, outputs)):
        for value, name in zip(values, names, strict=True):
            value.name = name


def save_onnx(model: Model, path: Path, external_above: int) -> None:
    """Write `model` to `path`, and its tensors beside it where they have more than `external_above` bytes."""
    ir = require_extra("onnx_ir", "onnx")
    tensors = [value.const_value for value in model.graph.initializers.values()]
    if sum(int(getattr(each, "nbytes", 0)) for each in tensors) > external_above:
        ir.save(model, path, external_data=EXTERNAL_NAME.format(path.name), size_threshold_bytes=1024)
    else:
        ir.save(model, path)


class _quiet:  # noqa: N801  # it is used as a function is
    """While it lasts, a logger of torch says errors only."""

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *raised: object) -> None:
        self.logger.setLevel(self.level)


def _untranslated(error: Exception) -> Problem:
    lines: Iterable[str] = str(error).strip().splitlines()
    first = next(iter(lines), type(error).__name__)
    return Problem(
        field="model",
        value=Found(type(error).__name__),
        expected="a model that torch's exporter to ONNX translates",
        sentence=f"torch cannot translate the model to ONNX: {first}",
        remedy="see the error that this one was raised from",
    )


def _strip(model: Model) -> None:
    """Take out what differs from machine to machine: traces of the stack, paths, names of programs."""
    model.producer_name, model.producer_version, model.doc_string = "tico-export", None, None
    model.metadata_props.clear()
    held: list[object] = [model.graph, *reversed(model.graph)]
    for each in held:
        getattr(each, "metadata_props", {}).clear()
        for value in (*getattr(each, "outputs", ()), *getattr(each, "inputs", ())):
            getattr(value, "metadata_props", {}).clear()
        if hasattr(each, "doc_string"):
            each.doc_string = None
