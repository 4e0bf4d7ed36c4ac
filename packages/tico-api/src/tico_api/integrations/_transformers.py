"""The quantization method ``tico`` of transformers."""

from __future__ import annotations

from transformers.quantizers import auto

from tico_api.integrations._transformers_config import TicoConfig
from tico_api.integrations._transformers_marks import mark_quantized
from tico_api.integrations._transformers_quantizer import TicoQuantizer
from tico_api.integrations._transformers_saving import install_saving
from tico_modules import QUANT_METHOD, add_result_mark


def register_transformers() -> None:
    """Register the quantization method with transformers, and let converted models say that they have it."""
    if QUANT_METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantization_config(QUANT_METHOD)(TicoConfig)
        auto.register_quantizer(QUANT_METHOD)(TicoQuantizer)
    install_saving()
    add_result_mark(mark_quantized)
