"""prepare, with the quantizers of this library and of installed packages."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from tico_config import (
    AWQConfig,
    BaseConfig,
    BlockTuneConfig,
    CLEConfig,
    GPTQConfig,
    HQQConfig,
    KVCacheConfig,
    PT2EConfig,
    PTQConfig,
    RotationConfig,
    ScaleTuneConfig,
    SmoothQuantConfig,
)
from tico_modules import Offload
from tico_pt2e import GPTQEverywhere, PT2EQuantizer
from tico_quantizers import (
    AWQQuantizer,
    BlockTuneQuantizer,
    CLEQuantizer,
    HQQQuantizer,
    KVCacheQuantizer,
    Registry,
    RotationQuantizer,
    ScaleTuneQuantizer,
    SmoothQuantQuantizer,
    composed_entry,
    lifecycle,
    quantizer_entry,
)
from tico_wrapq import PTQQuantizer

BUILT_IN = Registry(
    (
        quantizer_entry(GPTQConfig, GPTQEverywhere),
        quantizer_entry(PTQConfig, PTQQuantizer),
        quantizer_entry(PT2EConfig, PT2EQuantizer),
        quantizer_entry(SmoothQuantConfig, SmoothQuantQuantizer),
        quantizer_entry(AWQConfig, AWQQuantizer),
        quantizer_entry(BlockTuneConfig, BlockTuneQuantizer),
        quantizer_entry(CLEConfig, CLEQuantizer),
        quantizer_entry(HQQConfig, HQQQuantizer),
        quantizer_entry(KVCacheConfig, KVCacheQuantizer),
        quantizer_entry(RotationConfig, RotationQuantizer),
        composed_entry(ScaleTuneConfig, ScaleTuneQuantizer, ScaleTuneConfig.aimed_base),
    )
)


def prepare(
    model: nn.Module,
    quant_config: BaseConfig,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    inplace: bool = True,
    *,
    registry: Registry | None = None,
    offload: Offload | None = None,
) -> nn.Module:
    """Make `model` ready for calibration: run data through the result, then call `convert` with it.

    Args:
        model: a float model, or one that another algorithm has converted.
        quant_config: says which algorithm, and how.
        args: positional example inputs, for the algorithms that need to see the graph.
        kwargs: example inputs by keyword.
        inplace: change and return `model` itself; if it is to be replaced as a whole (a lone `nn.Linear`),
            the replacement is returned. With False, `model` is not touched and a copy is returned. PT2E,
            which exports the model to a graph, takes False only.
        registry: which quantizer serves which config; by default those of this library and of installed
            packages.
        offload: where `convert` keeps what does not fit into memory, for a model of `map_checkpoint`: blocks
            that GPTQ has finished, and activations between blocks. Passes then end early, as with
            `stop_after_capture`. A copy (``inplace=False``) is in memory.

    Raises:
        UnsupportedError: `model` is no module, or a part of it cannot be handled.
        ConfigError: the config does not fit the model.
        LifecycleError: the model is prepared already.

    After an error the model is as it was before.

    >>> import torch
    >>> from tico_api import convert
    >>> model = prepare(nn.Sequential(nn.Linear(4, 4)).eval(), PTQConfig())
    >>> y = model(torch.ones(2, 4))
    >>> type(convert(model)[0]).__name__
    'QuantizedLinear'
    """
    found = BUILT_IN.with_installed() if registry is None else registry
    return lifecycle.prepare(model, quant_config, args, kwargs, inplace, registry=found, offload=offload)
