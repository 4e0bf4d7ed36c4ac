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
from tico.quantization.config import (
    DType,
    MSESpec,
    PerChannel,
    PerGroup,
    QScheme,
    SuperBlock,
    affine,
    no_quant,
)
from tico_export import GGUF, ExportResult, export
from tico_modules import PackedWeight, Parts, QuantizedLinear
from tico_quantizers.solvers import nearest

WIKI: Final = Path(__file__).parents[1] / "examples" / "wiki_llama"
_K_QUANTS: Final[Mapping[str, tuple[SuperBlock, Mapping[str, object]]]] = {
    "Q4_K": (SuperBlock(offset_bits=6), {"bits": 5, "symmetric": True}),
    "Q5_K": (SuperBlock(offset_bits=6), {"bits": 5, "symmetric": False}),
    "Q6_K": (SuperBlock(scale_bits=7), {"bits": 8, "symmetric": True}),
}
"""What groups share, and what layers have whose columns are no super-blocks, as llama.cpp has them."""
SCHEMES: Final[Mapping[str, tuple[int, int | None, bool]]] = {
    "Q4_0": (4, 32, True),
    "Q4_0 g64": (4, 64, True),
    "Q4_1": (4, 32, False),
    "Q4_1 g64": (4, 64, False),
    "Q5_0": (5, 32, True),
    "Q5_1": (5, 32, False),
    "Q4_K": (4, 32, False),
    "Q5_K": (5, 32, False),
    "Q6_K": (6, 16, True),
    "Q8_0": (8, 32, True),
    "Q8_0 per row": (8, None, True),
}
_BLOCKS: Final = [each for each in SCHEMES if each not in _K_QUANTS]
_WINDOW: Final = 512
_WIDER: Final = 4  # layers


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
        prepared = prepare(model, gptq_config(model, scheme))
        with torch.no_grad():
            for each in calibration:
                prepared(each[None])
        return convert(prepared)
    if scheme in _K_QUANTS:
        return rounded_in_super_blocks(model, gptq_config(model, scheme))
    qscheme = QScheme.PER_CHANNEL_SYMM if symmetric else QScheme.PER_CHANNEL_ASYMM
    granularity = PerChannel(0) if group is None else PerGroup(1, group)
    weight = affine(DType(bits, signed=symmetric), qscheme, granularity=granularity)
    left = {"model.embed_tokens": no_quant(), "lm_head": no_quant()}
    config_rtn = PTQConfig(activation=no_quant(), weight=weight, overrides=left)
    return convert(prepare(model, config_rtn))


def rounded_in_super_blocks(model: nn.Module, config: GPTQConfig) -> nn.Module:
    """Round the linear layers of a model to nearest, on grids that GPTQ finds in the weights alone."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and path != "lm_head":
            own = attrs.evolve(config.resolve(path).spec, observer=MSESpec())
            found = nearest(layer.weight, own)
            packed = PackedWeight.from_codes(
                found.codes,
                found.scale,
                found.zero_point,
                dtype=found.dtype,
                shape=tuple(layer.weight.shape),
                group_size=found.group_size,
                offset=found.offset,
                super_block=own.super_block,
            )
            parts = Parts(packed=packed, bias=layer.bias, act_in=None, act_out=None)
            model.set_submodule(path, QuantizedLinear(parts))
    return model


def gptq_config(model: nn.Module, scheme: str) -> GPTQConfig:
    """Return the config of a scheme; other columns than those of super-blocks have another type.

    As llama.cpp's own files have it, values of the first layers' attention have a bit more beside Q4_K.
    """
    bits, group, symmetric = SCHEMES[scheme]
    config = GPTQConfig(bits=bits, group_size=group, symmetric=symmetric, show_progress=False)
    if scheme not in _K_QUANTS:
        return config
    shared, narrow = _K_QUANTS[scheme]
    beside = {"group_size": 32, "super_block": None, **narrow}
    overrides = dict.fromkeys(_narrow(model), beside)
    if scheme == "Q4_K":
        overrides |= {f"model.layers.{number}.self_attn.v_proj": {"bits": 5} for number in range(_WIDER)}
    return attrs.evolve(config, super_block=shared, overrides=overrides)


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
    parser.add_argument("--schemes", nargs="+", choices=list(SCHEMES), default=_BLOCKS)
    parser.add_argument("--gptq", action="store_true")
    parser.add_argument("--windows", type=int, default=4)
    recorded.add_option(parser)
    options = parser.parse_args()
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
