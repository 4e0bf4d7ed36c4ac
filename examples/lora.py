"""Train LoRA on SmolLM2 with weights of four bits, as QLoRA does, beside the same on the float model.

python examples/lora.py --steps 20
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from language_models import LanguageModel, load, text_of
from real_models import smollm2_directory
from tico.quantization.config import DType, PerGroup, PTQConfig, affine, no_quant
from tico.quantization.integrations import round_on_load

WINDOW = 128
GROUPS = PerGroup(axis=1, size=32)
FOUR_BITS = PTQConfig(weight=affine(DType.uint(4), granularity=GROUPS), activation=no_quant())


def bases() -> Iterator[tuple[str, nn.Module]]:
    """Yield the float model, and the one that is rounded to nearest as soon as it is loaded."""
    folder = smollm2_directory()
    yield "float32", load(folder, WINDOW).model
    rounded: nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=round_on_load(FOUR_BITS), dtype=torch.float32, local_files_only=True
    )
    yield "uint4", rounded


def megabytes(model: nn.Module) -> float:
    """Return what parameters and buffers take; tied ones count once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6


def train(model: nn.Module, windows: Tensor, steps: int) -> list[float]:
    """Train what needs gradients, a window a step, and return the loss of each step."""
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3)
    losses = []
    model.train()
    for step in range(steps):
        rows = windows[step % len(windows)].unsqueeze(0)
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Print the loss of each step for both models, and what they take."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    steps: int = parser.parse_args().steps
    losses = {}
    for name, base in bases():
        windows = LanguageModel(smollm2_directory(), base, WINDOW).windows(text_of("calibration"), 8 * WINDOW)
        size = megabytes(base)
        torch.manual_seed(0)
        adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
        losses[name] = train(adapted, windows, steps)
        print(f"{name:8} base {size:.0f} MB, adapter {megabytes(adapted) - size:.0f} MB")
    print(f"\n{'step':>4} " + " ".join(f"{name:>9}" for name in losses))
    for step, row in enumerate(zip(*losses.values(), strict=True)):
        print(f"{step:4} " + " ".join(f"{loss:9.4f}" for loss in row))


if __name__ == "__main__":
    main()
