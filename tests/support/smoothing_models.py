"""Models to smooth, and the three steps in one call."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tico.quantization import convert, prepare
from tico.quantization.config import BaseConfig
from tiny_models import TOKENS, tiny_llama, values


class Encoder(nn.Module):
    """A layer of a transformer encoder, norms first, with projections of its own."""

    def __init__(self) -> None:
        """Make the layers, with random weights."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.linear1, self.linear2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state, of the same shape (batch, tokens, 8)."""
        hidden = self.norm1(x)
        heads = [
            part(hidden).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.query, self.key, self.value)
        ]
        attended = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        output: Tensor = x + self.linear2(nn.functional.gelu(self.linear1(self.norm2(x))))
        return output


def convolutions() -> nn.Sequential:
    """Return a small convolutional net."""
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.ConvTranspose2d(6, 5, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
    )


def _qwen3() -> nn.Module:
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
    )
    return Qwen3ForCausalLM(config)


def _gemma() -> nn.Module:
    config = GemmaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=4,
        pad_token_id=0,
    )
    return GemmaForCausalLM(config)


MODELS = ("llama", "qwen3", "gemma", "convolutions", "encoder", "torch encoder")


def model_with_data(name: str) -> tuple[nn.Module, Tensor]:
    """Return a random model in evaluation mode, norms included, and an input; always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = _made(name)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += torch.randn_like(parameter) * 0.3
    return model.eval(), x


def _made(name: str) -> tuple[nn.Module, Tensor]:
    match name:
        case "llama":
            return tiny_llama(), TOKENS
        case "qwen3":
            return _qwen3(), TOKENS
        case "gemma":
            return _gemma(), TOKENS
        case "convolutions":
            return convolutions(), values(1, 3, 2, 10, 10)
        case "encoder":
            return Encoder(), values(1, 3, 5, 8)
        case _:
            layer = nn.TransformerEncoderLayer(8, 2, 12, norm_first=True, batch_first=True)
            return layer, values(1, 3, 5, 8)


def output_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits of a language model, or what another model gives."""
    with torch.no_grad():
        output: object = model(x)
    logits: object = getattr(output, "logits", output)
    assert isinstance(logits, Tensor)
    return logits


def converted(model: nn.Module, config: BaseConfig, *batches: Tensor) -> nn.Module:
    """Return a converted copy of `model`, calibrated with `batches`."""
    prepared = prepare(model, config, inplace=False)
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    return convert(prepared)


def relative_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((one - other).abs().max() / one.abs().max())
