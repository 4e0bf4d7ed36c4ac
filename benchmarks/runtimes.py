"""How a language model, quantized by this library, runs in each runtime, next to transformers.

    python benchmarks/runtimes.py [--model {smollm2,wiki}] [--rows NAME …] [--threads 1 2] [--folder FOLDER]

Every row is a process of its own, which loads and runs nothing else. The processes of one number of threads
take turns, round by round; the tables have medians over rounds, of seconds of the processor on one thread and
of the clock on more. Models are quantized and exported once, and kept in FOLDER. Runtimes are looked for on
the path of modules and in each ``--peer-path DIR``; rows of those that are not there are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, cast

import attrs
import torch
from torch import Tensor, nn

import recorded
from language_models import WIKI_LLAMA, LanguageModel, load
from real_models import CALIBRATION_ARTICLES, TEST_ARTICLES, smollm2_directory, wiki_articles
from runtime_process import DECODED
from tico.quantization import (
    GPTQConfig,
    PTQConfig,
    calibrate,
    convert,
    load_quantized,
    prepare,
    save_quantized,
)
from tico.quantization.config import DType, PerChannel, PerGroup, QuantSpec, affine, no_quant
from tico_export import ExportTarget, Onnx, OpenVINO, export

_PROCESS: Final = Path(__file__).with_name("runtime_process.py")
_CALIBRATION: Final = 8  # windows
_VERIFIED: Final = 16  # tokens
_INSTRUCTIONS: Final = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@attrs.frozen
class Scheme:
    """Bits of the layers' weights, and columns that share a scale; embeddings and the head have 8 bits."""

    bits: int
    group: int | None
    head_group: int | None = None


SCHEMES: Final[Mapping[str, Scheme]] = {
    "W4 g32": Scheme(4, 32, 32),
    "W4 g64": Scheme(4, 64),
    "W8 g32": Scheme(8, 32, 32),
    "W8": Scheme(8, None),
}


@attrs.frozen
class Candidate:
    """What runs, of which scheme: None for the float model, and the package that it needs."""

    kind: str
    scheme: str | None
    needs: str = "torch"


ROWS: Final[Mapping[str, Candidate]] = {
    "transformers float32": Candidate("float32", None),
    "transformers bfloat16": Candidate("bfloat16", None),
    "native W4 g64": Candidate("native", "W4 g64"),
    "native W4 g64, bfloat16": Candidate("native bfloat16", "W4 g64"),
    "ONNX Runtime W4 g32": Candidate("onnxruntime", "W4 g32", "onnxruntime"),
    "ONNX Runtime W8 g32": Candidate("onnxruntime", "W8 g32", "onnxruntime"),
    "OpenVINO W4 g64": Candidate("openvino", "W4 g64", "openvino"),
    "OpenVINO W8": Candidate("openvino", "W8", "openvino"),
}
_TARGETS: Final[Mapping[str, tuple[str, ExportTarget]]] = {
    "onnxruntime": (".onnx", Onnx(cache=True)),
    "openvino": (".xml", OpenVINO(cache=True)),
}


@attrs.frozen(eq=False)
class Models:
    """A float model, the tokens of its windows, and a folder for what is made of it."""

    source: Path
    window: int
    folder: Path

    def windows(self, articles: slice[int | None, int | None, None], count: int) -> Tensor:
        """Return the first tokens of articles, (windows, tokens)."""
        text = "\n\n".join(wiki_articles()[articles])[: count * self.window * 8]
        return LanguageModel(self.source, nn.Identity(), self.window).windows(text, 2**62)[:count]

    def quantized(self, name: str) -> Path:
        """Return the folder of the model quantized by a scheme, which is made where it is not there."""
        place = self.folder / name.replace(" ", "_")
        if not place.exists():
            scheme, model = SCHEMES[name], load(self.source, self.window).model
            calibration = self.windows(CALIBRATION_ARTICLES, _CALIBRATION)
            save_quantized(with_head(layers(model, scheme, calibration), scheme), place)
        return place

    def path(self, candidate: Candidate) -> Path:
        """Return the file or folder that a candidate runs, which is made where it is not there."""
        if candidate.scheme is None:
            return self.source
        place = self.quantized(candidate.scheme)
        if candidate.kind not in _TARGETS:
            return place
        suffix, target = _TARGETS[candidate.kind]
        path = place.with_suffix(suffix)
        if not path.exists():
            tokens = self.windows(CALIBRATION_ARTICLES, 1)[:, :_VERIFIED]
            result = export(
                load_quantized(place),
                path,
                target,
                args=(tokens,),
                kwargs={"use_cache": False},
                verify="require",
            )
            print(result, flush=True)
        return path


def layers(model: nn.Module, scheme: Scheme, calibration: Tensor) -> nn.Module:
    """Return `model` with integer layers: 4 bits by GPTQ, 8 rounded to nearest."""
    if scheme.bits == 8:
        left = {"model.embed_tokens": no_quant(), "lm_head": no_quant()}
        config = PTQConfig(activation=no_quant(), weight=_eight(scheme.group), overrides=left)
        return convert(prepare(model, config))
    prepared = prepare(model, GPTQConfig(bits=scheme.bits, group_size=scheme.group, show_progress=False))
    calibrate(prepared, [{"input_ids": calibration, "use_cache": False}])
    return convert(prepared)


def with_head(model: nn.Module, scheme: Scheme) -> nn.Module:
    """Return a model whose embeddings and head have 8 bits as well."""
    eight = _eight(scheme.head_group)
    overrides = {"model.embed_tokens.weight": eight, "lm_head.weight": eight}
    return convert(prepare(model, PTQConfig(activation=no_quant(), weight=no_quant(), overrides=overrides)))


def _eight(group: int | None) -> QuantSpec:
    return affine(DType.int(8), granularity=PerChannel(0) if group is None else PerGroup(1, group))


def bytes_of(path: Path) -> int:
    """Return the bytes of a file with what stands beside it under its name, or of the weights in a folder."""
    every = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.stem}.*")
    kept = {".safetensors", ".bin", ".json", ".onnx", ".xml", ".data"}
    return sum(each.stat().st_size for each in every if each.is_file() and each.suffix in kept)


class Process:
    """A candidate in a process of its own."""

    def __init__(self, candidate: Candidate, path: Path, threads: int, windows: Path) -> None:
        """Start it; what it says of itself goes to a file beside `windows`."""
        command = [sys.executable, str(_PROCESS), candidate.kind, str(path), str(threads), str(windows)]
        variables = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
        }
        self.threads, self.log = threads, windows.with_name(f"{candidate.kind}-{path.stem}.log")
        with self.log.open("w", encoding="utf-8") as log:
            self.running = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=variables
            )

    def ask(self, what: str) -> object:
        """Return the answer to a command.

        Raises:
            RuntimeError: the process has ended.
        """
        given, found = self.running.stdin, self.running.stdout
        if given is None or found is None:
            raise RuntimeError("the process was started without pipes")
        given.write(f"{what}\n")
        given.flush()
        line = found.readline()
        if not line:
            raise RuntimeError(f"a process ended before it answered {what}, see {self.log}")
        return json.loads(line)

    def seconds(self, what: str) -> float:
        """Return how long a command takes: by the processor on one thread, by the clock on more."""
        clock, used = cast("list[float]", self.ask(what))
        return used if self.threads == 1 else clock

    def end(self) -> None:
        """Let it end."""
        self.running.communicate()


@attrs.define
class Figures:
    """What was measured of a process: seconds in each round, and the most bytes that were resident."""

    prefill: list[float] = attrs.field(factory=list)
    decode: list[float] = attrs.field(factory=list)
    memory: int = 0


def in_turn(running: Mapping[str, Process], rounds: int) -> dict[str, Figures]:
    """Return the figures of processes that take turns; the first round only warms up."""
    found = {name: Figures() for name in running}
    for number in range(rounds + 1):
        for name, process in running.items():
            prefill, decode = process.seconds("prefill"), process.seconds("decode")
            if number:
                found[name].prefill.append(prefill)
                found[name].decode.append(decode)
            else:
                found[name].memory = cast("int", process.ask("memory"))
    return found


def measured(
    models: Models, names: Sequence[str], threads: int, windows: Path, rounds: int, record: recorded.Recording
) -> None:
    """Print the table of one number of threads."""
    paths = {name: models.path(ROWS[name]) for name in names}
    running = {name: Process(ROWS[name], paths[name], threads, windows) for name in names}
    found = in_turn(running, rounds)
    by = "seconds of the processor" if threads == 1 else "seconds of the clock"
    title = f"{models.source.name}, tokens a second, threads: {threads}, {by}"
    columns = (f"prefill {models.window}", f"decode {DECODED}", "peak MB", "file MB", "perplexity")
    record.table(title, *columns, width=26)
    for name, process in running.items():
        prefill, decode = (statistics.median(each) for each in (found[name].prefill, found[name].decode))
        cells = (
            f"{models.window / prefill:.1f}",
            f"{DECODED / decode:.1f}",
            f"{found[name].memory / 1e6:.0f}",
            f"{bytes_of(paths[name]) / 1e6:.1f}",
            f"{cast('float', process.ask('perplexity')):.3f}",
        )
        record.row(name, *cells)
        process.end()


def instructions() -> str:
    """Return which of the instructions that integer kernels want this processor has, as Linux names them."""
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8") if information.exists() else ""
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return ", ".join(f"{each}: {'yes' if each in flags else 'no'}" for each in _INSTRUCTIONS)


def _available(names: Sequence[str]) -> list[str]:
    """Return the rows whose runtimes are installed, and print which are not."""
    found = [name for name in names if importlib.util.find_spec(ROWS[name].needs) is not None]
    for name in names:
        if name not in found:
            print(f"{name} left out: {ROWS[name].needs} is not installed")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each number of threads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("smollm2", "wiki"), default="smollm2")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=2, help="windows that the perplexity is of")
    parser.add_argument("--folder", type=Path, default=recorded.UNPUBLISHED / "runtimes")
    parser.add_argument("--peer-path", action="append", default=[], help="a folder to look for runtimes in")
    recorded.add_option(parser)
    options = parser.parse_args(argv)
    sys.path += options.peer_path
    warnings.simplefilter("ignore")
    source, window = (smollm2_directory(), 512) if options.model == "smollm2" else (WIKI_LLAMA, 256)
    folder = options.folder / options.model
    folder.mkdir(parents=True, exist_ok=True)
    models = Models(source, window, folder)
    windows = folder / "windows.json"
    windows.write_text(json.dumps(models.windows(TEST_ARTICLES, options.windows).tolist()), encoding="utf-8")
    names = _available(options.rows)
    for name in names:
        models.path(ROWS[name])
    with recorded.recording(options.result) as record:
        for threads in options.threads:
            torch.set_num_threads(threads)  # for the record
            measured(models, names, threads, windows, options.rounds, record)
        record.note(instructions())


if __name__ == "__main__":
    main()
