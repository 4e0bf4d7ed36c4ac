"""What one layer of a large LLaMA takes on this machine, and what follows for the model by arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import attrs
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from scale_models import layer_shapes
from tico_observers import GramStatistic
from tico_quantizers.algorithms.gptq import quantize_weight
from tico_quantizers.calibration import gram_bytes

FORWARD_TOKENS: Final = 128
GRAM_TOKENS: Final = 1024
PASSES: Final = 2
"""How often GPTQ runs a block: to learn from it, and quantized, to feed the next."""
READERS: Final = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
"""One reader of each input that layers share a Gram matrix of."""


@attrs.frozen(kw_only=True)
class Shape:
    """The sizes of a LLaMA."""

    width: int
    hidden: int
    heads: int
    key_heads: int
    layers: int

    @property
    def weights(self) -> Mapping[str, tuple[int, int]]:
        """The shape of each weight of a layer."""
        return layer_shapes(self.width, self.hidden, self.heads, self.key_heads)


SHAPES: Final[Mapping[str, Shape]] = {
    "tiny": Shape(width=256, hidden=768, heads=4, key_heads=2, layers=4),
    "8B": Shape(width=4096, hidden=14336, heads=32, key_heads=8, layers=32),
    "70B": Shape(width=8192, hidden=28672, heads=64, key_heads=8, layers=80),
}


@attrs.frozen(kw_only=True)
class LayerCost:
    """What a layer takes: seconds a token or in all, and bytes in bfloat16 or of Gram matrices."""

    forward: float
    gram: float
    solver: float
    layer_bytes: int
    gram_bytes: int

    def hours(self, shape: Shape, tokens: int) -> float:
        """Return the hours of the whole model with so many calibration tokens, as computed from these."""
        seconds = tokens * (PASSES * self.forward + self.gram) + self.solver
        return shape.layers * seconds / 3600


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of `work` in this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure_layer(shape: Shape, shrink: int) -> LayerCost:
    """Return what a layer takes; the solver is timed on weights of one `shrink`-th of both sides.

    Its time grows with the third power of the sides.
    """
    weights = shape.weights
    linears = {name: nn.Linear(weights[name][1], weights[name][0], device="meta") for name in READERS}
    return LayerCost(
        forward=_forward_seconds(shape) / FORWARD_TOKENS,
        gram=sum(_gram_seconds(weights[name][1]) for name in READERS) / GRAM_TOKENS,
        solver=sum(_solver_seconds(*weights[name], shrink) for name in weights),
        layer_bytes=2 * sum(rows * columns for rows, columns in weights.values()),
        gram_bytes=sum(map(gram_bytes, linears.values())),
    )


def _forward_seconds(shape: Shape) -> float:
    config = LlamaConfig(  # type: ignore[call-arg]  # its base takes the attention
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        empty = LlamaDecoderLayer(config, 0).to(torch.bfloat16)
    layer = empty.to_empty(device="cpu")
    for tensor in layer.parameters():
        nn.init.normal_(tensor, std=0.02)
    x = torch.randn(1, FORWARD_TOKENS, shape.width, dtype=torch.bfloat16)
    places = torch.arange(FORWARD_TOKENS)[None]
    turns = LlamaRotaryEmbedding(config)(x, places)

    def forward() -> None:
        with torch.no_grad():
            layer(x, position_embeddings=turns)

    forward()  # kernels are chosen in the first call
    return seconds(forward)


def _gram_seconds(columns: int) -> float:
    rows = torch.randn(GRAM_TOKENS, columns)
    return seconds(lambda: GramStatistic(columns=columns).observe(rows))


def _solver_seconds(rows: int, columns: int, shrink: int) -> float:
    rows, columns = rows // shrink, columns // shrink
    x, weight = torch.randn(2 * columns, columns), torch.randn(rows, columns)
    gram = x.T @ x
    return seconds(lambda: quantize_weight(weight, gram, bits=4, group_size=min(128, columns))) * shrink**3
