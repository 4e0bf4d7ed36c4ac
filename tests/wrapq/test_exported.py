"""Exported programs of converted models: operators of torch's own, and the bits of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from exported_programs import foreign_operators, grids_on_activations, output_elsewhere
from references import same_bits
from tico.quantization import PTQConfig, convert, prepare
from tico.quantization.config import DType, PerChannel, PerGroup, PerToken, affine
from tico_config import Granularity
from tico_modules import ActivationGrid
from tico_observers import AffineParams, RangeStatistic, params_from_range
from tiny_models import values

BATCH = Dim("batch", min=2)


def _convolutions() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.SiLU()]
    return nn.Sequential(
        *layers, nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Flatten(), nn.Linear(1024, 5)
    ).eval()


def _encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True).eval()


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolutions": (_convolutions, values(0, 4, 3, 12, 12)),
    "encoder": (_encoder, values(0, 4, 5, 16)),
}
SIGNED = PTQConfig(activation=affine(DType.int(8)), weight=affine(DType.int(8)))


def _converted(name: str, config: PTQConfig) -> nn.Module:
    make, x = MODELS[name]
    prepared = prepare(make(), config)
    prepared(x)
    return convert(prepared)


def _targets(program: ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("config", [PTQConfig(), SIGNED], ids=["unsigned", "signed"])
@pytest.mark.parametrize("name", MODELS)
def test_program_has_a_pair_for_each_grid_and_integers_for_each_weight(
    name: str, config: PTQConfig, strict: bool
) -> None:
    """The batch is free, the bits are the model's, and the grids are plain numbers, as runtimes read them."""
    model, x = _converted(name, config), MODELS[name][1]
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: BATCH},), strict=strict)
    grids = [each for each in model.modules() if isinstance(each, ActivationGrid)]
    weights = sum(name.endswith("packed.codes") for name, _ in model.named_buffers())
    targets = _targets(program)
    assert grids_on_activations(program) == len(grids)
    assert targets.count("quantized_decomposed.quantize_per_tensor.default") == len(grids)
    assert targets.count("quantized_decomposed.dequantize_per_channel.default") == weights
    assert foreign_operators(program) == []
    more = torch.cat([x, -x, 2 * x])
    assert same_bits(program.module()(more), model(more).detach())


@pytest.mark.parametrize("name", MODELS)
def test_saved_program_runs_where_only_torch_is(name: str, tmp_path: Path) -> None:
    """With the one import that the documentation asks for, to the same bits."""
    model, x = _converted(name, PTQConfig()), MODELS[name][1]
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert same_bits(output_elsewhere(program, (x,), tmp_path), model(x))


FORMATS = [
    DType.uint(8),
    DType.int(8),
    DType.uint(4),
    DType.int(5),
    DType.uint(12),
    DType.int(16),
    DType.uint(16),
]
UNITS: list[Granularity] = [PerChannel(1), PerChannel(-1)]


def _grid(x: Tensor, granularity: Granularity, dtype: DType) -> ActivationGrid:
    seen = RangeStatistic(granularity=granularity).observe(x).extremes
    assert seen is not None
    return ActivationGrid.static(
        params_from_range(seen.minimum, seen.maximum, dtype, symmetric=dtype.signed, granularity=granularity)
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_grid_of_channels_is_exported_in_every_format(dtype: DType, kind: torch.dtype) -> None:
    """Of up to 16 bits, in float32 and narrower; values beyond the grid saturate as in the module."""
    x = values(1, 64, 6, 5) * 3
    for granularity in UNITS:
        grid, given = _grid(x, granularity, dtype), (1.2 * x).to(kind)
        program = torch.export.export(grid, (given,))
        assert grids_on_activations(program) == 1
        assert same_bits(program.module()(given), grid(given))


def test_narrow_formats_keep_their_ends() -> None:
    """What float16 cannot hold becomes its largest number; what is too small, a zero without a sign."""
    ends = torch.tensor([-7.0e4, -6.4e4, 1.0, 6.6e4, 9.0e4]).half().clamp(-65504, 65504)
    small = torch.tensor([-3.0e-8, -1.0e-7, 0.0, 6.0e-8]).half()
    for scale, x in ((600.0, ends), (2.0**-26, small)):
        params = AffineParams(scale=torch.tensor(scale), zero_point=torch.tensor(0), dtype=DType.int(8))
        grid = ActivationGrid.static(params)
        assert same_bits(torch.export.export(grid, (x,)).module()(x), grid(x))


PLAIN = {
    "per token": (ActivationGrid.per_token(DType.int(8), symmetric=True), torch.float32),
    "per token asymmetric": (ActivationGrid.per_token(DType.uint(8), symmetric=False), torch.float32),
    "per group": (_grid(values(2, 4, 6), PerGroup(1, 2), DType.uint(8)), torch.float32),
    "float64": (_grid(values(2, 4, 6), PerChannel(1), DType.uint(8)), torch.float64),
}


@pytest.mark.parametrize("case", PLAIN)
def test_what_the_dialect_lacks_is_plain_arithmetic(case: str) -> None:
    """Operators that every exporter knows, and the same bits."""
    grid, kind = PLAIN[case]
    x = values(2, 4, 6).to(kind)
    program = torch.export.export(grid, (x,))
    assert [name for name in _targets(program) if not name.startswith("aten.")] == []
    assert same_bits(program.module()(x), grid(x))


def _copied(grid: ActivationGrid, other: ActivationGrid) -> ActivationGrid:
    grid.scale.copy_(other.scale)
    return copy.deepcopy(grid)


def _set(grid: ActivationGrid, other: ActivationGrid) -> ActivationGrid:
    grid.scale = other.scale.clone()
    return grid


def _loaded(grid: ActivationGrid, other: ActivationGrid) -> ActivationGrid:
    grid.load_state_dict(other.state_dict(), assign=True)
    return grid


def _moved(grid: ActivationGrid, other: ActivationGrid) -> ActivationGrid:
    moved = grid.to("meta").to_empty(device="cpu")
    moved.load_state_dict(other.state_dict())
    return moved.bfloat16()


@pytest.mark.parametrize("change", [_copied, _set, _loaded, _moved])
def test_numbers_in_a_program_are_those_of_the_grid(
    change: Callable[[ActivationGrid, ActivationGrid], ActivationGrid],
) -> None:
    """However a grid came by them: the program is made of what the module computes with."""
    first, second = (
        ActivationGrid.static(
            AffineParams(scale=torch.tensor(scale), zero_point=torch.tensor(3), dtype=DType.uint(8))
        )
        for scale in (0.5, 0.25)
    )
    x, changed = values(3, 4, 5), change(first, second)
    program = torch.export.export(changed, (x,))
    [node] = [each for each in program.graph.nodes if "dequantize" in str(each.target)]
    assert node.args[1:3] == (0.25, 3)
    assert same_bits(program.module()(x), second(x))


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 16])
def test_weights_of_other_widths_are_unpacked_and_dequantized(bits: int) -> None:
    """Constants folded, integers are left, for scales a row and for scales a group."""
    torch.manual_seed(0)
    for weight in (affine(DType.uint(bits)), affine(DType.int(bits), granularity=PerGroup(1, 4))):
        config = PTQConfig(weight=weight)
        prepared = prepare(nn.Sequential(nn.Linear(8, 4)).eval(), config)
        x = values(4, 3, 8)
        prepared(x)
        model = convert(prepared)
        program = torch.export.export(model, (x,))
        name = "dequantize_per_channel" if weight.granularity is None else "dequantize_per_channel_group"
        assert _targets(program).count(f"quantized_decomposed.{name}.default") == 1
        assert "aten.view.dtype" not in _targets(program)
        assert same_bits(program.module()(x), model(x))


def test_grids_per_token_need_nothing_but_torch(tmp_path: Path) -> None:
    """Saved and loaded elsewhere too."""
    config = PTQConfig(activation=affine(DType.uint(8), granularity=PerToken()))
    model, x = _converted("encoder", config), MODELS["encoder"][1]
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert same_bits(output_elsewhere(program, (x,), tmp_path), model(x))
