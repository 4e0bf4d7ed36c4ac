"""Measure what SmoothQuant, AWQ and rotations do: perplexity on text that was not calibrated on.

python benchmarks/smoothing.py w8a8 w4              every row of two tables, with SmolLM2-135M
python benchmarks/smoothing.py w4 --rows awq gptq   some rows of one
python benchmarks/smoothing.py w2                   the embedded model, which takes a minute
python benchmarks/smoothing.py w4a8 w4a4 --model wiki    activations, each token with a grid of its own

With ``--peer-path DIR``, a folder with Samsung's tico 0.3.0 (``pip install --no-deps --target DIR``), the
rows that start with tico smooth by that library, and quantize what it leaves as all others are.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

import attrs
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from language_models import WIKI_LLAMA, LanguageModel, load, text_of
from real_models import CALIBRATION_ARTICLES, TEST_ARTICLES, smollm2_directory, wiki_articles
from recorded import Recording, add_option, recording

# Not by the name tico.quantization, which the peer has, too.
from tico_api import (
    AWQConfig,
    GPTQConfig,
    PTQConfig,
    RotationConfig,
    SmoothQuantConfig,
    calibrate,
    convert,
    perplexity,
    prepare,
)
from tico_config import (
    BaseConfig,
    DType,
    PerChannel,
    PerGroup,
    PerToken,
    QScheme,
    QuantSpec,
    affine,
    no_quant,
)

WINDOW: Final = 512
NORMS_ONLY: Final = {
    "*.input_layernorm": ["*.q_proj", "*.k_proj", "*.v_proj"],
    "*.post_attention_layernorm": ["*.gate_proj", "*.up_proj"],
}


def layers_only(weight: Mapping[str, object], inputs: Mapping[str, object]) -> PTQConfig:
    """Return a config for the linear layers of the blocks and nothing else."""
    return PTQConfig(activation=no_quant(), weight=no_quant(), overrides={**weight, **inputs})


W8A8: Final = layers_only(
    {"*_proj.weight": affine(DType.int(8), QScheme.PER_CHANNEL_SYMM, granularity=PerChannel(0))},
    {"*_proj.act_in": affine(DType.uint(8))},
)

ROTATIONS: Final[Mapping[str, tuple[BaseConfig, ...]]] = {
    "plain": (),
    "R1 R2": (RotationConfig(),),
    "R4": (RotationConfig(residual=False, heads=False, online_inputs=True),),
    "R2 R4": (RotationConfig(residual=False, online_inputs=True),),
    "R1 R2 R4": (RotationConfig(online_inputs=True),),
    "smooth, R2 R4": (SmoothQuantConfig(alpha=0.5), RotationConfig(residual=False, online_inputs=True)),
}
"""By the names of SpinQuant; R4 alone is also in front of the layers behind attention, where R2 would be."""


def rotated(bits: int, inputs: QuantSpec) -> Mapping[str, tuple[BaseConfig, ...]]:
    """Return the rows of a table of rotations, with weights of `bits` rounded to nearest or by GPTQ."""
    unit = affine(DType.int(bits), QScheme.PER_CHANNEL_SYMM, granularity=PerChannel(0))
    # The layer behind a rotation of its input stands one level deeper.
    points = {r"re:.*_proj(\.layer)?\.act_in": inputs}
    rounded = layers_only({r"re:.*_proj(\.layer)?\.weight": unit}, points)
    rows: dict[str, tuple[BaseConfig, ...]] = {"float": ()}
    for name, before in ROTATIONS.items():
        gptq = GPTQConfig(bits=bits, symmetric=True, show_progress=False)
        rows[name] = (*before, rounded)
        rows[f"{name}, GPTQ"] = (*before, gptq, layers_only({}, points))
    return rows


def weights_only(bits: int, group: int) -> Mapping[str, tuple[BaseConfig, ...]]:
    """Return the rows of a table of algorithms that round weights."""
    unit = PerGroup(axis=1, size=group)
    rtn = layers_only({"*_proj.weight": affine(DType.uint(bits), granularity=unit)}, {})
    gptq = GPTQConfig(bits=bits, group_size=group, ragged_groups=True, show_progress=False)
    awq = AWQConfig(bits=bits, group_size=group, ragged_groups=True, show_progress=False)
    return {
        "float": (),
        "rtn": (rtn,),
        "gptq": (gptq,),
        "awq": (awq,),
        "awq-clip": (attrs.evolve(awq, clip=True),),
        "awq-gptq": (attrs.evolve(awq, round_weights=False), gptq),
    }


@attrs.frozen
class PeerSmoothing:
    """SmoothQuant as tico has it: norms and the layers that read them, in a list of families."""

    alpha: float


Step: TypeAlias = BaseConfig | PeerSmoothing

TABLES: Final[Mapping[str, Mapping[str, tuple[Step, ...]]]] = {
    "w8a8": {
        "float": (),
        "static": (W8A8,),
        "tico-0.5": (PeerSmoothing(0.5), W8A8),
        "tico-0.7": (PeerSmoothing(0.7), W8A8),
        "norms-0.5": (SmoothQuantConfig(alpha=0.5, mappings=NORMS_ONLY), W8A8),
        "smooth-0.5": (SmoothQuantConfig(alpha=0.5), W8A8),
        "smooth-0.7": (SmoothQuantConfig(alpha=0.7), W8A8),
        "smooth-auto": (SmoothQuantConfig(alpha="auto"), W8A8),
    },
    "w8a8-rotated": rotated(8, affine(DType.uint(8))),
    "w4a8": rotated(4, affine(DType.uint(8), granularity=PerToken())),
    "w4a4": rotated(4, affine(DType.uint(4), granularity=PerToken())),
    "w4": weights_only(4, 128),
    "w2": weights_only(2, 64),
}


@attrs.frozen(eq=False, kw_only=True)
class Data:
    """The model with its calibration and test windows."""

    language: LanguageModel
    calibration: Tensor
    heldout: Tensor


def load_data(model: str, calibration: int, heldout: int) -> Data:
    """Return ``"smollm2"`` or the embedded model, and so many tokens spread evenly over its texts."""
    if model == "wiki":
        language = load(WIKI_LLAMA, 256)
        texts = [text_of("calibration"), text_of("heldout")]
    else:
        language, articles = load(smollm2_directory(), WINDOW), wiki_articles()
        texts = ["\n\n".join(articles[part]) for part in (CALIBRATION_ARTICLES, TEST_ARTICLES)]
    windows = [
        language.windows(text, limit) for text, limit in zip(texts, (calibration, heldout), strict=True)
    ]
    return Data(language=language, calibration=windows[0], heldout=windows[1])


def quantized(model: nn.Module, steps: tuple[Step, ...], windows: Tensor) -> nn.Module:
    """Return a copy of `model` to which each of `steps` was applied, one after the other."""
    model = copy.deepcopy(model)
    for step in steps:
        if isinstance(step, PeerSmoothing):
            model = smoothed_by_peer(model, step.alpha, windows)
        else:
            model = prepare(model, step)
            calibrate(model, [{"input_ids": windows, "use_cache": False}])
            model = convert(model)
    return model


def smoothed_by_peer(model: nn.Module, alpha: float, windows: Tensor) -> nn.Module:
    """Return what tico makes of `model`."""
    library = importlib.import_module("tico.quantization")
    configs = importlib.import_module("tico.quantization.config.smoothquant")
    prepared: nn.Module = library.prepare(model, configs.SmoothQuantConfig(alpha=alpha))
    calibrate(prepared, [{"input_ids": windows, "use_cache": False}])
    smooth: nn.Module = library.convert(prepared)
    return smooth


def measure(table: str, options: argparse.Namespace, record: Recording) -> None:
    """Print the rows of one table that are asked for."""
    name = options.model or ("wiki" if table == "w2" else "smollm2")
    data = load_data(name, options.calibration, options.heldout)
    record.table(table, "perplexity", "seconds", width=16)
    for name, steps in TABLES[table].items():
        named = options.rows is None or name in options.rows
        if named and (options.peer_path or not isinstance(next(iter(steps), None), PeerSmoothing)):
            start = time.perf_counter()
            model = quantized(data.language.model, steps, data.calibration)
            seconds = time.perf_counter() - start
            record.row(name, f"{perplexity(model, data.heldout):.3f}", f"{seconds:.1f}")


def main() -> None:
    """Print a line for each row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="+", choices=TABLES)
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--model", choices=("smollm2", "wiki"), help="wiki for w2, else smollm2")
    parser.add_argument("--calibration", type=int, default=4096, help="tokens")
    parser.add_argument("--heldout", type=int, default=8192, help="tokens")
    parser.add_argument("--peer-path", help="a folder with tico 0.3.0")
    add_option(parser)
    options = parser.parse_args()
    sys.path += [options.peer_path] if options.peer_path else []
    with recording(options.result) as record:
        for table in options.tables:
            measure(table, options, record)


if __name__ == "__main__":
    main()
