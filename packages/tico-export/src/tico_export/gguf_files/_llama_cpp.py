"""llama.cpp, by way of cyllama, and how near it comes to a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, Protocol

import torch
from torch import Tensor

from tico_config import ConfigError, Found, Problem
from tico_export.gguf_files._container import FileTensor
from tico_export.gguf_files._tensor_types import F32, TensorType
from tico_export.protocol import Consumer, Example, require_extra

EXTRA: Final = "gguf"
_CPP: Final = "cyllama.llama.llama_cpp"


def llama_cpp(tensors: Iterable[FileTensor]) -> Consumer:
    """Return llama.cpp on the processor, which is to come near a model with `tensors`.

    Products convert their inputs to a type that goes with that of the weight, and the noise of all products
    adds up. An embedding counts as one: it is read without any, but a head that is tied to it is not.
    """
    cyllama, runtime = require_extra("cyllama", EXTRA), require_extra(_CPP, EXTRA)
    weights = [each.type for each in tensors if len(each.shape) > 1]
    return Consumer(
        name=f"llama.cpp (ggml {runtime.ggml_version()}, cyllama {cyllama.__version__})",
        run=_run,
        smallest_sqnr=least_sqnr(weights),
        why=_reason(weights),
    )


def least_sqnr(types: Iterable[TensorType]) -> float:
    """Return the signal-to-noise ratio, in dB, of logits after products with weights of `types`."""
    noise = sum(10 ** (-each.smallest / 10) for each in types)
    return min(-10 * math.log10(noise), F32.smallest) if noise else F32.smallest


def _reason(types: Sequence[TensorType]) -> str:
    sizes = sorted({each.block for each in types if each.block > 1})
    if sizes:
        blocks = " or ".join(map(str, sizes))
        return f"its kernels round the inputs of integer weights to 8 bits for each block of {blocks}"
    return "its kernels round the inputs of a weight to the weight's format"


class Model(Protocol):
    """A model that llama.cpp has loaded."""

    def close(self) -> None:
        """Let go of it."""


def _run(path: Path, example: Example) -> Sequence[Tensor]:
    runtime, tokens = require_extra(_CPP, EXTRA), _tokens(example)
    runtime.disable_logging()
    model = _load(runtime, path)
    try:
        return [torch.stack([_logits(runtime, model, each.tolist()) for each in tokens])]
    finally:
        model.close()


def _load(runtime: ModuleType, path: Path) -> Model:
    """Return the model at `path`, on the processor."""
    parameters = runtime.LlamaModelParams()
    parameters.n_gpu_layers = 0
    # Contexts of cyllama 0.2.18 read a property that its models lack.
    size = property(lambda model: model.get_vocab().n_vocab)
    model: Model = type("SizedModel", (runtime.LlamaModel,), {"n_vocab": size})(str(path), parameters)
    return model


def _logits(runtime: ModuleType, model: Model, tokens: Sequence[int]) -> Tensor:
    """Return the logits after each of `tokens`, float32 (tokens, vocabulary).

    Keys and values are float32, and attention is computed step by step, so that products with weights are
    all that differs.
    """
    parameters, count = runtime.LlamaContextParams(), len(tokens)
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = count
    parameters.n_threads = parameters.n_threads_batch = torch.get_num_threads()
    parameters.type_k = parameters.type_v = F32.number
    parameters.flash_attn_type = 0
    context = runtime.LlamaContext(model, parameters)
    batch = runtime.LlamaBatch(n_tokens=count, embd=0, n_seq_max=1)
    try:
        for place, token in enumerate(tokens):
            batch.add(token, place, [0], True)
        context.decode(batch)
        return torch.stack([torch.tensor(context.get_logits_ith(place)) for place in range(count)])
    finally:
        batch.close()
        context.close()


def _tokens(example: Example) -> Tensor:
    """Return the tokens (batch, tokens) of the example.

    Raises:
        ConfigError: there are none, or some are padding.
    """
    given = example.kwargs.get("input_ids", example.args[0] if example.args else None)
    if not isinstance(given, Tensor) or given.ndim != 2 or given.is_floating_point():
        found = Found(type(given).__name__)
        raise ConfigError(Problem(field="args", value=found, expected="tokens (batch, tokens)"))
    mask = example.kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and not bool(mask.all()):
        remedy = "give sequences of one length"
        raise ConfigError(
            Problem(field="attention_mask", value=Found("padding"), expected="all ones", remedy=remedy)
        )
    return given
