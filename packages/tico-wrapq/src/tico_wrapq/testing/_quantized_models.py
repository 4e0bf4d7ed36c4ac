"""Preparing and converting a model, as the facade does, for which this package is too deep."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tico_config import PTQConfig
from tico_modules import Edit
from tico_quantizers import Prepared
from tico_wrapq.ptq import PTQCalibration, PTQQuantizer
from tico_wrapq.testing._wrapper_case import WrapperCase

_PREPARED = "_prepared"


def prepare(model: nn.Module, config: PTQConfig) -> nn.Module:
    """Return `model` in wrappers that watch."""
    with torch.no_grad(), Edit() as edit:
        root, prepared = PTQQuantizer(config).start(model, None, edit)
        edit.set_attribute(root, _PREPARED, prepared)
    return root


def convert(model: nn.Module) -> nn.Module:
    """Return the prepared `model` with integers and frozen points."""
    prepared: Prepared[PTQConfig, PTQCalibration] = vars(model)[_PREPARED]
    with torch.no_grad(), Edit() as edit:
        root = prepared.convert(model, edit)
        edit.on_commit(lambda: vars(model).pop(_PREPARED))
    return root


def calibrated(case: WrapperCase) -> nn.Module:
    """Return the prepared model of `case`, which has seen its inputs."""
    model = prepare(case.model(), case.config)
    output_of(model, *case.inputs)
    return model


def output_of(model: nn.Module, *inputs: object) -> Tensor:
    """Return what `model` makes of `inputs`, without gradients."""
    with torch.no_grad():
        output: Tensor = model(*inputs)
    return output
