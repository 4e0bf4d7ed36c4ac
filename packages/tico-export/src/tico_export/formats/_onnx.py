"""Files of ONNX, as ONNX Runtime's integer kernels take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Protocol, final

import attrs
import torch
from torch import Tensor

from tico_config import FP8, MXFP4, MXFP8, NVFP4, ConfigError, FloatFormat, Found, Problem
from tico_export.onnx_files import (
    OPSETS,
    CacheShape,
    Logits,
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
from tico_export.program import fed, floats_of, grids_in, kernel_bound
from tico_export.protocol import (
    Consumer,
    Example,
    Exporter,
    ExportTarget,
    Run,
    exporter_entry,
    given,
    require_extra,
)
from tico_export.source import Source

# It makes one grid of two in a row, which moves values by many steps where the grids differ.
LEFT_OUT: Final = ("DoubleQDQPairsRemover",)
_BYTE: Final = 8
_TWO_GIGABYTES: Final = 2**31 - 2**20  # less what a file holds beside its tensors


@final
@attrs.frozen(kw_only=True)
class Onnx(ExportTarget):
    """An ONNX file of QuantizeLinear and DequantizeLinear, read by ONNX Runtime.

    Weights are integers that DequantizeLinear reads. Those of linear layers with at most 4 bits are int4 or
    uint4 in blocks of columns, which ONNX Runtime computes by MatMulNBits. Weights of FP8 and MXFP8 are
    float8 constants, which it makes floats of.

    Attributes:
        opset: the version of ONNX's operators; 21 is the first with blocks, 4 bits and 16 bits.
        external_above: the bytes of tensors above which they stand in a file beside, ``{name}.data``; a file
            of ONNX itself holds 2 GB.
        cache: whether a language model of transformers has its keys and values as inputs and outputs, so that
            it can generate: ``input_ids``, ``attention_mask``, ``position_ids`` and
            ``past_key_values.{layer}.key`` and ``.value`` (batch, heads, earlier tokens, features) go in,
            ``logits`` and ``present.{layer}.key`` and ``.value`` come out. All axes of batch and tokens vary.
        logits: of which tokens of a call a file with `cache` gives them: of the ``"last"`` one, which is what
            the next token is chosen from, or of ``"all"``, as a perplexity and onnxruntime-genai need them.

    Raises:
        ConfigError: an option has another value.
    """

    name: ClassVar[str] = "onnx"
    needs_example: ClassVar[bool] = True

    opset: int = 21
    external_above: int = _TWO_GIGABYTES
    cache: bool = False
    logits: Logits = "last"

    def __attrs_post_init__(self) -> None:
        """Refuse other options."""
        if self.opset not in OPSETS:
            expected = f"from {OPSETS.start} to {OPSETS.stop - 1}"
            raise ConfigError(Problem(field="opset", value=self.opset, expected=expected))
        size = self.external_above
        if type(size) is not int or not 0 <= size <= _TWO_GIGABYTES:
            expected = f"an integer from 0 to {_TWO_GIGABYTES}"
            raise ConfigError(Problem(field="external_above", value=size, expected=expected))
        if not isinstance(self.cache, bool):
            raise ConfigError(Problem(field="cache", value=self.cache, expected="True or False"))
        check_logits(self.logits)


@final
class OnnxExporter(Exporter[Onnx]):
    """Exports the graph of a model, translates it, and arranges its weights."""

    float_formats: ClassVar[tuple[type[FloatFormat], ...]] = (FP8, MXFP8, MXFP4, NVFP4)

    def problems(self, source: Source) -> Iterable[Problem]:
        """Yield weights that are no blocks or have no kernel, and layers that keep no keys and values."""
        yield from _element_problems(source)
        yield from onnx_problems(source)
        yield from _kernel_problems(source)
        if self.target.cache:
            yield from cache_problems(source)

    def write(self, source: Source, example: Example | None, path: Path) -> None:
        """Write the file, and the tensors beside it where they are too large for it."""
        if self.target.cache:
            model = cached_model(source, self.target.opset, self.target.logits, share=True)
        else:
            model = onnx_model(onnx_program(source, given(example)), self.target.opset, share=True)
        save_onnx(model, path, self.target.external_above)

    def consumer(self, source: Source) -> Consumer:
        """Return ONNX Runtime with its optimizations on, beside itself with them off."""
        runtime = require_extra("onnxruntime", "onnx")
        bound, options = kernel_bound(source, block_codes=True), session_options(source)
        runner = _generator(CacheShape.of(source)) if self.target.cache else _runner
        set_to = ", ".join(f"{name}={value}" for name, value in options.items())
        return Consumer(
            name=f"onnxruntime {runtime.__version__} ({set_to}, without {', '.join(LEFT_OUT)})",
            run=runner("ORT_ENABLE_ALL", options),
            smallest_sqnr=bound.smallest_sqnr,
            why=bound.why,
            steps=bound.steps,
            beside={"optimizations off": runner("ORT_DISABLE_ALL", options)},
        )


def _kernel_problems(source: Source) -> Iterator[Problem]:
    """Yield layers that ONNX Runtime 1.32 computes by a kernel that then refuses their groups."""
    for path, weight in source.weights.items():
        grid = weight.act_in
        fixed = grid is not None and not grid.is_dynamic and grid.dtype.bits <= 8
        if grid is not None and fixed and weight.group_size is not None and weight.dtype.bits > 4:
            yield Problem(
                module=path or None,
                field="act_in",
                value=Found(grid.label),
                expected="float inputs, or ones of 16 bits or with a grid a token",
                sentence=f"ONNX Runtime fails on {grid.label} inputs of {weight.dtype} weights in groups",
                remedy="use a scale a row, 4 bits, or leave the inputs in float",
            )


def _element_problems(source: Source) -> Iterator[Problem]:
    """Yield elements that ONNX Runtime 1.32 has no kernel for, or that are no weights."""
    weights = {f"{path}.packed" if path else "packed": each for path, each in source.weights.items()}
    for path, dtype in source.float_formats.items():
        if path not in weights:
            found, expected = "activations", "weights"
            sentence = f"{dtype} has a place in weights only, and these are activations"
        elif dtype.bits < _BYTE:
            found, expected = str(dtype), "elements of 8 bits"
            sentence = f"ONNX Runtime has no kernel for elements of {dtype.bits} bits, as {dtype} has"
        elif dtype.block_size is not None and weights[path].kind == "embedding":
            found, expected = str(dtype), "embeddings with a scale a row"
            sentence = (
                f"rows of embeddings are decoded as they are read, which ONNX has no operator for in {dtype}"
            )
        else:
            continue
        yield Problem(
            module=path or None,
            field="dtype",
            value=Found(found),
            expected=expected,
            sentence=sentence,
            remedy="use FP8() for weights and integers for activations, or leave it in float",
        )


def session_options(source: Source) -> Mapping[str, str]:
    """Return the options of a session of ONNX Runtime that computes an export of `source` as it is meant.

    - uint8 activations: by default, sums of uint8 times int8 overflow 16 bits on x86 processors without VNNI.
    - int8 activations: by default they are made uint8 there, and models of three axes do not load (1.32).
    - Weights of at most 4 bits: inputs are rounded to 8 bits for each block, which is the default and fast.
      Any others would be rounded too, grids of 16 bits among them, and are computed in float instead.
    """
    grids = list(grids_in(source))
    signed = any(each.role == "activation" and each.dtype.signed for each in grids)
    narrow = any(each.role == "weight" and each.dtype.bits <= 4 for each in grids)
    kept = "qdqisint8allowed" if signed else "x64quantprecision"
    return {f"session.{kept}": "1", "session.qdq_matmulnbits_accuracy_level": "4" if narrow else "1"}


def _runner(level: str, entries: Mapping[str, str]) -> Run:
    """Return what runs a file at a level of optimization, with options of a session."""

    def run(path: Path, example: Example) -> Sequence[Tensor]:
        session = _session(path, level, entries)
        names = [each.name for each in session.get_inputs()]
        inputs = {name: each.numpy() for name, each in fed(names, example).items()}
        return floats_of(session.run(None, inputs))

    return run


def _generator(shape: CacheShape) -> Callable[[str, Mapping[str, str]], Run]:
    """Return what runs a file with keys and values: half of the tokens at once, the others one by one."""

    def runner(level: str, entries: Mapping[str, str]) -> Run:
        def run(path: Path, example: Example) -> Sequence[Tensor]:
            session = _session(path, level, entries)
            return [generated(example, lambda: _step(session, shape))]

        return run

    return runner


def _step(session: _Session, shape: CacheShape) -> Step:
    """Return what reads tokens from an empty cache on."""
    past: Sequence[object] = []

    def step(tokens: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        nonlocal past
        past = past or [each.numpy() for each in shape.empty(len(tokens))]
        inputs = [*(each.numpy() for each in (tokens, mask, places)), *past]
        found, *past = session.run(None, dict(zip(shape.input_names(), inputs, strict=True)))
        return torch.as_tensor(found)

    return step


class _Input(Protocol):
    """An input of a session."""

    name: str


class _Session(Protocol):
    """A session of ONNX Runtime."""

    def get_inputs(self) -> Sequence[_Input]:
        """Return the inputs, in order."""

    def run(self, outputs: None, inputs: Mapping[str, object]) -> Sequence[object]:
        """Return all outputs, in order."""


def _session(path: Path, level: str, entries: Mapping[str, str]) -> _Session:
    runtime = require_extra("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    session: _Session = runtime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(LEFT_OUT)
    )
    return session


ONNX_ENTRY: Final = exporter_entry(Onnx, OnnxExporter)
