"""OpenVINO's intermediate representation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Final, Protocol, final

import attrs
import torch
from torch import Tensor
from typing_extensions import Self

from tico_config import ConfigError, Problem, UnsupportedError
from tico_export.onnx_files import (
    CacheShape,
    Logits,
    Model,
    Step,
    cache_problems,
    cached_model,
    check_logits,
    generated,
    onnx_model,
    onnx_problems,
    onnx_program,
    save_onnx,
)
from tico_export.openvino_files import BEAM, Graph, keep_state, name_by_place
from tico_export.program import fed, floats_of, grids_in, kernel_bound
from tico_export.protocol import (
    Consumer,
    Example,
    Exporter,
    ExportTarget,
    exporter_entry,
    given,
    require_extra,
)
from tico_export.source import Source

_OPSET: Final = 21
_CACHED_OPSET: Final = (
    23  # the first with attention as one operator, which the runtime computes with its state
)
_FLOATS: Final = {"INFERENCE_PRECISION_HINT": "f32"}
# By default, keys and values are rounded to 8 bits where attention is one operator.
_KEPT_FLOATS: Final = {**_FLOATS, "KV_CACHE_PRECISION": "f32"}


@final
@attrs.frozen(kw_only=True)
class OpenVINO(ExportTarget):
    """A file ``*.xml`` with its weights beside it, ``*.bin``, made by way of ONNX.

    From a program OpenVINO takes no weights that are integers already; from ONNX it takes int8, and int4 in
    groups.

    Attributes:
        cache: whether a language model of transformers keeps keys and values in the runtime, from call to
            call until its state is reset, so that it can generate. ``input_ids``, ``attention_mask`` of all
            tokens so far, ``position_ids`` and ``beam_idx`` (batch,) go in, ``logits`` come out, named as
            openvino-genai and optimum-intel name them. All axes of batch and tokens vary.
        logits: of which tokens of a call a file with `cache` gives them: of the ``"last"`` one, which is what
            the next token is chosen from, or of ``"all"``, as a perplexity needs them.

    Raises:
        ConfigError: an option has another value.
    """

    name: ClassVar[str] = "openvino"
    needs_example: ClassVar[bool] = True

    cache: bool = False
    logits: Logits = "last"

    def __attrs_post_init__(self) -> None:
        """Refuse other options."""
        if not isinstance(self.cache, bool):
            raise ConfigError(Problem(field="cache", value=self.cache, expected="True or False"))
        check_logits(self.logits)


@final
class OpenVINOExporter(Exporter[OpenVINO]):
    """Writes a model of ONNX, and has OpenVINO convert it."""

    def problems(self, source: Source) -> Iterable[Problem]:
        """Yield weights whose groups are no blocks, and layers that keep no keys and values."""
        yield from onnx_problems(source)
        if self.target.cache:
            yield from cache_problems(source)

    def write(self, source: Source, example: Example | None, path: Path) -> None:
        """Write both files.

        Raises:
            ConfigError: the path does not end in ``.xml``, which is how OpenVINO finds the weights.
        """
        if path.suffix != ".xml":
            raise ConfigError(Problem(field="path", value=path.name, expected="a name that ends in .xml"))
        openvino = require_extra("openvino", "openvino")
        if self.target.cache:
            model = _cached(source, self.target.logits)
        else:
            model = onnx_model(onnx_program(source, given(example)), _OPSET)
        with TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            save_onnx(model, file, external_above=2**30)
            converted: Graph = openvino.convert_model(str(file))
            if self.target.cache:
                keep_state(converted, CacheShape.of(source).kept())
            name_by_place(converted)
            openvino.save_model(converted, str(path), compress_to_fp16=False)

    def consumer(self, source: Source) -> Consumer:
        """Return OpenVINO on the processor, with floats of 32 bits."""
        openvino = require_extra("openvino", "openvino")
        bound = kernel_bound(source, block_codes=True)
        settings = _KEPT_FLOATS if self.target.cache else _FLOATS
        set_to = ", ".join(f"{name}={value}" for name, value in settings.items())
        return Consumer(
            name=f"openvino {openvino.__version__} ({set_to})",
            run=_generate if self.target.cache else _run,
            smallest_sqnr=bound.smallest_sqnr,
            why=f"{bound.why}{_overflow(source)}",
            steps=bound.steps,
        )


def _cached(source: Source, logits: Logits) -> Model:
    """Return a model with attention as one operator, or as several where torch cannot tell its heads."""
    try:
        return cached_model(source, _CACHED_OPSET, logits)
    except UnsupportedError:
        return cached_model(source, _OPSET, logits)


def _overflow(source: Source) -> str:
    """Return what to do about sums of two products of 8 bits, which do not fit into 16 bits."""
    weights = [each for each in grids_in(source) if each.role == "weight" and each.dtype.bits == 8]
    inputs = [each for each in grids_in(source) if each.role == "activation" and each.dtype.bits == 8]
    if not (weights and inputs):
        return ""
    return "; on processors without VNNI sums of 8 bits overflow, and weights of 7 bits are right"


def _run(path: Path, example: Example) -> Sequence[Tensor]:
    compiled = _compiled(path, _FLOATS)
    inputs = [each.any_name for each in compiled.inputs]
    found = compiled({name: each.numpy() for name, each in fed(inputs, example).items()})
    return floats_of([found[each].copy() for each in compiled.outputs])


def _generate(path: Path, example: Example) -> Sequence[Tensor]:
    compiled = _compiled(path, _KEPT_FLOATS)
    return [generated(example, lambda: _step(compiled.create_infer_request()))]


def _step(request: _Request) -> Step:
    """Return what reads tokens from an empty state on."""

    def step(tokens: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        rows = torch.arange(len(tokens), dtype=torch.int32)
        given = {"input_ids": tokens, "attention_mask": mask, "position_ids": places, BEAM: rows}
        found = request.infer({name: each.numpy() for name, each in given.items()})
        return torch.as_tensor(found["logits"].copy())

    return step


class _Port(Protocol):
    """An input or output of a compiled model."""

    any_name: str


class _Array(Protocol):
    """An array of numpy."""

    def copy(self) -> Self:
        """Return one with memory of its own."""


class _Request(Protocol):
    """What runs a compiled model, with a state of its own."""

    def infer(self, inputs: Mapping[str, object]) -> Mapping[str, _Array]:
        """Return the outputs by name."""


class _Compiled(Protocol):
    """A compiled model."""

    inputs: Sequence[_Port]
    outputs: Sequence[_Port]

    def __call__(self, inputs: Mapping[str, object]) -> Mapping[_Port, _Array]:
        """Return the outputs."""

    def create_infer_request(self) -> _Request:
        """Return what runs it."""


def _compiled(path: Path, settings: Mapping[str, str]) -> _Compiled:
    core = require_extra("openvino", "openvino").Core()
    compiled: _Compiled = core.compile_model(core.read_model(str(path)), "CPU", dict(settings))
    return compiled


OPENVINO_ENTRY: Final = exporter_entry(OpenVINO, OpenVINOExporter)
