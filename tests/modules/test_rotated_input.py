"""An online rotation of the input of a layer: what it computes, keeps and exports."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tico_config import ArtifactError, LifecycleError
from tico_modules import Layout, RotatedInput
from tico_quantizers.solvers import orthogonal_factors
from tiny_models import values

WIDTH = 24


def factors(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the factors of a rotation of rows of `WIDTH`."""
    outer, inner = orthogonal_factors(WIDTH, seed=seed)
    return outer.to(dtype), inner.to(dtype)


def in_front_of(layer: nn.Module, dtype: torch.dtype = torch.float32) -> RotatedInput:
    """Return `layer` with a rotation in front of it, and nothing undone in its weight."""
    return RotatedInput(layer, *factors(dtype))


@pytest.mark.parametrize("shape", [(WIDTH,), (5, WIDTH), (0, WIDTH), (2, 3, WIDTH)])
def test_input_is_multiplied_by_the_product_of_both_matrices(shape: tuple[int, ...]) -> None:
    """``x @ kron(outer, inner)``, for rows in any shape."""
    x, (outer, inner) = values(0, *shape).double(), factors(torch.float64)
    found = RotatedInput(nn.Identity(), outer, inner)(x)
    # Sums of 24 products of numbers below 4 with entries below 1, in another order.
    limit = 24 * 4 * torch.finfo(torch.float64).eps
    assert found.shape == x.shape
    assert torch.allclose(found, x @ torch.kron(outer, inner), rtol=0.0, atol=limit)


def transposed() -> nn.Module:
    """Return the linear layer of transformers."""
    layer: nn.Module = Conv1D(5, WIDTH)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    return layer


@pytest.mark.parametrize("make", [lambda: nn.Linear(WIDTH, 5), transposed])
def test_weight_does_what_the_module_does(make: Callable[[], nn.Module]) -> None:
    """What reads the weight without a call gets one for inputs that are not rotated; it takes no other."""
    layer = make().double()
    rotated, plain, x = in_front_of(layer, torch.float64), copy.deepcopy(layer), values(0, 3, WIDTH).double()
    plain.weight = nn.Parameter(rotated.weight.clone())
    # As above, twice: once for the rotation and once for the product with the weight.
    limit = 24 * 24 * 4 * torch.finfo(torch.float64).eps
    assert torch.allclose(rotated(x), plain(x), rtol=0.0, atol=limit)
    assert rotated.bias is layer.bias
    with pytest.raises(LifecycleError, match="takes no other weight"):
        rotated.weight = layer.weight  # type: ignore[assignment]  # a parameter to mypy


def test_matrices_keep_their_dtype_when_the_model_is_cast() -> None:
    """Rounded to bfloat16 they would not be orthogonal; inputs are computed in float32 and rounded once."""
    module, x = RotatedInput(nn.Identity(), *factors()), values(0, 3, WIDTH).bfloat16()
    expected = module(x.float()).bfloat16()
    assert torch.equal(module.bfloat16()(x), expected)
    assert {buffer.dtype for buffer in module.buffers()} == {torch.float32}


def test_state_dict_has_all() -> None:
    """One with other matrices gives the same outputs after it was loaded."""
    first, second = (RotatedInput(nn.Linear(WIDTH, 3), *factors(seed=seed)) for seed in (0, 1))
    x = values(0, 4, WIDTH)
    assert not torch.allclose(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_export_is_two_products() -> None:
    """The graph has products of matrices and moves, of any number of rows, and gives the same bits."""
    model, x = in_front_of(nn.Linear(WIDTH, 3)).eval(), values(0, 4, WIDTH)
    rows = {"input": {0: torch.export.Dim("rows", min=2, max=64)}}
    program = torch.export.export(model, (x,), dynamic_shapes=rows)
    wider = values(1, 9, WIDTH)
    assert torch.equal(program.module()(wider), model(wider))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.matmul.default" in called


@pytest.mark.parametrize("bad", [torch.ones(2, 3), torch.ones(4), torch.full((2, 2), torch.nan)])
def test_files_with_other_tensors_are_refused(bad: Tensor) -> None:
    """The error names the tensor."""
    outer, _ = factors()
    with pytest.raises(ArtifactError, match="inner"):
        RotatedInput.restore(nn.Linear(WIDTH, 3), Layout("file.fc", {}), {"outer": outer, "inner": bad})
