"""The multiply-accumulates of steps in the coverage."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaAttention

from llama_families import TOKENS, tiny
from tico.quantization import PTQConfig, convert, coverage, prepare
from tico.quantization.config import no_quant
from tiny_models import values

X = values(0, 2, 5, 8)
W = values(1, 8, 6)


class Products(nn.Module):
    """One of the ways to multiply."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.weight = nn.Parameter(W.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return a product, or attention."""
        return WAYS[self.way](x, self.weight)


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda x, w: x @ w,
    "linear": lambda x, w: F.linear(x, w.T),
    "einsum": lambda x, w: torch.einsum("bti,io->bto", x, w),
    "dots": lambda x, w: torch.einsum("...i,io->...o", x, w),
    "addmm": lambda x, w: torch.addmm(x[0, :, :6], x[0], w),
    "baddbmm": lambda x, w: torch.baddbmm(x[..., :6], x, w.expand(2, 8, 6)),
    "conv": lambda x, w: F.conv1d(x.transpose(1, 2), w.T[:, :, None]),
    "attention": lambda x, w: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]),
}


ROWS = 2 * 5
COUNTS = {
    **dict.fromkeys(("matmul", "linear", "einsum", "dots", "baddbmm", "conv"), ROWS * 8 * 6),
    "addmm": 5 * 8 * 6,
    "attention": 2 * ROWS * 5 * 8,
}


@pytest.mark.parametrize("way", COUNTS)
def test_each_way_to_multiply_is_counted(way: str) -> None:
    """Once for each product of two numbers, over all passes; as integers where all have grids."""
    model = prepare(Products(way).eval(), PTQConfig())
    model(X)
    model(X)
    found = coverage(convert(model))
    assert found.macs == 2 * COUNTS[way]
    assert found.macs_share == 1.0


def test_products_with_a_float_weight_are_no_integer_arithmetic() -> None:
    """They count, but not among those of integers."""
    model = prepare(Products("matmul").eval(), PTQConfig(overrides={"weight": no_quant()}))
    model(X)
    found = coverage(convert(model))
    assert (found.macs, found.macs_share) == (COUNTS["matmul"], 0.0)


class Renamed(LlamaAttention):
    """LLaMA's attention under another name, with the forward written anew, so that no wrapper serves it."""

    def forward(  # type: ignore[override]
        self, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        """Return what LLaMA's gives."""
        output, weights = super().forward(*args, **kwargs)  # type: ignore[arg-type]  # as they come
        return output, weights


def test_steps_count_what_a_wrapper_of_attention_counts() -> None:
    """The coverage of LLaMA's attention is the same by its wrapper and by its steps."""
    wrapped = tiny("Llama")
    stepped = copy.deepcopy(wrapped)
    for layer in (0, 1):
        stepped.get_submodule(f"model.layers.{layer}.self_attn").__class__ = Renamed
    counts = []
    for model in (wrapped, stepped):
        prepare(model, PTQConfig())
        model(TOKENS)
        lines = {line.path: line.macs for line in coverage(convert(model)).lines}
        counts.append(lines["model.layers.0.self_attn"])
    assert counts[0] == counts[1] is not None
