"""Layers and configs in the formats of GPTQ and AWQ, as the library GPTQModel has them."""

from tico_export.gptqmodel._config import awq_config, gptq_config
from tico_export.gptqmodel._consumer import gptqmodel_consumer
from tico_export.gptqmodel._layer import awq_tensors, gptq_tensors, rounding_notes
from tico_export.gptqmodel._problems import GPTQ_LAYERS, awq_problems, gptq_problems

__all__ = [
    "GPTQ_LAYERS",
    "awq_config",
    "awq_problems",
    "awq_tensors",
    "gptq_config",
    "gptq_problems",
    "gptq_tensors",
    "gptqmodel_consumer",
    "rounding_notes",
]
