"""A convolutional network of 8 bits as a program of ExecuTorch, whose steps XNNPACK computes on integers.

python examples/export_executorch.py [FOLDER]

It needs the runtime: pip install 'tico-export[executorch]'
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from tico.quantization import PT2EConfig, convert, prepare
from tico.quantization.config import profiles
from tico_export import ExecuTorch, ExportResult, export

# int8 with symmetric weights, biases in float, and no grids where XNNPACK has no kernel for integers.
CONFIG = profiles.XNNPACK.config(PT2EConfig)


def network() -> nn.Module:
    """Return a network that sorts images (3, 16, 16) into ten classes."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 32, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


def write(folder: Path) -> ExportResult:
    """Quantize the graph of the network, and write it for one image at a time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network().eval()
        images = torch.randn(64, 3, 16, 16)
    prepared = prepare(model, CONFIG, args=(images,), inplace=False)
    prepared(images)
    model = convert(prepared, inplace=False)
    return export(model, folder / "network.pte", ExecuTorch(), args=(images[:1],), verify="require")


def main(folder: Path) -> None:
    """Write the program, and print what ExecuTorch made of it."""
    print(write(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
