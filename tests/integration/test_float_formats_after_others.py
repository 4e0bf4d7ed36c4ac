"""Floating-point formats after the algorithms that leave a model of floats."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cache_models import texts, two_heads
from tico.quantization import (
    CLEConfig,
    GPTQConfig,
    PTQConfig,
    RotationConfig,
    SmoothQuantConfig,
    calibrate,
    convert,
    prepare,
)
from tico_config import FP8, MXFP4, NVFP4, BaseConfig, FloatFormat, affine, no_quant
from tico_modules import QuantizedLinear


@pytest.mark.parametrize("dtype", [FP8(), MXFP4(), NVFP4()], ids=str)
@pytest.mark.parametrize("first", [SmoothQuantConfig(), CLEConfig(), RotationConfig()], ids=lambda c: c.name)
@pytest.mark.parametrize("solved", [False, True])
def test_weights_are_rounded_to_the_format(first: BaseConfig, dtype: FloatFormat, solved: bool) -> None:
    """Rounding and GPTQ give every layer of the blocks the format, and the model stays finite."""
    rounded = PTQConfig(scope="linear", weight=affine(dtype), activation=no_quant())
    model: nn.Module = two_heads()
    for config in (first, GPTQConfig(dtype=dtype, show_progress=False) if solved else rounded):
        model = convert(calibrate(prepare(model, config), [texts(0), texts(1)]))
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    assert len(layers) == 14
    assert {layer.packed.dtype for layer in layers} == {dtype}
    with torch.no_grad():
        assert bool(torch.isfinite(model(texts(2)).logits).all())
