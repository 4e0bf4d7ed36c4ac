"""What transformers wants to find on a model to know that it is quantized."""

from __future__ import annotations

import copy

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from tico_api.integrations._transformers_config import TicoConfig, config_of_runs
from tico_api.integrations._transformers_quantizer import TicoQuantizer
from tico_modules import RestorableModule, named_modules, runs_of


def mark_quantized(model: nn.Module) -> None:
    """Let every transformers model in `model` that has integer modules say so, as loading one would.

    The config becomes the model's own first: a float model may have the same one.
    """
    found = [module for _, module in named_modules(model) if _is_quantized(module)]
    if found:
        _copy_configs(model)
    for each in found:
        config = _describe(each)
        attributes: dict[str, object] = vars(each)
        attributes |= {
            "is_quantized": True,
            "quantization_method": config.quant_method,
            "hf_quantizer": TicoQuantizer(config, pre_quantized=True),
        }
        vars(each.config)["quantization_config"] = config
        vars(each.config)["_is_quantized"] = True


def _is_quantized(module: nn.Module) -> bool:
    return isinstance(module, PreTrainedModel) and any(
        isinstance(below, RestorableModule) for _, below in named_modules(module)
    )


def _describe(model: nn.Module) -> TicoConfig:
    unique = {id(run): run for _, module in named_modules(model) for run in runs_of(module)}
    return config_of_runs([run.config for run in unique.values()])


def _copy_configs(model: nn.Module) -> None:
    """Give `model` copies of its configs; modules that shared one share its copy."""
    known: dict[int, object] = {}
    for _, module in named_modules(model):
        attributes: dict[str, object] = vars(module)
        for name, value in attributes.items():
            if isinstance(value, PreTrainedConfig):
                attributes[name] = copy.deepcopy(value, known)
