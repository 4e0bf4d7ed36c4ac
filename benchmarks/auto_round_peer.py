"""AutoRound, called by the same steps as this project."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader


def quantized_by_auto_round(
    model: nn.Module, windows: Tensor, folder: Path, *, bits: int, group_size: int | None, steps: int
) -> nn.Module:
    """Return a language model after AutoRound 0.16, whose weights are floats on its grids.

    It wants `accelerate`, `datasets`, `py-cpuinfo`, `pydantic` and `requests` beside it. Its grids are
    asymmetric, as ours are by default. `steps` are those of each block; its own default is 200.
    """
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(folder)
    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in windows]
    rounding = importlib.import_module("auto_round").AutoRound(
        model,
        tokenizer,
        scheme={
            "bits": bits,
            "group_size": -1 if group_size is None else group_size,
            "sym": False,
            "data_type": "int",
            "act_bits": 16,
        },
        dataset=DataLoader(samples, batch_size=1),  # type: ignore[arg-type]  # a list is a dataset
        iters=steps,
        seqlen=windows.shape[1],
        nsamples=len(samples),
        batch_size=min(8, len(samples)),
        device_map="cpu",
        enable_torch_compile=False,
    )
    quantized: nn.Module = rounding.quantize()[0]
    return quantized
