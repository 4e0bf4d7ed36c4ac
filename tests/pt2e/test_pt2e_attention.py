"""Attention that is taken apart is the operator of torch, at its edges too; dropout is none of a graph's."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Final

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graph_models import Function
from tico.quantization import PT2EConfig, convert, prepare
from tico_config import UnsupportedError
from tico_quantizers.testing import refused, values

LOWEST: Final = torch.finfo(torch.float32).min


@attrs.frozen(kw_only=True, eq=False)
class Edge:
    """Arguments of one attention: 4 queries and 6 keys of size 8 unless said otherwise."""

    queries: tuple[int, ...] = (2, 4, 4, 8)
    keys: tuple[int, ...] = (2, 4, 6, 8)
    values: tuple[int, ...] = (2, 4, 6, 5)
    mask: Tensor | None = None
    causal: bool = False
    scale: float | None = None
    grouped: bool = False

    def tensors(self) -> tuple[Tensor, ...]:
        """Return query, key and value."""
        shapes = (self.queries, self.keys, self.values)
        return tuple(values(seed, *shape) for seed, shape in enumerate(shapes))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return what torch gives."""
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=self.mask,
            is_causal=self.causal,
            scale=self.scale,
            enable_gqa=self.grouped,
        )


def bits(*shape: int) -> Tensor:
    """Return a mask of that shape in which some rows are empty."""
    mask = values(7, *shape) > 0
    return mask & (torch.arange(shape[-2]) != 1).unsqueeze(-1)


def lowered(mask: Tensor, lowest: float) -> Tensor:
    """Return a mask to be added, which is `lowest` where the other one is false."""
    return torch.where(mask, values(8, *mask.shape), lowest)


EDGES: Final[Mapping[str, Edge]] = {
    "no mask": Edge(),
    "scaled": Edge(scale=0.3),
    "scaled by zero": Edge(scale=0.0),
    "causal, more keys": Edge(causal=True),
    "causal, fewer keys": Edge(causal=True, keys=(2, 4, 2, 8), values=(2, 4, 2, 5)),
    "causal, one query": Edge(causal=True, queries=(2, 4, 1, 8)),
    "bits": Edge(mask=bits(4, 6)),
    "bits for each sequence": Edge(mask=bits(2, 1, 4, 6)),
    "bits for each key": Edge(mask=torch.tensor([True, True, False, True, False, True]).view(1, 6)),
    "bits for each query": Edge(mask=torch.tensor([True, False, True, True]).view(4, 1)),
    "no key of a sequence": Edge(mask=torch.tensor([True, False]).view(2, 1, 1, 1)),
    "nothing at all": Edge(mask=torch.zeros(4, 6, dtype=torch.bool)),
    "floats": Edge(mask=lowered(bits(4, 6), -math.inf)),
    "floats for each head": Edge(mask=lowered(bits(1, 4, 4, 6), -math.inf)),
    "floats that are finite": Edge(mask=lowered(bits(4, 6), LOWEST)),
    "grouped": Edge(grouped=True, keys=(2, 2, 6, 8), values=(2, 2, 6, 5)),
    "grouped, values apart": Edge(grouped=True, keys=(2, 2, 6, 8), values=(2, 1, 6, 5)),
    "grouped, causal, scaled": Edge(
        grouped=True, causal=True, scale=0.5, keys=(2, 1, 6, 8), values=(2, 1, 6, 5)
    ),
    "grouped and masked": Edge(grouped=True, mask=bits(2, 1, 4, 6), keys=(2, 2, 6, 8), values=(2, 2, 6, 5)),
    "no heads": Edge(mask=bits(4, 6), queries=(3, 4, 8), keys=(3, 6, 8), values=(3, 6, 5)),
    "no batch": Edge(mask=bits(4, 6), queries=(4, 8), keys=(6, 8), values=(6, 5)),
    "one sequence of keys": Edge(keys=(1, 4, 6, 8), values=(1, 4, 6, 5)),
}


class Edges(nn.Module):
    """All of them in one model, so that it is exported once."""

    def forward(self, tensors: dict[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """Return the result of each attention by its name."""
        return {name: EDGES[name].attend(*tensors[name]) for name in EDGES}


@functools.cache
def results() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return what the model, the prepared graph and the converted one give."""
    tensors = {name: edge.tensors() for name, edge in EDGES.items()}
    model = Edges().eval()
    prepared = prepare(model, PT2EConfig(dynamic_shapes={}), args=(tensors,), inplace=False)
    taken_apart = prepared(tensors)
    return model(tensors), taken_apart, convert(prepared)(tensors)


@pytest.mark.parametrize("name", EDGES)
def test_attention_is_the_operator(name: str) -> None:
    """Up to rounding before it is quantized; rows of which everything is masked are 0 before and after."""
    expected, found, quantized = (each[name] for each in results())
    # Sums of 8 products and of 6 values of at most 4, in another order: below 64 steps of float32.
    assert (found - expected).abs().max() <= 64 * 4 * 2**-23
    assert quantized.isfinite().all()
    empty = (expected == 0).all(-1)
    assert not found[empty].any()
    assert not quantized[empty].any()


def test_a_mask_may_have_more_bits_than_the_query() -> None:
    """As torch has it, the result is in the query's format."""
    edge = Edge(mask=lowered(bits(4, 6), -math.inf))
    tensors = tuple(each.bfloat16() for each in edge.tensors())
    prepared = prepare(Function(edge.attend).eval(), PT2EConfig(), args=tensors, inplace=False)
    expected, found = edge.attend(*tensors), prepared(*tensors)
    assert found.dtype == torch.bfloat16
    # Scores below 8 are rounded to 2**-6, and so are weights, as a share; both count for values of at most 4.
    assert (found - expected).abs().max() <= 2 * 4 * 2**-6


DROPPING: Final[Mapping[str, nn.Module]] = {
    "attention": Function(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)),
    "dropout": Function(lambda x: F.dropout(torch.relu(x), 0.25)),
    "dropout of features": Function(lambda x: F.dropout1d(torch.relu(x), 0.25)),
}


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_in_evaluation_mode_is_refused(name: str) -> None:
    """A graph is one function; the float model gives another result in every call."""
    model = DROPPING[name].eval()
    with refused(model, UnsupportedError, field="model") as caught:
        prepare(model, PT2EConfig(), args=(values(0, 2, 4, 8),), inplace=False)
    assert "by chance, in evaluation mode too; give dropout training=self.training" in str(caught.value)


def test_dropout_that_drops_nothing_is_left_out() -> None:
    """That of modules in evaluation mode, and a share of zero."""
    attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
    model = Function(
        lambda x, drop, attention: drop(F.dropout(attention(x, x, x, need_weights=False)[0], 0.0)),
        drop=nn.Dropout(),
        attention=attention,
    ).eval()
    x = values(0, 2, 4, 8)
    prepared = prepare(model, PT2EConfig(), args=(x,), inplace=False)
    # Sums of 8 products of at most 4: below 64 steps of float32.
    assert (prepared(x) - model(x)).abs().max() <= 64 * 4 * 2**-23
