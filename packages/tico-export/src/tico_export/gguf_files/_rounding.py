"""What was rounded on the way into a file of GGUF, and how much that changed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from tico_export.gguf_files._blocks import Blocks, blocks_of
from tico_export.gguf_files._container import FileTensor
from tico_export.gguf_files._contents import Contents
from tico_export.source import QuantizedWeight


def type_notes(tensors: Iterable[FileTensor]) -> Iterator[str]:
    """Yield the types that tensors have, and what llama.cpp does with their inputs."""
    counted = Counter(each.type for each in tensors)
    listed = ", ".join(
        f"{counted[each]} of {each.name}" for each in sorted(counted, key=lambda kind: kind.number)
    )
    yield f"tensors: {listed}"
    for size in sorted({each.block for each in counted if each.block > 1}):
        told = "llama.cpp rounds what integer weights are multiplied by to 8 bits for each block of"
        yield f"{told} {size} values"


def rounding_notes(contents: Contents, floats: torch.dtype | None) -> Iterator[str]:
    """Yield what rounding scales to float16, and matrices of floats to `floats`, has changed."""
    scales: dict[str, tuple[float, float]] = {}
    matrices: dict[str, tuple[float, float]] = {}
    for name, each in contents.named.items():
        if isinstance(each, QuantizedWeight):
            blocks = blocks_of(each, nearest=True)
            if isinstance(blocks, Blocks) and not blocks.exact:
                scales[name] = blocks.noise()
        elif each.ndim > 1 and floats is not None and each.dtype != floats:
            matrices[name] = _noise(each, floats)
    if scales:
        yield f"scales are rounded to float16: {_told(scales)}"
    if matrices:
        yield f"matrices are rounded to {str(floats).removeprefix('torch.')}: {_told(matrices)}"


def _told(sums: Mapping[str, tuple[float, float]]) -> str:
    worst = min(sums, key=lambda name: _decibels(*sums[name]))
    signal, noise = (sum(column) for column in zip(*sums.values(), strict=True))
    return (
        f"{len(sums)} weights are {_decibels(signal, noise):.1f} dB from the model's, "
        f"at worst {_decibels(*sums[worst]):.1f} dB ({worst})"
    )


def _noise(tensor: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    meant, held = tensor.detach().double(), tensor.detach().to(dtype).double()
    return meant.square().sum().item(), (held - meant).square().sum().item()


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
