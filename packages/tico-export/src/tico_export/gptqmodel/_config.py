"""What stands in the configs of models in the formats of GPTQ and AWQ."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from tico_config import LayerBlocks
from tico_export.source import QuantizedWeight


def gptq_config(
    weights: Mapping[str, QuantizedWeight], linear: Collection[str], version: int
) -> Mapping[str, object]:
    """Return ``quantization_config`` of layers that have one scheme, given the paths of all linear layers."""
    others = set(linear) - weights.keys()
    blocks = LayerBlocks.of(weights, others)
    name = "gptq" if version == 1 else "gptq_v2"
    config: dict[str, object] = {
        "quant_method": "gptq",
        **_scheme(weights),
        "desc_act": any(each.group_index is not None for each in weights.values()),
        "sym": all(each.is_symmetric for each in weights.values()),
        "true_sequential": True,
        "lm_head": False,
        "format": name,
        "checkpoint_format": name,
    }
    if blocks is not None:
        config["block_name_to_quantize"] = blocks.path
        if any(each.startswith(f"{blocks.path}.") for each in others):
            config["modules_in_block_to_quantize"] = [[each] for each in blocks.names]
    return config


def awq_config(weights: Mapping[str, QuantizedWeight], linear: Collection[str]) -> Mapping[str, object]:
    """Return ``quantization_config`` of layers that have one scheme, given the paths of all linear layers."""
    return {
        "quant_method": "awq",
        **_scheme(weights),
        "zero_point": True,
        "version": "gemm",
        "format": "gemm",
        "modules_to_not_convert": sorted(re.escape(each) for each in set(linear) - weights.keys()),
    }


def _scheme(weights: Mapping[str, QuantizedWeight]) -> Mapping[str, object]:
    first = next(iter(weights.values()))
    return {"bits": first.dtype.bits, "group_size": first.group_size or -1}
