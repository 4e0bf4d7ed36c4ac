"""A model of 4-bit weights and one of 8-bit layers as ONNX files, each verified by ONNX Runtime.

python examples/export_onnx.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico.quantization.config import DType, affine
from tico_config import BaseConfig
from tico_export import ExportResult, Onnx, export

SCHEMES: dict[str, BaseConfig] = {
    "w4_group32": GPTQConfig(bits=4, group_size=32, show_progress=False),
    "w8a8": PTQConfig(activation=affine(DType.uint(8)), weight=affine(DType.int(8))),
}


def write(name: str, folder: Path) -> ExportResult:
    """Quantize a model by the scheme `name`, and write it; its batch may have any size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16)).eval()
        x = torch.randn(256, 64)
    prepared = prepare(model, SCHEMES[name], args=(x,))
    prepared(x)
    axes = ({0: torch.export.Dim("batch")},)
    return export(
        convert(prepared),
        folder / f"{name}.onnx",
        Onnx(),
        args=(x,),
        dynamic_shapes=axes,
        verify="require",
    )


def main(folder: Path) -> None:
    """Write both files and print what ONNX Runtime made of them."""
    for name in SCHEMES:
        print(write(name, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
