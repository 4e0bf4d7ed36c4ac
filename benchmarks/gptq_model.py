"""What GPTQ over a whole language model costs on one thread, and what it does to the perplexity.

Run with ``python benchmarks/gptq_model.py --tokens 8192 --peer-path DIR``: each candidate runs in a process
of its own, so that its peak of resident memory is its own. CPU seconds are given beside those of two passes
of the float model's blocks over the same tokens, which any method needs that quantizes block by block: one
to learn what a block reads, one to give the next block what it will read. ``--perplexity`` prints what each
candidate does to the perplexity of a text that it has not seen, for four grids.

CPU seconds are those of everything and those of `convert` alone, without the user's own passes; memory is
the peak above that with the float model loaded; the error is that of the last hidden states on text that was
not seen, relative to their norm.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from gptq_solver import solver_module
from language_models import WIKI_LLAMA, load, text_of
from llm_compressor_peer import quantized_by_llm_compressor
from process_memory import resident
from real_models import CALIBRATION_ARTICLES, TEST_ARTICLES, smollm2_directory, wiki_articles
from recorded import Recording, add_option, recording

# Not by the name tico.quantization, which the peer has, too.
from tico_api import (
    BlockTuneConfig,
    GPTQConfig,
    HQQConfig,
    PTQConfig,
    RotationConfig,
    ScaleTuneConfig,
    calibrate,
    convert,
    perplexity,
    prepare,
)
from tico_config import (
    BaseConfig,
    DType,
    HessianMSESpec,
    MinMaxSpec,
    PerChannel,
    PerGroup,
    affine,
    no_quant,
)

MEGABYTE: Final = 1e6
PROBE_TOKENS: Final = 1024
STACK: Final = Path("stack")


@attrs.frozen(kw_only=True)
class Task:
    """What is quantized, how, and on what."""

    folder: Path
    bits: int
    group_size: int | None
    window: int
    tokens: int
    act_order: bool
    damping: float

    def texts(self) -> tuple[str, str]:
        """Return the text to calibrate on and the one to test on."""
        if self.folder == WIKI_LLAMA:
            return text_of("calibration"), text_of("heldout")
        articles = wiki_articles()
        return "\n\n".join(articles[CALIBRATION_ARTICLES]), "\n\n".join(articles[TEST_ARTICLES])


SHOWN: Final[list[float]] = []
"""CPU seconds at which the user's own passes were over."""

Quantize = Callable[[nn.Module, Tensor, Task], nn.Module]


def untouched(model: nn.Module, calibration: Tensor, task: Task) -> nn.Module:
    """Return the float model."""
    return model


def rounded(model: nn.Module, calibration: Tensor, task: Task) -> nn.Module:
    """Return the model with its weights rounded to nearest; the same layers as GPTQ quantizes."""
    granularity = PerChannel(0) if task.group_size is None else PerGroup(1, task.group_size)
    weight = affine(DType.uint(task.bits), granularity=granularity)
    ends = {"model.embed_tokens": no_quant(), "lm_head": no_quant()}
    return convert(prepare(model, PTQConfig(activation=no_quant(), weight=weight, overrides=ends)))


def without_data(model: nn.Module, calibration: Tensor, task: Task) -> nn.Module:
    """Return the model with its weights on the grids that come nearest in an Lp norm."""
    config = HQQConfig(bits=task.bits, group_size=task.group_size, ragged_groups=True, show_progress=False)
    prepared = prepare(model, config)
    SHOWN.append(time.process_time())
    return convert(prepared)


def run(model: nn.Module, windows: Tensor) -> None:
    """Show `windows` to a prepared model, one at a time."""
    with torch.no_grad():
        for row in windows:
            _called(model, row[None])


def _called(model: nn.Module, windows: Tensor) -> object:
    """Return what a language model makes of tokens, or another model of rows."""
    with torch.no_grad():
        return model(windows) if windows.is_floating_point() else model(**_inputs(windows))


def _inputs(windows: Tensor) -> dict[str, object]:
    # A cache would be kept with the calls of the blocks.
    return {"input_ids": windows, "use_cache": False}


def calibrated(model: nn.Module, windows: Tensor) -> None:
    """Show `windows` to a prepared model by `calibrate`, which ends passes early."""
    calibrate(model, [windows if windows.is_floating_point() else _inputs(windows)], show_progress=False)


def ours(show: Callable[[nn.Module, Tensor], None] = calibrated, /, **options: object) -> Quantize:
    """Return GPTQ as this project does it."""

    def quantize(model: nn.Module, calibration: Tensor, task: Task) -> nn.Module:
        return converted(model, calibration, gptq_config(task, options), show)

    return quantize


def block_tuned(model: nn.Module, calibration: Tensor, task: Task) -> nn.Module:
    """Return the model with rounding and scales learned block by block."""
    config = BlockTuneConfig(
        bits=task.bits,
        group_size=task.group_size,
        damping=task.damping,
        ragged_groups=True,
        show_progress=False,
    )
    return converted(model, calibration, config, calibrated)


def scale_tuned(model: nn.Module, calibration: Tensor, task: Task) -> nn.Module:
    """Return GPTQ as this project does it, with scales that are tuned together afterwards."""
    config = ScaleTuneConfig(base=gptq_config(task, {}), show_progress=False)
    return converted(model, calibration, config, calibrated)


def gptq_config(task: Task, options: Mapping[str, object]) -> GPTQConfig:
    """Return the config of GPTQ for a task, with other `options` besides."""
    return GPTQConfig(
        bits=task.bits,
        group_size=task.group_size,
        damping=task.damping,
        ragged_groups=True,  # as the peers do
        show_progress=False,
        **options,  # type: ignore[arg-type]
    )


def converted(
    model: nn.Module, calibration: Tensor, config: BaseConfig, show: Callable[[nn.Module, Tensor], None]
) -> nn.Module:
    """Return a model that has been shown the calibration windows and was converted."""
    model = prepare(model, config)
    show(model, calibration)
    SHOWN.append(time.process_time())
    return convert(model)


def rotated(quantize: Quantize) -> Quantize:
    """Return the same for a model whose residual stream and value heads were rotated before."""

    def after_rotation(model: nn.Module, calibration: Tensor, task: Task) -> nn.Module:
        model = prepare(model, RotationConfig())
        run(model, calibration[:1])  # which tokens these are makes no difference
        return quantize(convert(model), calibration, task)

    return after_rotation


def tico(model: nn.Module, calibration: Tensor, task: Task) -> nn.Module:
    """Return GPTQ as Samsung's tico does it, with the same settings."""
    configs = solver_module("tico.quantization.config.gptq")  # first: the other module imports it
    quantizers = solver_module("tico.quantization.algorithm.gptq.quantizer")
    config = configs.GPTQConfig(
        weight_bits=task.bits,
        groupsize=task.group_size or -1,
        actorder=task.act_order,
        percdamp=task.damping,
        show_progress=False,
    )
    quantizer = quantizers.GPTQQuantizer(config)
    model = quantizer.prepare(model)
    run(model, calibration)
    SHOWN.append(time.process_time())
    made: nn.Module = quantizer.convert(model)
    return made


def llm_compressor(model: nn.Module, calibration: Tensor, task: Task) -> nn.Module:
    """Return GPTQ as llm-compressor does it; it makes all of the passes itself."""
    SHOWN.append(time.process_time())
    return quantized_by_llm_compressor(
        model,
        calibration,
        bits=task.bits,
        group_size=task.group_size,
        damping=task.damping,
        act_order=task.act_order,
    )


UNIFORM: Final = {"token_weights": "uniform"}
PAPER: Final[Mapping[str, object]] = {
    "row_gain": False,
    "act_order": False,
    "static_groups": False,
    "observer": MinMaxSpec(),
}
OURS: Final[Mapping[str, Quantize]] = {
    "ours": ours(),
    "ours, as published": ours(**PAPER),
    "ours, ordered alone": ours(observer=MinMaxSpec(), row_gain=False),
    "ours, searched": ours(observer=HessianMSESpec(steps=20), row_gain=False),
    "ours, blocks tuned": block_tuned,
    "ours, scales tuned": scale_tuned,
    "ours, rotated": rotated(ours()),
    "ours, uniform": ours(**UNIFORM),
    "ours, whole passes": ours(run, **UNIFORM),
    "ours, on disk": ours(**UNIFORM, offload="disk"),
    "ours, bf16 forwards": ours(**UNIFORM, forward_dtype="bfloat16"),
    "ours, true sequential": ours(**UNIFORM, true_sequential=True),
}
PEERS: Final[Mapping[str, Quantize]] = {"tico": tico, "llm-compressor": llm_compressor}
ALL: Final[Mapping[str, Quantize]] = {
    "float": untouched,
    "rotated": rotated(untouched),
    "rounded": rounded,
    "rounded, rotated": rotated(rounded),
    "hqq": without_data,
    **OURS,
    **PEERS,
}


def two_passes(model: nn.Module, windows: Tensor) -> float:
    """Return the CPU seconds of two passes through the blocks of a model, without its head."""
    body = model if windows.is_floating_point() else model.get_submodule("model")
    start = time.process_time()
    for _ in range(2):
        run(body, windows)
    return time.process_time() - start


def child(name: str, task: Task) -> dict[str, float]:
    """Quantize with one candidate and return what it took."""
    torch.set_num_threads(1)
    model, calibration, heldout = stacked(task) if task.folder == STACK else language(task)
    if name == "float":
        return {"CPU s": two_passes(model, calibration)}
    _touch(model)
    wanted = _last_states(model, heldout)
    before, start = resident("VmRSS"), time.process_time()
    quantized = ALL[name](model, calibration, task)
    end = time.process_time()
    figures = {
        "CPU s": end - start,
        "convert": end - SHOWN[-1],
        "MB": (resident("VmHWM") - before) / MEGABYTE,
    }
    return figures | {"error": float((_last_states(quantized, heldout) - wanted).norm() / wanted.norm())}


def language(task: Task) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a language model, tokens to calibrate it on, and others."""
    source = load(task.folder, task.window)
    texts, tokens = task.texts(), (task.tokens, max(PROBE_TOKENS, task.window))
    calibration, heldout = (source.windows(*pair) for pair in zip(texts, tokens, strict=True))
    return source.model, calibration, heldout


def stacked(task: Task) -> tuple[nn.Module, Tensor, Tensor]:
    """Return four linear layers, and rows whose columns depend on each other."""
    random = torch.Generator().manual_seed(0)
    size, rows = 1024, (task.tokens // task.window, task.window)
    model = nn.Sequential(*(nn.Linear(size, size) for _ in range(4))).eval()
    mixing = torch.randn(size, size, generator=random) / size**0.5
    calibration, heldout = (torch.randn(*rows, size, generator=random) @ mixing for _ in range(2))
    return model, calibration, heldout


def _touch(model: nn.Module) -> None:
    """Read every weight: those that are still in their file only are no part of the resident memory."""
    for tensor in model.parameters():
        tensor.sum()


def _last_states(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the last hidden states of a language model, or the output of another."""
    body = model if inputs.is_floating_point() else model.get_submodule("model")
    output = _called(body, inputs)
    states: Tensor = output if isinstance(output, Tensor) else vars(output)["last_hidden_state"]
    return states


def in_child(name: str, argv: Sequence[str]) -> dict[str, float] | None:
    """Return what a candidate took in a process of its own, or None where it cannot be run."""
    command = [sys.executable, __file__, *argv, "--child", name]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        print(f"{name} left out: {(finished.stderr.strip().splitlines() or ['no reason'])[-1]}")
        return None
    figures: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return figures


def compare_costs(names: Sequence[str], argv: Sequence[str], record: Recording) -> None:
    """Print one line for each candidate."""
    torch.set_num_threads(1)  # as every child does
    floor = in_child("float", argv)
    if floor is None:
        raise SystemExit(1)
    title = f"two passes of the float blocks: {floor['CPU s']:.1f} CPU s"
    record.table(title, "CPU s", "/ passes", "convert", "/ passes", "peak MB", "error")
    for name in names:
        figures = in_child(name, argv)
        if figures is not None:
            seconds = [figures[key] for key in ("CPU s", "convert")]
            cells = [cell for each in seconds for cell in (f"{each:.1f}", f"{each / floor['CPU s']:.2f}")]
            record.row(name, *cells, f"{figures['MB']:.0f}", f"{figures['error']:.4f}")


GRIDS: Final = ("4", "4,64", "4,128", "3,64")


def compare_perplexities(
    names: Sequence[str], task: Task, heldout_tokens: int, grids: Sequence[str], record: Recording
) -> None:
    """Print one line for each grid, with the perplexity that each candidate leaves."""
    source = load(task.folder, task.window)
    calibration, heldout = (
        source.windows(text, tokens)
        for text, tokens in zip(task.texts(), (task.tokens, heldout_tokens), strict=True)
    )
    record.table(f"float: {_perplexity(source.model, heldout):.2f}", *names, width=20)
    for bits, group_size in map(grid_of, grids):
        if group_size is not None and task.folder == WIKI_LLAMA and group_size > 128:
            continue
        row = f"W{bits} " + ("per channel" if group_size is None else f"group {group_size}")
        found = []
        for name in names:
            fresh = load(task.folder, task.window).model
            changed = attrs.evolve(task, bits=bits, group_size=group_size)
            try:
                found.append(f"{_perplexity(ALL[name](fresh, calibration, changed), heldout):.2f}")
            except ValueError:  # llm-compressor wants groups that divide the columns
                found.append("refused")
        record.row(row, *found)


def grid_of(text: str) -> tuple[int, int | None]:
    """Return bits and group size of `text`, such as ``4`` or ``3,64``."""
    bits, _, group_size = text.partition(",")
    return int(bits), int(group_size) if group_size else None


def _perplexity(model: nn.Module, heldout: Tensor) -> float:
    found = perplexity(model, heldout)
    return found if math.isfinite(found) else math.inf


def folder_of(name: str) -> Path:
    """Return the folder of the model called ``smollm2`` or ``wiki``, or of another one."""
    if name == "smollm2":
        return smollm2_directory()
    return WIKI_LLAMA if name == "wiki" else Path(name)


def options_from(given: Sequence[str]) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="smollm2, wiki, stack, or a folder")
    parser.add_argument("--tokens", type=int, default=8192, help="calibration tokens")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128, help="0 for one grid a row")
    parser.add_argument("--act-order", action="store_true")
    parser.add_argument("--damping", type=float, default=0.01)
    parser.add_argument("--only", action="append", help="a candidate; more than once for more")
    parser.add_argument("--peer-path", action="append", default=[], help="a folder to look for peers in")
    parser.add_argument("--perplexity", action="store_true")
    parser.add_argument("--heldout-tokens", type=int, default=8192)
    parser.add_argument(
        "--grid", action="append", help="BITS or BITS,GROUP, with --perplexity; more for more"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_option(parser)
    return parser.parse_args(given)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare costs, or perplexities."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = options_from(given)
    sys.path += arguments.peer_path
    task = Task(
        folder=folder_of(arguments.model),
        bits=arguments.bits,
        group_size=arguments.group_size or None,
        window=arguments.window,
        tokens=arguments.tokens,
        act_order=arguments.act_order,
        damping=arguments.damping,
    )
    if arguments.child:
        print(json.dumps(child(arguments.child, task)))
        return
    with recording(arguments.result) as record:
        if arguments.perplexity:
            names = arguments.only or ["rounded", "ours", "ours, uniform", *PEERS]
            grids = arguments.grid or GRIDS
            compare_perplexities(names, task, arguments.heldout_tokens, grids, record)
        else:
            print(f"torch {torch.__version__}, one thread, {task.bits} bits, {task.tokens} tokens")
            compare_costs(arguments.only or [*OURS, *PEERS], given, record)


if __name__ == "__main__":
    main()
