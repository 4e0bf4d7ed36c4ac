"""A language model of 4-bit weights as a folder of compressed-tensors, in transformers and in vLLM.

    python benchmarks/compressed_models.py [--model {smollm2,wiki}] [--vllm-python PROGRAM] [--folder FOLDER]

Linear layers of the blocks have 4 bits in groups of 64 by GPTQ. transformers, with compressed-tensors, is to
give the perplexity of the model itself. vLLM computes in bfloat16: how far its log probabilities are from the
model's in float32 stands beside how far those of the model in bfloat16 are. PROGRAM is the Python of an
environment with vLLM, as `nox -s "runtimes(vllm)"` makes it; without it that table is left out. The model is
quantized once, and kept in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import warnings
from pathlib import Path
from typing import Final

import attrs
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import recorded
from language_models import WIKI_LLAMA, LanguageModel, load, logits_of
from real_models import CALIBRATION_ARTICLES, TEST_ARTICLES, smollm2_directory, wiki_articles
from tico.quantization import (
    GPTQConfig,
    calibrate,
    convert,
    load_quantized,
    perplexity,
    prepare,
    save_quantized,
)
from tico.quantization.config import profiles
from tico_export import CompressedTensors, export

_VLLM: Final = recorded.ROOT / "tests" / "support" / "vllm_log_probabilities.py"
_CONFIG: Final = profiles.VLLM.config(GPTQConfig, bits=4, group_size=64, show_progress=False)
_CALIBRATION: Final = 8  # windows
_ROW: Final = 256  # tokens that vLLM reads at once
_ROWS: Final = 8
_VERIFIED: Final = 64  # tokens


@attrs.frozen(eq=False)
class Subject:
    """A float model, the tokens of its windows, and a folder for what is made of it."""

    source: Path
    window: int
    folder: Path

    def windows(
        self, articles: slice[int | None, int | None, None], count: int, window: int | None = None
    ) -> Tensor:
        """Return the first tokens of articles, (windows, tokens)."""
        size = window or self.window
        text = "\n\n".join(wiki_articles()[articles])[: count * size * 8]
        return LanguageModel(self.source, nn.Identity(), size).windows(text, 2**62)[:count]

    def quantized(self) -> nn.Module:
        """Return the model of 4-bit weights, which is made where it is not there."""
        place = self.folder / "quantized"
        if not place.exists():
            prepared = prepare(load(self.source, self.window).model, _CONFIG)
            windows = self.windows(CALIBRATION_ARTICLES, _CALIBRATION)
            calibrate(prepared, [{"input_ids": windows, "use_cache": False}])
            save_quantized(convert(prepared), place)
        return load_quantized(place)

    def exported(self, model: nn.Module) -> tuple[Path, str]:
        """Return the folder of compressed-tensors, written anew, and what was found when it was verified."""
        place, number = self.folder / "compressed-tensors", 1
        while place.exists():
            place, number = place.with_name(f"compressed-tensors-{number}"), number + 1
        tokens = self.windows(TEST_ARTICLES, 1)[:, :_VERIFIED]
        target, kwargs = CompressedTensors(), {"use_cache": False}
        result = export(model, place, target, args=(tokens,), kwargs=kwargs, verify="require")
        figures = (
            f"{result.sqnr:.1f} dB, at most {result.max_difference:.2g} apart, {result.bytes / 1e6:.1f} MB"
        )
        return place, f"verified by {result.consumer}: {figures}"


def log_probabilities(model: nn.Module, rows: Tensor) -> Tensor:
    """Return the log probability of each token but the first of its row."""
    found = []
    for row in rows:
        logits = logits_of(model, row[None])[:, :-1].float()
        found.append(logits.log_softmax(-1).gather(-1, row[None, 1:, None]).squeeze(-1))
    return torch.cat(found)


def given_by_vllm(program: Path, folder: Path, rows: Tensor) -> tuple[Tensor, list[str]]:
    """Return the same by vLLM, in a process of its own, and which kernels torch computed in its place."""
    asked, told, log = (folder.with_name(f"vllm.{name}") for name in ("tokens", "result", "log"))
    asked.write_text(json.dumps(rows.tolist()), encoding="utf-8")
    command = [str(program), str(_VLLM), str(folder), str(asked), str(told)]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("w", encoding="utf-8") as errors:
        ran = subprocess.run(
            command, check=True, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    found = torch.tensor(json.loads(told.read_text(encoding="utf-8")))
    return found, [line for line in ran.stdout.splitlines() if line.startswith("multiplied by torch")]


def from_transformers(folder: Path) -> nn.Module:
    """Return the model of a folder, as transformers loads it."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return model.eval()


def compare_perplexity(
    subject: Subject, model: nn.Module, folder: Path, windows: int, out: recorded.Recording
) -> None:
    """Print the perplexity of the float model, of the model, and of its folder by transformers."""
    test = subject.windows(TEST_ARTICLES, windows)
    out.table(f"{subject.source.name}, {test.numel()} tokens in windows of {subject.window}", "perplexity")
    out.row("float", f"{perplexity(load(subject.source, subject.window).model, test, 1):.5f}")
    out.row("the model", f"{perplexity(model, test, 1):.5f}")
    out.row("its folder, transformers", f"{perplexity(from_transformers(folder), test, 1):.5f}")


def compare_vllm(
    subject: Subject, model: nn.Module, folder: Path, program: Path, out: recorded.Recording
) -> None:
    """Print how far log probabilities by vLLM and by the model in bfloat16 are from those in float32."""
    rows = subject.windows(TEST_ARTICLES, _ROWS, _ROW)
    expected = log_probabilities(model, rows)
    found, notes = given_by_vllm(program, folder, rows)
    own = (log_probabilities(model.to(torch.bfloat16), rows) - expected).abs().mean().item()
    difference = (found - expected).abs().mean().item()
    title = f"{subject.source.name}, mean difference of log probabilities from the model in float32"
    out.table(title, "difference", "/ bfloat16")
    out.row("the model in bfloat16", f"{own:.4f}", "1.00")
    out.row("its folder, vLLM in bfloat16", f"{difference:.4f}", f"{difference / own:.2f}")
    for note in notes:
        out.note(note)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("smollm2", "wiki"), default="smollm2")
    parser.add_argument("--windows", type=int, default=8, help="windows that the perplexity is of")
    parser.add_argument("--vllm-python", type=Path, help="the Python of an environment with vLLM")
    parser.add_argument("--folder", type=Path, default=recorded.UNPUBLISHED / "compressed_models")
    recorded.add_option(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    source, window = (smollm2_directory(), 512) if options.model == "smollm2" else (WIKI_LLAMA, 256)
    folder = options.folder / options.model
    folder.mkdir(parents=True, exist_ok=True)
    subject = Subject(source, window, folder)
    model = subject.quantized()
    with recorded.recording(options.result) as out:
        written, verified = subject.exported(model)
        compare_perplexity(subject, model, written, options.windows, out)
        out.note(verified)
        if options.vllm_python is not None:
            compare_vllm(subject, model, written, options.vllm_python, out)


if __name__ == "__main__":
    main()
