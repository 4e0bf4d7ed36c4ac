"""The grids that GPTQ rounds to: where they come from, and which columns share one."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from torch import nn

import gptq_reference as reference
from tico.quantization import convert, prepare, report
from tico_config import (
    ConfigError,
    GPTQConfig,
    HessianMSESpec,
    MinMaxSpec,
    MSESpec,
    NumericsError,
    PercentileSpec,
    SuperBlock,
)
from tico_quantizers import PackedWeight, QuantizedLinear, load_quantized, save_quantized
from tico_quantizers.algorithms.gptq import solve
from tico_quantizers.testing import refused
from tiny_models import values

CONFIGS = [
    GPTQConfig(),
    GPTQConfig(bits=3, group_size=16),
    GPTQConfig(bits=2, group_size=32),
    reference.paper(group_size=32, static_groups=True),
    reference.paper(group_size=32, act_order=True),
    reference.paper(group_size=32, act_order=True, static_groups=True),
    reference.paper(group_size=7, act_order=True, static_groups=True, symmetric=True),
    reference.paper(act_order=True, static_groups=True),
    reference.paper(per_tensor=True),
    reference.paper(per_tensor=True, symmetric=True, act_order=True, bits=8),
    reference.paper(group_size=32, observer=MSESpec(20)),
    reference.paper(bits=2, observer=MSESpec(100)),
    reference.paper(bits=3, symmetric=True, observer=MSESpec(11)),
    reference.paper(per_tensor=True, observer=MSESpec(40)),
    reference.paper(group_size=32, observer=HessianMSESpec(20)),
    reference.paper(bits=3, act_order=True, observer=HessianMSESpec(50)),
    reference.paper(per_tensor=True, observer=HessianMSESpec(30), symmetric=True),
    reference.paper(group_size=32, observer=PercentileSpec(5, 95)),
    reference.paper(per_tensor=True, observer=PercentileSpec(0.3, 99.9)),
    reference.paper(group_size=16, observer=PercentileSpec(2.5, 100), static_groups=True, act_order=True),
    reference.paper(group_size=32, damping_reference="median"),
    reference.paper(bits=6, group_size=16, symmetric=True, super_block=SuperBlock(columns=64, scale_bits=7)),
    reference.paper(
        group_size=8,
        symmetric=True,
        super_block=SuperBlock(columns=32),
        static_groups=True,
        act_order=True,
        observer=MSESpec(20),
    ),
    reference.paper(group_size=16, super_block=SuperBlock(columns=32, offset_bits=6)),
    reference.paper(
        bits=5,
        group_size=8,
        super_block=SuperBlock(columns=64, scale_bits=5, offset_bits=4),
        observer=HessianMSESpec(20),
    ),
    reference.paper(
        bits=3,
        group_size=32,
        super_block=SuperBlock(columns=96, offset_bits=8),
        act_order=True,
        observer=PercentileSpec(3, 98),
    ),
]


def uneven_gram(columns: int) -> torch.Tensor:
    """Return a Gram matrix of inputs of very different size, two of which are always zero."""
    sizes = 1 + torch.arange(columns).double() * 11 % 40
    sizes[[5, 6]] = 0
    return reference.correlated_gram(columns, 3 * columns) * torch.outer(sizes, sizes)


@pytest.mark.parametrize("config", CONFIGS, ids=reference.fields_of)
def test_every_grid_is_that_of_its_definition(config: GPTQConfig) -> None:
    """Codes and values are those found by sorting each row and trying each share, in float64."""
    weight, gram = values(61, 40, 96), uneven_gram(96)
    found, expected = solve(weight, gram, config), reference.gptq(weight, gram, config)
    # Float32 sums flip one code in 10⁵, see test_gptq_core; two shares that are equally good to 10⁻⁶, which
    # would change a row, do not occur here.
    assert (found.codes == expected.codes).double().mean() >= 0.999
    wanted = reference.loss(weight, expected.values, gram)
    assert found.loss == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=reference.fields_of)
def test_every_solution_is_a_packed_weight(config: GPTQConfig) -> None:
    """Scales, zero points and the index of groups reproduce the weight bit for bit."""
    found = solve(values(62, 12, 96), uneven_gram(96), config)
    packed = PackedWeight.from_codes(
        found.codes,
        found.scale,
        found.zero_point,
        dtype=found.dtype,
        shape=(12, 96),
        group_size=found.group_size,
        group_index=found.group_index,
        offset=found.offset,
        super_block=config.super_block,
    )
    assert torch.equal(packed.dequantize(), found.dequantize())


def test_static_groups_need_no_index() -> None:
    """Whatever the order, groups are runs of neighbours, and their grids those of the original weights."""
    weight, gram = values(63, 6, 64), uneven_gram(64)
    config = reference.paper(group_size=16, static_groups=True)
    plain, ordered = (solve(weight, gram, attrs.evolve(config, act_order=order)) for order in (False, True))
    assert ordered.group_index is None
    assert torch.equal(plain.scale, ordered.scale)
    assert torch.equal(plain.zero_point, ordered.zero_point)
    assert not torch.equal(plain.codes, ordered.codes)


def test_one_group_a_row_is_static_by_itself() -> None:
    """Without groups, a row's only grid is found before its first column."""
    weight, gram = values(64, 6, 64), uneven_gram(64)
    one, other = (solve(weight, gram, GPTQConfig(static_groups=static)) for static in (False, True))
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scale, other.scale)


def test_per_tensor_is_one_grid() -> None:
    """Every row has the same scale and zero point, which span the whole weight."""
    weight = values(65, 6, 64)
    found = solve(weight, torch.eye(64), reference.paper(per_tensor=True))
    assert found.scale.shape == (6, 1)
    assert bool((found.scale == found.scale[0]).all())
    assert bool((found.zero_point == found.zero_point[0]).all())
    assert (found.dequantize() - weight).abs().max() <= found.scale.max() / 2 * (1 + 2**-20)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [None, 32])
def test_the_searched_grid_is_better_in_its_own_measure(bits: int, group_size: int | None) -> None:
    """For inputs that do not depend on each other, each search finds the least of what it measures."""
    weight = values(66, 64, 96) ** 3
    diagonal = 1 + torch.arange(96.0) * 7 % 19
    config = GPTQConfig(bits=bits, group_size=group_size)
    found = {
        observer: solve(weight, torch.diag(diagonal), attrs.evolve(config, observer=observer))
        for observer in (MinMaxSpec(), MSESpec(), HessianMSESpec())
    }
    squares = {observer: (each.dequantize() - weight).square() for observer, each in found.items()}
    plain = {observer: float(square.sum()) for observer, square in squares.items()}
    weighted = {observer: float((square * diagonal).sum()) for observer, square in squares.items()}
    assert plain[MSESpec()] <= plain[HessianMSESpec()] * (1 + 1e-6)
    assert plain[MSESpec()] <= plain[MinMaxSpec()] * (1 + 1e-6)
    assert weighted[HessianMSESpec()] <= weighted[MSESpec()] * (1 + 1e-6)


def test_one_step_is_the_whole_range() -> None:
    """With a single candidate there is nothing to search."""
    weight, gram = values(67, 8, 40), uneven_gram(40)
    one, other = (solve(weight, gram, GPTQConfig(observer=spec)) for spec in (MinMaxSpec(), MSESpec(1)))
    assert torch.equal(one.scale, other.scale)
    assert torch.equal(one.codes, other.codes)


@pytest.mark.parametrize("observer", [MSESpec(), HessianMSESpec(), PercentileSpec(1, 99)], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-20, 1e20, 3e38])
def test_weights_of_every_size_have_a_grid(size: float, observer: MSESpec) -> None:
    """Zero, subnormal rows and rows at the limit of float32 give finite values within the weight's range."""
    weight = torch.stack([values(68, 24).clamp(-1, 1), torch.linspace(-1, 1, 24)]) * size
    for config in (GPTQConfig(observer=observer), GPTQConfig(observer=observer, per_tensor=True)):
        found = solve(weight, torch.eye(24), config).dequantize()
        assert bool(found.isfinite().all())
        assert found.abs().max() <= weight.abs().max() * 1.5 + 2.0**-126


def test_median_damping_ignores_a_few_huge_inputs() -> None:
    """The share is of the median input's square: the mean's, times how much smaller that is."""
    weight, gram = values(69, 8, 41), reference.correlated_gram(41, 120)
    gram[3] *= 100
    gram[:, 3] *= 100
    diagonal = gram.diagonal()
    ratio = float(diagonal.median() / diagonal.mean())
    by_median = solve(weight, gram, GPTQConfig(damping=0.05, damping_reference="median"))
    by_mean = solve(weight, gram, GPTQConfig(damping=0.05 * ratio))
    assert ratio < 0.01
    assert torch.equal(by_median.codes, by_mean.codes)


def test_modules_of_one_model_have_grids_of_their_own() -> None:
    """Every choice can be made for a single module, and is what the solver gets for it."""
    changes: dict[str, dict[str, object]] = {
        "0": {"per_tensor": True, "group_size": None, "bits": 8},
        "2": {"observer": MSESpec(9), "static_groups": True},
        "4": {"act_order": True, "damping": 0.1, "damping_reference": "median"},
    }
    config = GPTQConfig(group_size=4, show_progress=False, overrides=changes)
    linears = {number: nn.Linear(8, 8) for number in (0, 2, 4)}
    model = nn.Sequential(linears[0], nn.Tanh(), linears[2], nn.Tanh(), linears[4]).eval()
    x, expected = values(70, 64, 8), {}
    for number, linear in linears.items():
        linear.weight = nn.Parameter(values(number, 8, 8))
        with torch.no_grad():
            hidden = model[:number](x).double()
        expected[number] = solve(linear.weight, hidden.T @ hidden, config.resolve(str(number)).spec)
    prepared = prepare(model, config)
    prepared(x)
    converted = convert(prepared)
    for number, solution in expected.items():
        packed = converted.get_submodule(str(number)).packed
        assert isinstance(packed, PackedWeight)
        # The model's own Gram matrices are float32 products: another rounding may decide a tie.
        assert (packed.integer_codes() == solution.codes).double().mean() > 0.95
        assert packed.scale.shape == solution.scale.shape


def test_two_units_at_once_are_refused() -> None:
    """A grid belongs to a group or to the whole weight; an override may leave the groups out."""
    with refused(None, ConfigError, field="group_size"):
        GPTQConfig(group_size=8, per_tensor=True)
    config = GPTQConfig(group_size=8, overrides={"head": {"per_tensor": True, "group_size": None}})
    assert config.resolve("head").spec.per_tensor


def test_scales_share_a_float16_before_codes_are_chosen() -> None:
    """Each scale is an integer of few bits times a float16, and codes are nearest to their targets on it."""
    weight = values(70, 9, 64)
    config = GPTQConfig(bits=6, group_size=16, symmetric=True, super_block=SuperBlock(columns=32))
    found = solve(weight, torch.eye(64), config)  # without feedback: targets are the weights
    pairs = found.scale.view(9, 2, 2)
    unit = (pairs.amax(-1, keepdim=True) / 63).half().float()
    steps = (pairs / unit).round()
    assert torch.equal(steps * unit, pairs)
    assert int(steps.amin()) >= 1
    assert bool((steps.amax(-1) == 63).all())
    spread = found.scale.repeat_interleave(16, 1)
    assert torch.equal(found.codes, (weight / spread).round().clamp(-32, 31).int())


def test_scales_beyond_a_super_block_are_refused() -> None:
    """A float16 times 63 holds up to 4 million."""
    config = GPTQConfig(group_size=16, symmetric=True, super_block=SuperBlock(columns=32))
    with pytest.raises(NumericsError, match=r"scales up to 4126752"):
        solve(torch.eye(32) * 1e9, torch.eye(32), config)


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_offsets_share_a_float16_before_codes_are_chosen(bits: int) -> None:
    """Both levels are fixed first, ranges keep their middles, and codes are nearest to their targets."""
    weight = values(72, 9, 64) + 0.2
    config = reference.paper(bits=bits, group_size=16, super_block=SuperBlock(columns=32, offset_bits=6))
    found, most = solve(weight, torch.eye(64), config), 2**bits - 1  # without feedback: targets are weights
    assert found.offset is not None
    for values_of_groups in (found.scale, found.offset):
        pairs = values_of_groups.view(9, 2, 2)
        unit = (pairs.amax(-1, keepdim=True) / 63).half().float()
        assert torch.equal((pairs / unit).round() * unit, pairs)
    assert int(found.offset.count_nonzero()) > 30
    scale, offset = (each.repeat_interleave(16, 1) for each in (found.scale, found.offset))
    codes = ((weight + offset) / scale).round().clamp(0, most)
    assert torch.equal(found.codes, codes.int())
    assert torch.equal(found.dequantize(), codes * scale - offset)
    groups = weight.view(9, 4, 16)
    middle = (groups.amin(-1).clamp(max=0) + groups.amax(-1).clamp(min=0)) / 2
    step = found.offset.view(9, 2, 2).amax(-1, keepdim=True).expand(9, 2, 2).reshape(9, 4) / 63
    # Half a step of the offsets, and the rounding of their float16 in the largest of them.
    assert bool(((found.scale * most / 2 - found.offset - middle).abs() <= step * (0.5 + 63 / 2048)).all())


def test_weights_that_share_a_sign_have_no_negative_offset() -> None:
    """The smallest value of a group is 0 or below it, also where all weights are above."""
    config = GPTQConfig(group_size=16, super_block=SuperBlock(columns=32, offset_bits=6))
    weight = torch.cat([values(73, 4, 32).abs() + 0.1, torch.zeros(1, 32), -values(73, 1, 32).abs()])
    found = solve(weight, torch.eye(32), config)
    assert found.offset is not None
    assert bool((found.offset >= 0).all())
    assert torch.equal(found.dequantize()[4], torch.zeros(32))
    half = found.scale.repeat_interleave(16, 1) / 2
    # A step of either level moves the ends of the range by less than a step of the codes.
    assert bool(((found.dequantize() - weight).abs() <= 3 * half).all())


def test_offsets_beyond_a_super_block_are_refused() -> None:
    """A float16 times 63 holds up to 4 million."""
    config = GPTQConfig(bits=8, group_size=16, super_block=SuperBlock(columns=32, offset_bits=6))
    with pytest.raises(NumericsError, match=r"offsets up to 4126752 in .* one with an offset of 1"):
        solve(torch.eye(32) * -1e7, torch.eye(32), config)


@pytest.mark.parametrize("size", [None, 48, 512])
def test_groups_divide_a_super_block(size: int | None) -> None:
    """Others have no place in one; unsigned codes need offsets, which signed ones have no place for."""
    with pytest.raises(ConfigError, match="a divisor of the 256 columns"):
        GPTQConfig(group_size=size, symmetric=True, super_block=SuperBlock())
    with pytest.raises(ConfigError, match="True with a super_block without offset_bits"):
        GPTQConfig(group_size=32, super_block=SuperBlock())
    with pytest.raises(ConfigError, match="False with a super_block with offset_bits"):
        GPTQConfig(group_size=32, symmetric=True, super_block=SuperBlock(offset_bits=6))


@pytest.mark.parametrize("shared", [SuperBlock(columns=32), SuperBlock(columns=32, offset_bits=6)], ids=str)
def test_what_scales_share_is_saved_and_reported(shared: SuperBlock, tmp_path: Path) -> None:
    """It is in the file, in the report, and in the format that profiles compare; values come back."""
    symmetric = not shared.has_offsets
    config = GPTQConfig(group_size=16, symmetric=symmetric, super_block=shared, show_progress=False)
    prepared = prepare(nn.Sequential(nn.Linear(32, 8)), config)
    prepared(values(71, 40, 32))
    done = convert(prepared)
    assert f"group 16, {shared}" in report(done).to_markdown()
    save_quantized(done, tmp_path / "m")
    layer = load_quantized(tmp_path / "m", nn.Sequential(nn.Linear(32, 8))).get_submodule("0")
    assert isinstance(layer, QuantizedLinear)
    assert layer.packed.grid_format().super_block == shared
    made = done.get_submodule("0")
    assert isinstance(made, QuantizedLinear)
    assert torch.equal(layer.dequantize(), made.dequantize())
