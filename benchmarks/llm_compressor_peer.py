"""GPTQ as llm-compressor does it, called by the same steps as this project."""

from __future__ import annotations

import importlib
import os

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader


def quantized_by_llm_compressor(
    model: nn.Module, windows: Tensor, *, bits: int, group_size: int | None, damping: float, act_order: bool
) -> nn.Module:
    """Return a language model after llm-compressor 0.14; its output embedding stays float.

    It wants `datasets`, `accelerate`, `compressed-tensors`, `loguru` and `pydantic` beside it. Its grids are
    asymmetric, as ours are by default, and those of the original weight. `act_order` is its own default, the
    order of the activations with grids of neighbouring columns.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    library = importlib.import_module("llmcompressor")
    gptq = importlib.import_module("llmcompressor.modifiers.gptq")
    schemes = importlib.import_module("compressed_tensors.quantization")
    importlib.import_module("loguru").logger.remove()
    weights = schemes.QuantizationArgs(
        num_bits=bits,
        symmetric=False,
        strategy="channel" if group_size is None else "group",
        group_size=group_size,
    )
    modifier = gptq.GPTQModifier(
        ignore=["lm_head"],
        dampening_frac=damping,
        actorder="static" if act_order else None,
        config_groups={"linear": schemes.QuantizationScheme(targets=["Linear"], weights=weights)},
    )
    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in windows]
    result: nn.Module = library.oneshot(
        model=model,
        processor=object(),  # asked for, and not used on tokens
        dataset=DataLoader(samples, batch_size=1),  # type: ignore[arg-type]  # a list is a dataset
        recipe=[modifier],
        pipeline="sequential",
        num_calibration_samples=len(samples),
        max_seq_length=windows.shape[1],
    )
    return result
