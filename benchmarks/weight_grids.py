"""How the values of a weight are spread, and which values four formats of about 4 bits have for them.

Run with ``nox -s bench -- weight_grids``: a row of a layer of the embedded model. Each grid is that of
the row's first group. The error is that of the whole row, ‖rounded - float‖ / ‖float‖.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from language_models import WIKI_LLAMA, load
from recorded import add_option, recording
from tico_api import PTQConfig, convert, prepare
from tico_config import MXFP4, NVFP4, DType, PerGroup, QuantSpec, affine, no_quant
from tico_modules import QuantizedLinear

FORMATS: Final[Mapping[str, QuantSpec]] = {
    "uint4, a scale a row": affine(DType.uint(4)),
    "uint4, groups of 64": affine(DType.uint(4), granularity=PerGroup(1, 64)),
    "NVFP4, blocks of 16": affine(NVFP4()),
    "MXFP4, blocks of 32": affine(MXFP4()),
}


def rounded(weight: Tensor, spec: QuantSpec) -> QuantizedLinear:
    """Return the linear layer with `weight` (outputs, inputs), rounded as `spec` says."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.clone())
    config = PTQConfig(scope="linear", weight=spec, activation=no_quant())
    layer = convert(prepare(nn.Sequential(linear).eval(), config)).get_submodule("0")
    assert isinstance(layer, QuantizedLinear)  # noqa: S101  # what a linear layer becomes
    return layer


def grid(layer: QuantizedLinear, row: int) -> Tensor:
    """Return the values that the first group of `row` can have, the smallest first."""
    packed = layer.packed
    scale = packed.scale[row, 0]
    if isinstance(packed.dtype, DType):
        codes = torch.arange(packed.dtype.qmin, packed.dtype.qmax + 1)
        return (codes - packed.zero_point[row, 0]) * scale
    return torch.tensor(sorted(set(packed.dtype.encoding.values))) * scale


def main() -> None:
    """Print the histogram of the row, then the grids."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layer", default="model.layers.0.mlp.down_proj")
    parser.add_argument("--row", type=int, default=0)
    parser.add_argument("--bins", type=int, default=40)
    add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    weight = load(WIKI_LLAMA, 1).model.get_parameter(f"{options.layer}.weight").detach()
    row = weight[options.row]
    counts, edges = torch.histogram(row, options.bins)
    with recording(options.result) as record:
        record.table(f"{options.layer}, row {options.row} of wiki_llama: {len(row)} weights", "to", "count")
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
            record.row(f"{low:.5f}", f"{high:.5f}", f"{count:.0f}")
        record.table("grids", "error", *(f"value {i}" for i in range(16)))
        for name, spec in FORMATS.items():
            layer = rounded(weight, spec)
            error = (layer.dequantize()[options.row] - row).norm() / row.norm()
            record.row(name, f"{error:.4f}", *(f"{value:.5f}" for value in grid(layer, options.row)))


if __name__ == "__main__":
    main()
