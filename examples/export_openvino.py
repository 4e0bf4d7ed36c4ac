"""A model with weights of 4 and of 8 bits in the files of OpenVINO, each verified by it.

python examples/export_openvino.py [FOLDER]

It needs the runtime: pip install 'tico-export[openvino]'
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from tico.quantization import GPTQConfig, convert, prepare
from tico.quantization.config import profiles
from tico_export import ExportResult, OpenVINO, export

# The best configs of those that OpenVINO takes: groups of 128 columns, and a scale a row.
SCHEMES: dict[str, GPTQConfig] = {
    f"w{bits}": profiles.OPENVINO.config(GPTQConfig, bits=bits, show_progress=False) for bits in (4, 8)
}


def write(name: str, folder: Path) -> ExportResult:
    """Quantize a model by the scheme `name`, and write it; its batch may have any size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 16)).eval()
        x = torch.randn(512, 128)
    prepared = prepare(model, SCHEMES[name], args=(x,))
    prepared(x)
    return export(
        convert(prepared),
        folder / f"{name}.xml",
        OpenVINO(),
        args=(x,),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verify="require",
    )


def main(folder: Path) -> None:
    """Write both models, each as *.xml and *.bin, and print what OpenVINO made of them."""
    for name in SCHEMES:
        print(write(name, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
