"""One language model in one runtime, in a process of its own; `runtimes` starts it and asks.

    python runtime_process.py KIND PATH THREADS WINDOWS

It reads a command a line, and answers each with a line of JSON: ``prefill`` and ``decode`` with the seconds
that they took by the clock and by the processor, ``perplexity`` with that of WINDOWS, a JSON file of rows of
tokens, and ``memory`` with the most bytes that were resident so far. torch is imported only where it runs.
"""

from __future__ import annotations

import json
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from process_memory import resident

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]

PROMPT: Final = 512
DECODED: Final = 64
_SHORT: Final = 8  # tokens before the ones that are decoded


class Runtime(ABC):
    """A language model that keeps keys and values."""

    @abstractmethod
    def start(self) -> None:
        """Forget what was read."""

    @abstractmethod
    def read(self, tokens: Tokens, *, last: bool = True) -> Floats:
        """Return the logits (tokens, words) after `tokens` (1, tokens), of the `last` one at least."""


@final
class Torch(Runtime):
    """A model of transformers, in a format of floats or converted with the native back end."""

    def __init__(self, kind: str, path: str, threads: int) -> None:
        """Load it."""
        import torch
        from transformers import AutoModelForCausalLM

        from tico_modules import load_quantized, set_backend

        torch.set_num_threads(threads)
        self.torch = torch
        dtype = torch.bfloat16 if kind.endswith("bfloat16") else torch.float32
        model: torch.nn.Module
        if kind.startswith("native"):
            model = load_quantized(path).to(dtype)
            set_backend(model, "native")
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
        self.model = model.eval()
        self.cache: object = None

    def start(self) -> None:
        """Drop the cache."""
        self.cache = None

    def read(self, tokens: Tokens, *, last: bool = True) -> Floats:
        """Have the model compute the logits of the last token only, where that is all that counts."""
        given = self.torch.from_numpy(tokens)
        with self.torch.inference_mode():
            answer = self.model(
                given, use_cache=True, past_key_values=self.cache, logits_to_keep=1 if last else 0
            )
        self.cache = answer.past_key_values
        logits: Floats = answer.logits[0].float().numpy()
        return logits


@final
class OnnxRuntime(Runtime):
    """A file of ``Onnx(cache=True)``; keys and values stay where the runtime has put them."""

    def __init__(self, path: str, threads: int) -> None:
        """Load it, with the options that docs/reference/export-formats.md names."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        for name, value in (
            ("session.x64quantprecision", "1"),
            ("session.qdq_matmulnbits_accuracy_level", "4"),
        ):
            options.add_session_config_entry(name, value)
        left_out = ["DoubleQDQPairsRemover"]
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
        )
        self.value = onnxruntime.OrtValue.ortvalue_from_numpy
        self.names = [each.name for each in self.session.get_inputs()]
        self.outputs = [each.name for each in self.session.get_outputs()]
        past = next(each for each in self.session.get_inputs() if each.name.startswith("past"))
        self.empty = np.zeros((1, past.shape[1], 0, past.shape[3]), np.float32)
        self.start()

    def start(self) -> None:
        """Go back to keys and values of no tokens."""
        self.seen = 0
        self.past = [self.value(self.empty) for _ in self.names[3:]]

    def read(self, tokens: Tokens, *, last: bool = True) -> Floats:
        """Bind what the last call gave."""
        self.seen, inputs = _fed(self.seen, tokens)
        binding = self.session.io_binding()
        for name in self.names[:3]:
            binding.bind_ortvalue_input(name, self.value(inputs[name]))
        for name, value in zip(self.names[3:], self.past, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        logits, *self.past = binding.get_outputs()
        found: Floats = logits.numpy()[0]
        return found


@final
class OpenVino(Runtime):
    """A file of ``OpenVINO(cache=True)`` in float32, with keys and values in 8 bits, as it keeps them."""

    def __init__(self, path: str, threads: int) -> None:
        """Load it."""
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.request = core.compile_model(path, "CPU", settings).create_infer_request()
        self.start()

    def start(self) -> None:
        """Reset the state."""
        self.seen = 0
        self.request.reset_state()

    def read(self, tokens: Tokens, *, last: bool = True) -> Floats:
        """Look at the logits where the runtime has them."""
        self.seen, inputs = _fed(self.seen, tokens)
        found = self.request.infer({**inputs, "beam_idx": np.zeros(1, np.int32)}, share_outputs=True)
        logits: Floats = found["logits"][0]
        return logits


def _fed(seen: int, tokens: Tokens) -> tuple[int, Mapping[str, Tokens]]:
    """Return how many tokens were read then, and the inputs for `tokens` after `seen` others."""
    total = seen + tokens.shape[1]
    mask, places = np.ones((1, total), np.int64), np.arange(seen, total)[None]
    return total, {"input_ids": tokens, "attention_mask": mask, "position_ids": places}


def loaded(kind: str, path: str, threads: int) -> Runtime:
    """Return the model at `path` in the runtime `kind`."""
    if kind == "onnxruntime":
        return OnnxRuntime(path, threads)
    if kind == "openvino":
        return OpenVino(path, threads)
    return Torch(kind, path, threads)


def prefill(runtime: Runtime, prompt: Tokens) -> None:
    """Read the prompt at once."""
    runtime.start()
    runtime.read(prompt)


def decode(runtime: Runtime, prompt: Tokens) -> None:
    """Decode greedily after a few tokens, one token at a time."""
    runtime.start()
    tokens = prompt[:, :_SHORT]
    for _ in range(DECODED):
        tokens = runtime.read(tokens)[-1:].argmax(-1)[None].astype(np.int64)


def every_logit(runtime: Runtime, window: Tokens) -> Floats:
    """Return the logits (tokens, words) of a window, read one by one where a call gives the last alone."""
    runtime.start()
    logits = runtime.read(window, last=False)
    if len(logits) == window.shape[1]:
        return logits
    runtime.start()
    # Copied: a runtime may write the next logits where these are.
    return np.concatenate([runtime.read(window[:, at : at + 1]).copy() for at in range(window.shape[1])])


def perplexity(runtime: Runtime, windows: Sequence[Tokens]) -> float:
    """Return exp of the mean negative log likelihood of each token but the first of its window."""
    losses = []
    for window in windows:
        logits = every_logit(runtime, window)[:-1].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits, window[0, 1:, None], -1)[:, 0]
        losses.append(np.log(np.exp(logits).sum(-1)) - chosen)
    return math.exp(float(np.concatenate(losses).mean()))


def timed(call: Callable[[Runtime, Tokens], None], runtime: Runtime, prompt: Tokens) -> list[float]:
    """Return the seconds that a call takes, by the clock and by the processor."""
    clock, used = time.perf_counter(), time.process_time()
    call(runtime, prompt)
    return [time.perf_counter() - clock, time.process_time() - used]


def main(kind: str, path: str, threads: str, windows: str) -> None:
    """Answer commands until there are no more."""
    rows = [np.array([row], np.int64) for row in json.loads(Path(windows).read_text(encoding="utf-8"))]
    prompt = rows[0][:, :PROMPT]
    runtime = loaded(kind, path, int(threads))
    answers: dict[str, Callable[[], object]] = {
        "prefill": lambda: timed(prefill, runtime, prompt),
        "decode": lambda: timed(decode, runtime, prompt),
        "perplexity": lambda: perplexity(runtime, rows),
        "memory": lambda: resident("VmHWM"),
    }
    for line in sys.stdin:
        print(json.dumps(answers[line.strip()]()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
