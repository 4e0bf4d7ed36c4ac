"""Operators by other names, operators made of others, and operators with several results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tico.quantization import PT2EConfig, convert, prepare, report
from tico_quantizers.testing import seeded, values


class Function(nn.Module):
    """A linear layer and a function of its output."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return the function of what the layer makes of `x` (4, 4)."""
        return self.function(self.layer(x))


def left(model: nn.Module) -> dict[str, float]:
    """Return the operators that stayed float, with their counts."""
    return dict(report(model).layers[0].figures)


def quantized(model: nn.Module, *args: Tensor) -> nn.Module:
    """Return the graph calibrated with `args`."""
    prepared = prepare(model, PT2EConfig(), args=args, inplace=False)
    with torch.no_grad():
        prepared(*args)
    return convert(prepared)


SPELLED: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "concat": lambda x: torch.concat([x, x], 1),
    "hstack": lambda x: torch.hstack([x, x]),
    "row_stack": lambda x: torch.row_stack([x, x]),
    "clip": lambda x: x.clip(-0.5, 0.5),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_max": lambda x: x.clamp_max(0),
    "multiply": lambda x: torch.multiply(x, x),
    "subtract": lambda x: torch.subtract(x, x.mT),
    "divide": lambda x: torch.divide(x, 3.0),
    "square": torch.square,
    "inner": lambda x: torch.inner(x, x),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "tensordot": lambda x: torch.tensordot(x, x, ([1], [1])),
    "pad": lambda x: F.pad(x, (1, 1)),
    "mv": lambda x: torch.mv(x, x[0]),
    "dot": lambda x: x[0].dot(x[1]),
    "outer": lambda x: torch.outer(x[0], x[1]),
    "addcmul": lambda x: torch.addcmul(x, x, x.mT, value=0.5),
    "multi_dot": lambda x: torch.linalg.multi_dot([x, x.mT, x]),
}


def test_spelling_makes_no_difference() -> None:
    """However an operator is called, nothing of it stays float, and the function is kept."""
    model = seeded(lambda: Function(lambda x: torch.cat([each(x).flatten() for each in SPELLED.values()])))
    x = values(0, 4, 4)
    graph = quantized(model, x)
    assert left(graph) == {}
    expected = model(x)
    noise = (graph(x) - expected).square().mean()
    assert 10 * torch.log10(expected.square().mean() / noise) > 25


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x.topk(2)[0], "topk"),
        (lambda x: x.sort()[0], "sort"),
        (lambda x: x.max(1)[0], "max"),
        (lambda x: torch.var_mean(x, 1)[1], "var_mean"),
        (lambda x: torch.gru_cell(x, x, x.repeat(3, 1), x.repeat(3, 1)), "gru_cell"),
    ],
)
def test_an_operator_that_is_not_annotated_is_listed_by_its_own_name(
    function: Callable[[Tensor], Tensor], name: str
) -> None:
    """With several results or one, and not by the operator that picks one of them."""
    found = left(quantized(seeded(lambda: Function(function)), values(0, 4, 4)))
    assert found == {name: 1}


@pytest.mark.parametrize("boolean", [True, False])
def test_a_row_of_which_all_is_masked_gives_zero(boolean: bool) -> None:
    """As torch's attention has it, so that batches padded on the left can be calibrated and run."""
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[0] = False
    given = mask if boolean else torch.zeros(4, 4).masked_fill(~mask, -torch.inf)
    model = seeded(
        lambda: Function(lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], given)[0])
    )
    x = values(0, 4, 4)
    expected, graph = model(x), quantized(model, x)
    assert torch.equal(expected[0], torch.zeros(4))
    assert torch.equal(graph(x)[0], torch.zeros(4))
    noise = (graph(x) - expected).square().mean()
    assert 10 * torch.log10(expected.square().mean() / noise) > 25
