"""Models small enough to quantize hundreds of times."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = torch.arange(24).view(2, 12) * 7 % 40


def tiny_llama(*, tied: bool = False, attention: str = "sdpa") -> LlamaForCausalLM:
    """Return a random LLaMA of two layers, always the same one, in evaluation mode."""
    config = LlamaConfig(  # type: ignore[call-arg]  # its base takes the attention
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        attn_implementation=attention,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    nn.Module.eval(model)
    return model


def modes_of(model: nn.Module) -> dict[str, bool]:
    """Return which modules are in training mode."""
    return {path: module.training for path, module in model.named_modules()}


def logits(model: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    """Return what a language model makes of `tokens`."""
    output: Tensor = model(tokens).logits
    return output


class Net(nn.Module):
    """A convolution, a norm, dropout and two linear layers."""

    def __init__(self) -> None:
        """Make the layers, with random weights."""
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return 4 values for each image of shape (2, 4, 4)."""
        hidden: Tensor = self.drop(self.norm(self.conv(x)))
        output: Tensor = self.head(hidden.flatten(1))
        return output


def net() -> Net:
    """Return a net, always the same one, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
    model.eval()
    return model


def images(seed: int, count: int = 3) -> Tensor:
    """Return random images, always the same ones for a seed."""
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def values(seed: int, *shape: int) -> Tensor:
    """Return random values, always the same ones for a seed and shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
