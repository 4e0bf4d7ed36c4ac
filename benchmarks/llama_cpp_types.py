"""A trained LLaMA as files of llama.cpp: how near it comes to the model, and what the files take.

Weights are rounded to nearest, or by GPTQ. llama.cpp comes with `pip install 'tico-export[gguf]'`.

    python benchmarks/llama_cpp_types.py [--model {wiki,smollm2}] [--schemes NAME …] [--gptq] [--windows N]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaForCausalLM

import recorded
from real_models import CALIBRATION_ARTICLES, TEST_ARTICLES, smollm2_directory, wiki_articles
from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico.quantization.config import DType, PerChannel, PerGroup, QScheme, SuperBlock, affine, no_quant
from tico_export import GGUF, ExportResult, export

WIKI: Final = Path(__file__).parents[1] / "examples" / "wiki_llama"
SCHEMES: Final[Mapping[str, tuple[int, int | None, bool]]] = {
    "Q4_0": (4, 32, True),
    "Q4_0 g64": (4, 64, True),
    "Q4_1": (4, 32, False),
    "Q4_1 g64": (4, 64, False),
    "Q5_0": (5, 32, True),
    "Q5_1": (5, 32, False),
    "Q6_K": (6, 16, True),
    "Q8_0": (8, 32, True),
    "Q8_0 per row": (8, None, True),
}
_SUPER_BLOCKS: Final = "Q6_K"
_ROUNDED: Final = [each for each in SCHEMES if each != _SUPER_BLOCKS]
_WINDOW: Final = 512


def text_of(model: str, articles: slice[int | None, int | None, None], wiki_file: str) -> str:
    """Return text that the model is calibrated or tested on."""
    if model == "wiki":
        return (WIKI / wiki_file).read_text(encoding="utf-8")
    return "\n\n".join(wiki_articles()[articles])


def windows(folder: Path, text: str, count: int) -> Tensor:
    """Return the first tokens of a text, (windows, tokens)."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens: list[int] = tokenizer.encode(text[: count * _WINDOW * 8], add_special_tokens=False)
    return torch.tensor(tokens[: count * _WINDOW]).view(-1, _WINDOW)


def quantized(folder: Path, scheme: str, calibration: Tensor | None) -> nn.Module:
    """Return the model by a scheme: by GPTQ with data, else rounded to nearest."""
    bits, group, symmetric = SCHEMES[scheme]
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    if calibration is not None:
        config = GPTQConfig(bits=bits, group_size=group, symmetric=symmetric, show_progress=False)
        if scheme == _SUPER_BLOCKS:
            narrow = _narrow(model)
            beside = {"bits": 8, "group_size": 32, "super_block": None}
            config = attrs.evolve(
                config, super_block=SuperBlock(scale_bits=7), overrides=dict.fromkeys(narrow, beside)
            )
        prepared = prepare(model, config)
        with torch.no_grad():
            for each in calibration:
                prepared(each[None])
        return convert(prepared)
    qscheme = QScheme.PER_CHANNEL_SYMM if symmetric else QScheme.PER_CHANNEL_ASYMM
    granularity = PerChannel(0) if group is None else PerGroup(1, group)
    weight = affine(DType(bits, signed=symmetric), qscheme, granularity=granularity)
    left = {"model.embed_tokens": no_quant(), "lm_head": no_quant()}
    config_rtn = PTQConfig(activation=no_quant(), weight=weight, overrides=left)
    return convert(prepare(model, config_rtn))


def _narrow(model: nn.Module) -> list[str]:
    """Return the paths of layers whose columns are no super-blocks."""
    linear = {path: each for path, each in model.named_modules() if isinstance(each, nn.Linear)}
    return [path for path, each in linear.items() if each.in_features % 256 and path != "lm_head"]


def measured(model: nn.Module, tokens: Tensor) -> ExportResult:
    """Write the model, and have llama.cpp read the tokens."""
    with tempfile.TemporaryDirectory() as folder:
        target = GGUF(floats="float16")
        kwargs = {"use_cache": False}
        return export(
            model, Path(folder) / "model.gguf", target, args=(tokens,), kwargs=kwargs, verify="require"
        )


def main() -> None:
    """Print a line for each scheme."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model", choices=("wiki", "smollm2"), default="wiki")
    parser.add_argument("--schemes", nargs="+", choices=list(SCHEMES), default=_ROUNDED)
    parser.add_argument("--gptq", action="store_true")
    parser.add_argument("--windows", type=int, default=4)
    recorded.add_option(parser)
    options = parser.parse_args()
    if _SUPER_BLOCKS in options.schemes and not options.gptq:
        parser.error(f"{_SUPER_BLOCKS} needs --gptq")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    folder = WIKI if options.model == "wiki" else smollm2_directory()
    test = windows(folder, text_of(options.model, TEST_ARTICLES, "heldout.txt"), options.windows)
    given = windows(folder, text_of(options.model, CALIBRATION_ARTICLES, "calibration.txt"), 8)
    with recorded.recording(options.result) as out:
        out.table("Of the model, by llama.cpp", "dB", "KL", "perplexity", "llama.cpp's", "MB", width=16)
        for scheme in options.schemes:
            result = measured(quantized(folder, scheme, given if options.gptq else None), test)
            ours, theirs = result.perplexities or (float("nan"), float("nan"))
            kl = float("nan") if result.kl is None else result.kl
            figures = (f"{result.sqnr:.1f}", f"{kl:.1e}", f"{ours:.3f}", f"{theirs:.3f}")
            out.row(scheme, *figures, f"{result.bytes / 1e6:.1f}")


if __name__ == "__main__":
    main()
