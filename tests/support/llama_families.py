"""A tiny random model of every family that is built like LLaMA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import transformers
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, prepare
from tico_quantizers import QuantizedModule
from tico_wrapq import QuantModuleBase

# What makes each family differ: windows, norms of queries and keys, layers without rotation, biases.
FAMILIES: Final[Mapping[str, Mapping[str, object]]] = {
    "Llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    "Mistral": {"sliding_window": 4},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "Qwen3": {},
    "SmolLM3": {"no_rope_layer_interval": 2, "attention_bias": True},
    "Gemma": {"hidden_activation": "gelu_pytorch_tanh"},
}

TOKENS: Final = torch.arange(24).view(2, 12) * 7 % 39 + 1


def tiny(family: str, attention: str = "eager", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a random model of two layers, always the same one, in evaluation mode."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=attention,
        **FAMILIES[family],
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model: nn.Module = getattr(transformers, f"{family}ForCausalLM")(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))  # also where it starts as ones or zeros
    return model.eval().to(dtype)


def padded(side: str) -> dict[str, Tensor]:
    """Return a batch whose first row has four tokens of padding on the given side."""
    mask = torch.ones_like(TOKENS)
    mask[0, slice(None, 4) if side == "left" else slice(-4, None)] = 0
    return {"input_ids": TOKENS * mask, "attention_mask": mask}


def calls() -> dict[str, dict[str, Tensor]]:
    """Return the ways in which a batch can be given."""
    return {
        "whole": {"input_ids": TOKENS},
        "padded left": padded("left"),
        "padded right": padded("right"),
        "positions": {"input_ids": TOKENS, "position_ids": torch.arange(3, 15)[None]},
    }


def converted(family: str, config: PTQConfig | None = None, attention: str = "eager") -> nn.Module:
    """Return the model of `tiny`, calibrated with `calls` and converted."""
    prepared = prepare(tiny(family, attention), config or PTQConfig())
    for call in calls().values():
        prepared(**call)
    return convert(prepared)


def grid_count(model: nn.Module, *, fixed_only: bool = False) -> int:
    """Return how many tensors of a converted model are moved to a grid, or to a fixed one."""
    wrappers = [module for module in model.modules() if isinstance(module, QuantModuleBase)]
    layers = [module for module in model.modules() if isinstance(module, QuantizedModule)]
    ends = [grid for layer in layers for grid in (layer.act_in, layer.act_out)]
    fixed = [point.fixed for wrapper in wrappers for _, point in wrapper.named_points()]
    grids = [grid for grid in (*ends, *fixed) if grid is not None]
    return sum(bool(grid.scale.numel()) or not fixed_only for grid in grids)


class LogitsOf(nn.Module):
    """A model as a function of tokens."""

    def __init__(self, model: nn.Module) -> None:
        """Keep `model`."""
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of `tokens`."""
        found: Tensor = self.model(tokens, use_cache=False).logits
        return found
