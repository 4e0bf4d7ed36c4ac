"""A quantized model as a program of torch.export, loaded again, and as a Circle file of Samsung's converter.

python examples/export_pt2.py [FOLDER [CONVERTER]]

CONVERTER is the path of pt2-to-circle, which Samsung's tico brings, in an environment of its own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from tico.quantization import PT2EConfig, convert, prepare
from tico.quantization.config import profiles
from tico_export import PT2, ExportResult, export, load_program, to_circle

X = torch.linspace(-2, 2, 64 * 32).view(64, 32)
# What each dialect of programs is quantized for.
CONFIGS: dict[str, PT2EConfig] = {
    "onnx": profiles.ONNX_RUNTIME.config(PT2EConfig),
    "circle": profiles.CIRCLE.config(PT2EConfig),
}


def write(dialect: str, folder: Path) -> ExportResult:
    """Quantize a model for the readers of `dialect`, and write its program."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    prepared = prepare(model, CONFIGS[dialect], args=(X,), inplace=False)
    prepared(X)
    model = convert(prepared, inplace=False)
    return export(model, folder / f"{dialect}.pt2", PT2(dialect=dialect), args=(X,), verify="require")


def main(folder: Path, converter: Path | None = None) -> None:
    """Write, load and run a program of each dialect, and have the converter make a Circle file of one."""
    for dialect in CONFIGS:
        result = write(dialect, folder)
        program = load_program(result.path)
        print(result, *program.module()(X)[:1].tolist(), sep="\n")
    if converter is not None:
        print(to_circle(folder / "circle.pt2", folder / "model.circle", converter))


if __name__ == "__main__":
    given = [Path(each) for each in sys.argv[1:]]
    main(*(given or [Path(tempfile.mkdtemp())]))
