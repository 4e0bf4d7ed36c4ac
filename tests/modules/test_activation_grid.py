"""Grids of activations move values as fake quantization does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from references import same_bits
from tico_config import ArtifactError, DType, Granularity, PerChannel, PerGroup, PerTensor, UnsupportedError
from tico_observers import (
    AffineParams,
    RangeStatistic,
    fake_quantize,
    params_from_range,
    params_per_token,
)
from tico_quantizers import ActivationGrid, Layout
from tico_quantizers.testing import refused
from tiny_models import values

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def params_of(x: Tensor, granularity: Granularity, *, symmetric: bool = False) -> AffineParams:
    """Return the grid that spans `x`."""
    seen = RangeStatistic(granularity=granularity).observe(x).extremes
    assert seen is not None
    return params_from_range(
        seen.minimum, seen.maximum, DType(8, symmetric), symmetric=symmetric, granularity=granularity
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(-1), PerGroup(1, 4)], ids=str)
def test_a_static_grid_is_fake_quantization(granularity: Granularity, dtype: torch.dtype) -> None:
    """Every bit is that of `fake_quantize`, in the format of the input."""
    x = values(1, 5, 12)
    params = params_of(x, granularity)
    grid = ActivationGrid.static(params)
    beyond = (x * 1.5).to(dtype)
    assert same_bits(grid(beyond), fake_quantize(beyond, params))
    again = ActivationGrid.restore(Layout("grid", grid.layout()), dict(grid.named_buffers()))
    assert same_bits(again(beyond), grid(beyond))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 5), (7,), (0, 4), (3, 0)])
def test_a_grid_per_token_is_fake_quantization(
    shape: tuple[int, ...], symmetric: bool, dtype: torch.dtype
) -> None:
    """Each vector is moved to the grid that it spans itself: large, tiny, constant and zero ones."""
    x = (
        (values(2, *shape) * torch.tensor([1e-30, 1.0, 3e4])[: shape[0], *[None] * (len(shape) - 1)]).to(
            dtype
        )
        if shape[0] == 3
        else values(2, *shape).to(dtype)
    )
    if x.numel() and x.ndim > 1:
        x[0] = 0
    kind = DType(8, symmetric)
    grid = ActivationGrid.per_token(kind, symmetric=symmetric)
    assert same_bits(grid(x), fake_quantize(x, params_per_token(x, kind, symmetric=symmetric)))


def test_a_token_with_nan_harms_no_other() -> None:
    """It becomes NaN, as it would in the float model; the others do not."""
    x = values(3, 2, 6)
    x[0, 2] = torch.nan
    moved = ActivationGrid.per_token(DType.uint(8), symmetric=False)(x)
    assert bool(moved[0].isnan().all())
    assert same_bits(moved[1], ActivationGrid.per_token(DType.uint(8), symmetric=False)(x[1]))


@pytest.mark.parametrize("per_token", [False, True])
def test_grids_are_traced_whole(per_token: bool) -> None:
    """Export and compilation see no branch on values, change no bit, and leave the number of rows open."""
    x = values(4, 4, 9)
    static = ActivationGrid.static(params_of(x, PerTensor()))
    grid = ActivationGrid.per_token(DType.int(8), symmetric=True) if per_token else static
    axes = ({0: torch.export.Dim("rows")},)
    exported = torch.export.export(grid, (x,), dynamic_shapes=axes).module()
    compiled = torch.compile(grid, backend="eager", fullgraph=True, dynamic=True)
    for each in (x, values(5, 7, 9)):
        assert same_bits(exported(each), grid(each))
        assert same_bits(compiled(each), grid(each))


def test_symbolic_traces_hold_one_node_for_a_grid() -> None:
    """A graph of `torch.fx` has one operator, which computes the same bits, for any number of rows."""
    x = values(4, 4, 9)
    grid = ActivationGrid.static(params_of(x, PerTensor()))
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(grid))
    calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert calls == [torch.ops.tico.fake_quantize.default]
    assert same_bits(graph(x), grid(x))
    program = torch.export.export(graph, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    more = values(5, 7, 9)
    assert same_bits(program.module()(more), grid(more))


def test_gradients_pass_straight_through() -> None:
    """A grid does not end what comes before it."""
    x = values(5, 3, 4).requires_grad_()
    ActivationGrid.per_token(DType.uint(8), symmetric=False)(x).sum().backward()
    assert torch.equal(x.grad if x.grad is not None else torch.zeros(()), torch.ones(3, 4))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("per_token", [False, True])
def test_what_holds_no_floats_is_refused(per_token: bool, dtype: torch.dtype) -> None:
    """Pictures of bytes for a model that was calibrated with floats, in words of what to do."""
    grid = ActivationGrid.static(params_of(values(4, 4, 9), PerTensor()))
    if per_token:
        grid = ActivationGrid.per_token(DType.int(8), symmetric=True)
    with pytest.raises(UnsupportedError, match=rf"the input is {dtype}, .*; convert it to the floats"):
        grid(torch.ones(2, 3).to(dtype))


def test_casting_a_model_leaves_the_grid_alone() -> None:
    """The scale is float32 whatever the model is computed in."""
    grid = ActivationGrid.static(params_of(values(6, 8), PerTensor()))
    before = grid.scale.clone()
    assert same_bits(grid.half().scale, before)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("bits", {"bits": 0}),
        ("signed", {"signed": None}),
        ("symmetric", {"symmetric": "no"}),
        ("unit", {"unit": "PerPlanet"}),
        ("axis", {"unit": "PerChannel", "axis": 99}),
        ("scale", {"unit": "PerChannel", "axis": 8}),
        ("scale", {"unit": "PerToken"}),
        ("size", {"unit": "PerGroup", "axis": 8, "size": 0}),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(field: str, changes: dict[str, object]) -> None:
    """Each field is checked; the error says where and which."""
    grid = ActivationGrid.static(params_of(values(7, 8), PerTensor()))
    layout = Layout("file.fc.act_in", grid.layout() | changes)
    with refused(None, ArtifactError, field=field, module="file.fc.act_in"):
        ActivationGrid.restore(layout, dict(grid.named_buffers()))


@pytest.mark.parametrize(
    ("field", "value"),
    [("scale", torch.tensor(0.0)), ("scale", torch.ones(2)), ("zero_point", torch.tensor(256))],
)
def test_tensors_that_are_no_grid_are_refused(field: str, value: Tensor) -> None:
    """A scale is one positive number, and a zero point a code."""
    grid = ActivationGrid.static(params_of(values(8, 8), PerTensor()))
    tensors = dict(grid.named_buffers()) | {field: value}
    with pytest.raises(ArtifactError) as caught:
        ActivationGrid.restore(Layout("grid", grid.layout()), tensors)
    assert caught.value.module == "grid"
