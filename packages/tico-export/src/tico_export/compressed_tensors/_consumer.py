"""Transformers as what loads and runs a folder of compressed-tensors."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tico_config import NVFP4
from tico_export.checkpoints import without_progress
from tico_export.compressed_tensors._cache import cache_bound
from tico_export.compressed_tensors._scheme import loads_as_floats
from tico_export.program import Bound, floats_of, kernel_bound, rounding_bound
from tico_export.protocol import Consumer, Example, require_extra
from tico_export.source import Source

_EXTRA: Final = "hf"
_AS_FLOATS: Final = "CompressedTensorsConfig(dequantize=True)"


def transformers_consumer(source: Source) -> Consumer:
    """Return transformers with compressed-tensors, which computes in float on what it fake-quantizes.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    transformers = require_extra("transformers", _EXTRA)
    require_extra("compressed_tensors", _EXTRA)
    as_floats, bound = loads_as_floats(source), _bound(source)

    def run(path: Path, example: Example) -> Sequence[Tensor]:
        further = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
        kind, attention = type(source.model), getattr(source.config, "_attn_implementation", None)
        load = getattr(kind, "from_pretrained")  # noqa: B009
        with without_progress():
            model = load(
                path,
                local_files_only=True,
                dtype="auto",
                attn_implementation=attention,
                **further if as_floats else {},
            )
        inputs = (example.args, dict(example.kwargs))
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.cpu, inputs)
        with torch.no_grad():
            return floats_of(model(*args, **kwargs))

    library = f"compressed-tensors {version('compressed-tensors')}"
    how = f", {_AS_FLOATS}" if as_floats else ""
    name = f"transformers {transformers.__version__} ({library}{how})"
    return Consumer(name=name, run=run, smallest_sqnr=bound.smallest_sqnr, why=bound.why)


def _bound(source: Source) -> Bound:
    """Return how near transformers comes to the model.

    In float32, weights and fixed grids are the same bits, but for NVFP4. Where a grid is made for each token,
    the library divides its largest value by another number than this one does, and a value moves by a step of
    the grid at most, as with kernels of integers. In floats of 16 bits, scales are rounded too: each weight
    moves by ``eps``, and each layer adds its own. So it is with NVFP4, whose weights the library makes in
    bfloat16, where other blocks of elements are exact.
    """
    dtypes = {each.dtype for each in source.floats.values()}
    dtypes |= {each.float_dtype for each in source.weights.values()}
    if any(each.dtype == NVFP4() for each in source.weights.values()):
        dtypes.add(torch.bfloat16)
    eps = max(torch.finfo(each).eps for each in dtypes if each.is_floating_point)
    rounded = rounding_bound(source, eps, "weights or scales are rounded to its floats")
    cached = Bound(cache_bound(source), "scales of keys and values applied otherwise move them by a step")
    return min(kernel_bound(source), rounded, cached, key=lambda each: each.smallest_sqnr)
