"""Weights and activations in floating-point formats, as modules hold them."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, load_quantized, plan, prepare, report, save_quantized
from tico.quantization.config import affine, no_quant
from tico_config import (
    FLOAT_FORMATS,
    FP8,
    MXFP4,
    MXFP6,
    MXFP8,
    MXINT8,
    NVFP4,
    ArtifactError,
    DType,
    FloatFormat,
    NumericsError,
    PerGroup,
    PerTensor,
    PerToken,
    QuantSpec,
    UnsupportedError,
)
from tico_export import GGUF, PT2, CompressedTensors, ExportTarget, export
from tico_modules import (
    ActivationGrid,
    FloatWeight,
    PackedWeight,
    PlannedWeight,
    QuantizedLinear,
    keep_dequantized,
    set_backend,
)
from tico_modules._storage.layout import Layout
from tico_observers import fake_quantize, fake_quantize_blocks, params_from_range, params_per_token
from tiny_models import values

every_format = pytest.mark.parametrize("dtype", FLOAT_FORMATS, ids=str)
STORED = {"float32": 4.0, "e8m0": 1.0, "e4m3": 1.0}


def rounded(weight: Tensor, dtype: FloatFormat) -> Tensor:
    """Return `weight` (rows, columns) on its grid, by the functions on tensors."""
    size = dtype.block_size or weight.shape[1]
    blocks = nn.functional.pad(weight, (0, -weight.shape[1] % size)).view(len(weight), -1, size)
    unit = PerGroup(axis=1, size=size)
    params = params_from_range(blocks.amin(-1), blocks.amax(-1), dtype, symmetric=True, granularity=unit)
    return fake_quantize(weight, params)


def packed(weight: Tensor, dtype: FloatFormat) -> FloatWeight:
    """Return `weight` rounded to nearest."""
    found = PackedWeight.round_to_nearest(weight, dtype, symmetric=True, group_size=None)
    assert isinstance(found, FloatWeight)
    return found


@every_format
@pytest.mark.parametrize("columns", [64, 70])
def test_values_are_those_of_the_grid(dtype: FloatFormat, columns: int) -> None:
    """Bit for bit, of the whole weight, of some rows, and where the last block is shorter."""
    weight = values(0, 6, columns)
    found = packed(weight, dtype)
    assert torch.equal(found.dequantize(), rounded(weight, dtype))
    assert torch.equal(found.rows(torch.tensor([[5, 0]])), rounded(weight, dtype)[torch.tensor([[5, 0]])])
    with keep_dequantized(found):
        assert found.dequantize() is found.dequantize()


@every_format
def test_bytes_are_those_of_the_format(dtype: FloatFormat) -> None:
    """Packed codes, a scale for each block in its own format, and one float32 for NVFP4's tensor."""
    found = packed(values(0, 6, 64), dtype)
    blocks = 64 // dtype.block_size if dtype.block_size else 1
    tensor = 4 if dtype == NVFP4() else 0
    assert found.bytes == 6 * (64 * dtype.bits // 8 + blocks * STORED[dtype.scale_format]) + tensor
    if dtype.block_size:
        assert (found.bytes - tensor) * 8 / (6 * 64) == dtype.bits_per_value
    outlined = PlannedWeight.of((6, 64), found.grid_format())
    assert (outlined.bytes, outlined.grid_format()) == (found.bytes, found.grid_format())


@every_format
def test_scales_and_zero_points_can_be_read(dtype: FloatFormat) -> None:
    """What reads the weights of integers finds float32 scales, zeros, and codes of the standard."""
    weight = values(0, 6, 64)
    found = packed(weight, dtype)
    table = torch.tensor(dtype.encoding.values)
    by_hand = table[found.integer_codes().long()] * found.spread_groups(found.scale)
    assert torch.equal(by_hand + 0.0, found.dequantize())
    assert not bool(found.zero_point.any())
    assert found.zero_point.shape == found.scale.shape


@every_format
def test_a_model_in_other_floats_keeps_its_codes(dtype: FloatFormat) -> None:
    """Casts and moves leave codes and scales as they are; copies and state dicts hold them."""
    found = packed(values(0, 6, 64), dtype)
    other = packed(values(1, 6, 64), dtype)
    other.load_state_dict(copy.deepcopy(found).bfloat16().state_dict())
    assert torch.equal(other.dequantize(), found.dequantize())


def test_state_of_another_format_is_refused() -> None:
    """The bytes would fit, and mean something else."""
    one, other = packed(values(0, 6, 64), MXFP8("e4m3")), packed(values(0, 6, 64), MXFP8("e5m2"))
    with pytest.raises(RuntimeError, match="mxfp8_e4m3"):
        other.load_state_dict(one.state_dict())


def test_codes_of_nan_are_refused_in_a_state_dict() -> None:
    """A file that was changed by hand does not get into a model."""
    found = packed(values(0, 6, 64), FP8())
    state = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    state["codes"][0, 0] = 0x7F
    with pytest.raises(RuntimeError, match="codes of finite numbers"):
        found.load_state_dict(state)


@pytest.mark.parametrize(("dtype", "size"), [(MXFP4(), 16), (NVFP4(), 32)])
def test_groups_of_another_size_are_refused(dtype: FloatFormat, size: int) -> None:
    """A block is part of the format."""
    with pytest.raises(NumericsError, match="group_size"):
        PackedWeight.round_to_nearest(values(0, 6, 64), dtype, symmetric=True, group_size=size)


def test_fp8_takes_groups() -> None:
    """FP8 alone has no blocks; a float32 scale for each 32 columns is a matter of the granularity."""
    found = PackedWeight.round_to_nearest(values(0, 6, 64), FP8(), symmetric=True, group_size=32)
    assert (found.group_size, found.scale.shape) == (32, (6, 2))


def model() -> nn.Module:
    """Return two layers with weights and one without."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


def converted(config: PTQConfig) -> nn.Module:
    """Return the model quantized."""
    prepared = prepare(model(), config)
    prepared(values(0, 16, 64))
    return convert(prepared)


ACTIVATIONS: list[tuple[FloatFormat, QuantSpec]] = [
    *((dtype, no_quant()) for dtype in FLOAT_FORMATS),
    (FP8(), affine(FP8())),
    (FP8(), affine(FP8(), granularity=PerToken())),
    *((dtype, affine(dtype)) for dtype in FLOAT_FORMATS if dtype.block_size is not None),
]


@pytest.mark.parametrize(("dtype", "activation"), ACTIVATIONS, ids=str)
def test_ptq_takes_the_format(dtype: FloatFormat, activation: QuantSpec, tmp_path: Path) -> None:
    """The result computes with weights on the grid, and comes back from a file and out of a program."""
    quantized, x = converted(PTQConfig(weight=affine(dtype), activation=activation)), values(1, 5, 64)
    first = quantized.get_submodule("0")
    assert isinstance(first, QuantizedLinear)
    assert torch.equal(first.dequantize(), rounded(model().get_parameter("0.weight").detach(), dtype))
    assert str(dtype) in str(report(quantized))
    save_quantized(quantized, tmp_path)
    assert torch.equal(load_quantized(tmp_path, model())(x), quantized(x))
    assert torch.equal(torch.export.export(quantized, (x,)).module()(x), quantized(x))


def test_a_plan_tells_the_bytes() -> None:
    """Without values, the same bytes as the result has, with bias, scales and zero points of inputs."""
    for activation, grids in ((no_quant(), 0), (affine(MXFP4()), 0), (affine(NVFP4()), 2)):
        config = PTQConfig(weight=affine(NVFP4()), activation=activation)
        made = plan(model(), config)
        quantized = converted(config)
        layer = quantized.get_submodule("0")
        assert isinstance(layer, QuantizedLinear)
        assert made.lines[0].bytes_after == layer.packed.bytes + 4 * 32 + grids * 8


def test_a_file_is_read_in_another_process(tmp_path: Path) -> None:
    """The same bits."""
    quantized, x = converted(PTQConfig(weight=affine(MXFP6()), activation=affine(MXFP8()))), values(1, 5, 64)
    save_quantized(quantized, tmp_path / "model")
    torch.save((model(), x), tmp_path / "given.pt")
    code = (
        "import sys, torch; from tico.quantization import load_quantized; folder = sys.argv[1];"
        "model, x = torch.load(f'{folder}/given.pt', weights_only=False);"
        "torch.save(load_quantized(f'{folder}/model', model)(x), f'{folder}/found.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert torch.equal(torch.load(tmp_path / "found.pt"), quantized(x))


def test_activations_per_token_are_on_the_grid_of_their_token() -> None:
    """FP8 with dynamic scales is `fake_quantize` on the grid of each token, whatever stands beside it."""
    grid, x = ActivationGrid.per_token(FP8(), symmetric=True), values(0, 3, 5, 64)
    assert torch.equal(grid(x), fake_quantize(x, params_per_token(x, FP8(), symmetric=True)))
    assert torch.equal(grid(x[:1]), grid(x)[:1])
    x[0, 0, 0] = torch.nan
    assert bool(grid(x)[0, 0].isnan().all())
    assert bool(grid(x)[0, 1:].isfinite().all())


def test_activations_in_blocks_bring_their_scale() -> None:
    """An MX format needs no data."""
    grid, x = ActivationGrid.per_block(MXFP8()), values(0, 3, 5, 70)
    assert torch.equal(grid(x), fake_quantize_blocks(x, MXFP8()))
    assert (grid.label, grid.granularity) == ("mxfp8_e4m3", PerGroup(-1, 32))
    with pytest.raises(UnsupportedError):
        ActivationGrid.per_block(FP8())


def test_a_static_grid_saturates() -> None:
    """Values beyond those of the calibration become the largest."""
    params = params_from_range(
        torch.tensor(-1.0), torch.tensor(2.0), FP8(), symmetric=True, granularity=PerTensor()
    )
    grid = ActivationGrid.static(params)
    assert grid(torch.tensor([4.0, -torch.inf])).tolist() == [2.0, -2.0]
    assert grid.label == "fp8_e4m3 static"


def test_the_native_back_end_leaves_it_to_the_reference() -> None:
    """No kernel takes the codes for integers."""
    quantized, x = converted(PTQConfig(weight=affine(FP8()), activation=affine(FP8()))), values(1, 5, 64)
    expected = quantized(x)
    labels: Mapping[str, str] = set_backend(quantized, "native")
    assert labels["0"] == "reference: codes of fp8_e4m3 have no kernel"
    assert torch.equal(quantized(x), expected)


def test_integer_weights_may_read_fp8() -> None:
    """With weights of integers, activations of FP8 are rounded before the product."""
    config = PTQConfig(weight=affine(DType.int(8)), activation=affine(FP8(), granularity=PerToken()))
    quantized, x = converted(config), values(1, 5, 64)
    expected = quantized(x)
    set_backend(quantized, "native")
    assert torch.allclose(quantized(x), expected, atol=2**-4)  # the products are rounded to bfloat16


@pytest.mark.parametrize("target", [CompressedTensors(), GGUF(), PT2()], ids=lambda each: type(each).__name__)
def test_exports_refuse_what_has_no_place(target: ExportTarget, tmp_path: Path) -> None:
    """Every format of a file, by one sentence with all layers."""
    quantized = converted(PTQConfig(weight=affine(MXINT8()), activation=no_quant()))
    with pytest.raises(UnsupportedError, match=f"codes are mxint8, and {target.name} has no place") as caught:
        export(quantized, tmp_path / "out", target, args=(values(1, 5, 64),))
    assert [each.module for each in caught.value.problems] == ["0.packed", "2.packed"]


def test_nvfp4_activations_have_the_scale_of_the_tensor() -> None:
    """It is one number of the module; without it, or with another format, there is no such grid."""
    unit, x = torch.tensor(2.0**-8), values(0, 3, 40)
    grid = ActivationGrid.per_block(NVFP4(), tensor_scale=unit)
    assert torch.equal(grid(x), fake_quantize_blocks(x, NVFP4(), tensor_scale=unit))
    assert (grid.label, grid.scale, grid.granularity) == ("nvfp4", unit, PerGroup(-1, 16))
    assert grid(torch.full((1, 16), 1e4)).unique().tolist() == [6 * 448 * 2.0**-8]
    for dtype, scale in ((NVFP4(), None), (MXFP4(), unit), (NVFP4(), -unit), (NVFP4(), torch.ones(2))):
        with pytest.raises(NumericsError, match="scale"):
            ActivationGrid.per_block(dtype, tensor_scale=scale)


def test_a_damaged_scale_of_the_tensor_is_refused() -> None:
    """Reading a grid checks it as making one does."""
    grid = ActivationGrid.per_block(NVFP4(), tensor_scale=torch.tensor(0.5))
    layout, tensors = Layout("grid", grid.layout()), dict(grid.named_buffers())
    restored = ActivationGrid.restore(layout, tensors)
    assert torch.equal(restored(values(0, 3, 40)), grid(values(0, 3, 40)))
    for wrong in (torch.tensor(0.0), torch.tensor(torch.inf)):
        with pytest.raises(ArtifactError):
            ActivationGrid.restore(layout, {**tensors, "scale": wrong})
        assert list(grid.tensor_problems({**tensors, "scale": wrong}))


def test_weights_have_blocks_along_their_rows() -> None:
    """Blocks along the other axis are refused by prepare."""
    spec = affine(MXFP4(), granularity=PerGroup(0, 32))
    with pytest.raises(UnsupportedError, match="per group of axis 1"):
        prepare(model(), PTQConfig(weight=spec, activation=no_quant()))
