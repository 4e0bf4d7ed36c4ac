"""Integer layers under the transforms, traces and modes of torch, and what torch computes from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from references import same_bits
from tico_config import DType, PerTensor
from tico_modules import (
    ActivationGrid,
    PackedWeight,
    Parts,
    QuantizedLinear,
    load_quantized,
    save_quantized,
    set_backend,
)
from tico_observers import params_from_range

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

X = torch.linspace(-2, 2, 24).view(3, 8)


def _fixed() -> ActivationGrid:
    low, high = torch.tensor(-3.0), torch.tensor(2.5)
    params = params_from_range(low, high, DType.uint(8), symmetric=False, granularity=PerTensor())
    return ActivationGrid.static(params)


GRIDS: dict[str, Callable[[], ActivationGrid | None]] = {
    "none": lambda: None,
    "fixed": _fixed,
    "per token": lambda: ActivationGrid.per_token(DType.int(8), symmetric=True),
}
every_grid = pytest.mark.parametrize("grid", GRIDS)


def _linear(grid: str, bits: int = 8) -> QuantizedLinear:
    weight = PackedWeight.round_to_nearest(
        torch.randn(5, 8), DType.uint(bits), symmetric=False, group_size=None
    )
    return QuantizedLinear(Parts(packed=weight, bias=torch.randn(5), act_in=GRIDS[grid]())).eval()


@every_grid
def test_tangents_pass_straight_through(grid: str) -> None:
    """Forward mode gives the derivatives of reverse mode: those of the layer without its grid."""
    layer, along = _linear(grid), torch.arange(24.0).view(3, 8)
    weight = layer.dequantize()
    found: tuple[Tensor, Tensor] = torch.func.jvp(layer, (X,), (along,))  # type: ignore[assignment]  # no aux
    assert same_bits(found[0], layer(X))
    assert same_bits(found[1], along @ weight.T)
    assert same_bits(torch.func.jacfwd(layer)(X[0]), torch.func.jacrev(layer)(X[0]))
    with forward_ad.dual_level(), torch.no_grad():
        dual = layer(forward_ad.make_dual(X, along))  # type: ignore[no-untyped-call]  # torch's own
        tangent = forward_ad.unpack_dual(dual).tangent  # type: ignore[no-untyped-call]  # torch's own
        assert same_bits(tangent, along @ weight.T)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes of buffers are constants
@every_grid
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 9, 16])
def test_a_trace_of_torchscript_holds_every_width(grid: str, bits: int) -> None:
    """It gives the bits of the layer."""
    layer = _linear(grid, bits)
    traced = torch.jit.trace(layer, (X,))  # type: ignore[no-untyped-call]  # torch's own
    assert same_bits(traced(X), layer(X))


@every_grid
def test_a_symbolic_trace_gives_the_same_bits(grid: str) -> None:
    """A grid is one operator in it, for inputs of any numbers and of other sizes."""
    layer = _linear(grid)
    traced = torch.fx.symbolic_trace(nn.Sequential(layer, nn.ReLU()))
    for x in (X, 7 * X[:2]):
        assert same_bits(traced(x), layer(x).relu())
    called = [node for node in traced.graph.nodes if "fake_quantize" in str(node.target)]
    assert len(called) == (grid != "none")


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch falls back to a loop, and says so
@every_grid
@pytest.mark.parametrize("bits", [4, 8])
def test_buffers_of_several_layers_are_stacked(grid: str, bits: int) -> None:
    """`vmap` over the tensors of several layers gives the outputs of each."""
    layers = [_linear(grid, bits) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        output: Tensor = torch.func.functional_call(layers[0], (parameters, buffers), (X,))
        return output

    found = torch.vmap(call)(parameters, buffers)
    # A batched product sums in another order: 8 products of less than 24, each sum off by an ulp.
    bound = 8 * 8 * 24 * torch.finfo(torch.float32).eps
    assert torch.allclose(found, torch.stack([layer(X) for layer in layers]), rtol=0, atol=bound)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_model_loaded_in_inference_mode_can_be_used_outside(grid: str, tmp_path: Path) -> None:
    """Its tensors are ordinary ones: gradients of the input, kernels and state dicts work."""
    model = nn.Sequential(_linear(grid))
    save_quantized(model, tmp_path)
    with torch.inference_mode():
        loaded = load_quantized(tmp_path, nn.Sequential(nn.Linear(8, 5)))
        assert torch.is_inference_mode_enabled()
    assert not any(tensor.is_inference() for tensor in loaded.state_dict().values())
    x = X.clone().requires_grad_()
    found = loaded(x)
    assert same_bits(found, model(X))
    found.sum().backward()
    assert x.grad is not None
    loaded.load_state_dict(model.state_dict())
    set_backend(loaded, "native")
    assert loaded(X).shape == found.shape
