"""Transformers with GPTQModel as what loads and runs a folder in the formats of GPTQ and AWQ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tico_export.checkpoints import without_progress
from tico_export.program import floats_of, rounding_bound
from tico_export.protocol import Consumer, Example, require_extra
from tico_export.source import Source

_EXTRA: Final = "gptq"
_HALF: Final = torch.finfo(torch.float16).eps


def gptqmodel_consumer(source: Source, config: str, settings: Mapping[str, object]) -> Consumer:
    """Return transformers with GPTQModel, whose kernels in torch dequantize weights in float16.

    `config` is the class of transformers that chooses these kernels, by `settings`.

    Raises:
        MissingExtraError: one of the libraries is not installed.
    """
    transformers = require_extra("transformers", _EXTRA)
    require_extra("optimum", _EXTRA)
    require_extra("gptqmodel", _EXTRA)
    bound = rounding_bound(source, _HALF, "scales and weights are rounded to float16")

    def run(path: Path, example: Example) -> Sequence[Tensor]:
        load = getattr(type(source.model), "from_pretrained")  # noqa: B009
        with without_progress():
            model = load(
                path,
                local_files_only=True,
                dtype=torch.float32,
                attn_implementation=getattr(source.config, "_attn_implementation", None),
                quantization_config=getattr(transformers, config)(**settings),
            )
        with torch.no_grad():
            return floats_of(model.eval()(*example.args, **example.kwargs))

    name = f"transformers {transformers.__version__} (gptqmodel {version('gptqmodel')}, kernels in torch)"
    return Consumer(name=name, run=run, smallest_sqnr=bound.smallest_sqnr, why=bound.why)
