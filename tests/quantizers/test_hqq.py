"""HQQ: the solver is its definition, and a model is converted without data."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TypeAlias

import pytest
import torch
from torch import nn

from tico_config import UINT4, ConfigError, DType, HQQConfig, no_quant, profiles
from tico_modules import PackedWeight, QuantizedConv2d, QuantizedLinear, report
from tico_quantizers import HQQQuantizer, Registry, quantizer_entry
from tico_quantizers.lifecycle import convert, prepare
from tico_quantizers.solvers import Grid, half_quadratic
from tico_quantizers.testing import ConvNet, seeded, values

REGISTRY = Registry([quantizer_entry(HQQConfig, HQQQuantizer)])


Found: TypeAlias = tuple[float, float, int]


def defined(row: list[float], scale: float, zero: int, bits: int, p: float, steps: int) -> Found:
    """Return loss, scale and zero point of one group, as the docstring of the solver says."""
    unit, beta, highest = scale, 10.0, 2**bits - 1
    best: Found = math.inf, scale, zero
    for step in range(steps + 1):
        codes = [min(max(round(w / scale) + zero, 0), highest) for w in row]
        errors = [(w - (q - zero) * scale) / unit for w, q in zip(row, codes, strict=True)]
        loss = sum(abs(e) ** p for e in errors)
        if loss < best[0]:
            best = loss, scale, zero
        if step == steps:
            return best
        outliers = [math.copysign(max(abs(e) - abs(e) ** (p - 1) / beta, 0), e) if e else 0.0 for e in errors]
        targets = [w / unit - x for w, x in zip(row, outliers, strict=True)]
        line = slope_and_intercept(codes, targets)
        if line is not None and line[0]:
            zero = min(max(round(-line[1] / line[0]), 0), highest)
        pairs = [(q - zero, t) for q, t in zip(codes, targets, strict=True)]
        squares = sum(k * k for k, _ in pairs)
        fitted = unit * sum(k * t for k, t in pairs) / squares if squares else 0.0
        fitted = max(fitted, max(row) / (highest - zero + 0.5), min(row) / (-zero - 0.5))
        scale = fitted if fitted > 0 else scale
        beta *= 1.01
    raise AssertionError


def slope_and_intercept(codes: list[int], targets: list[float]) -> tuple[float, float] | None:
    """Return the line through the points (code, target) of the least squares; None if codes are one."""
    if len(set(codes)) == 1:
        return None
    middle = float(Fraction(sum(codes), len(codes)))
    mean = math.fsum(targets) / len(targets)
    pairs = [(q - middle, t - mean) for q, t in zip(codes, targets, strict=True)]
    slope = math.fsum(k * t for k, t in pairs) / sum(k * k for k, _ in pairs)
    return slope, mean - slope * middle


@pytest.mark.parametrize("p", [0.5, 0.7, 1.0])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_solver_is_its_definition(bits: int, p: float) -> None:
    """In pieces of many groups, the last of a row shorter, as for each group alone in Python's floats.

    Scales differ by the rounding of float32, about 2**-24 for each of the few sums that they follow from.
    With p = 1, grids that have as many weights above their codes as below can be equally good, so there the
    loss is compared alone.
    """
    weight = values(bits, 9, 150) * torch.where(values(7, 9, 150) > 2, 4.0, 1.0)
    grid = Grid(dtype=DType.uint(bits), symmetric=False, group_size=64)
    whole = grid.params(weight)
    found = half_quadratic(weight, grid, lp_norm=p, steps=6)
    for row, group in ((row, group) for row in range(9) for group in range(3)):
        start = float(whole.scale[row, group]), int(whole.zero_point[row, group])
        part = weight[row, 64 * group : 64 * (group + 1)].tolist()
        loss, scale, zero = defined(part, *start, bits, p, 6)
        assert float(found.loss[row, group]) == pytest.approx(loss, rel=1e-5)
        assert int(found.params.zero_point[row, group]) == zero
        assert p == 1 or float(found.params.scale[row, group]) == pytest.approx(scale, rel=1e-5)
    assert float(found.loss.sum() / found.rounded_loss.sum()) < 0.99


def test_the_farthest_weight_stays_within_half_a_step() -> None:
    """Of weights on a fine grid and one beyond it, the many come nearer; the one bounds the scale."""
    fine = torch.tensor([[float(step % 4) for step in range(63)] + [3.7]])
    grid = Grid(dtype=DType.uint(2), symmetric=False, group_size=None)
    found = half_quadratic(fine, grid, lp_norm=0.7, steps=20)
    assert found.params.scale.item() == pytest.approx(3.7 / 3.5)
    assert float(found.loss) < float(found.rounded_loss)


def test_no_data_are_needed() -> None:
    """Linear layers and convolutions become integers, each with its line; the norm stays."""
    model = seeded(ConvNet)
    x = values(0, 6, 2, 4, 4)
    expected = model(x).detach()
    config = HQQConfig(overrides={"head": {"bits": 8, "group_size": 16}}, show_progress=False)
    converted = convert(prepare(model, config, registry=REGISTRY))
    assert isinstance(converted.get_submodule("conv"), QuantizedConv2d)
    assert isinstance(converted.get_submodule("head"), QuantizedLinear)
    lines = {line.path: line for line in report(converted).layers}
    assert lines["head"].weight == "uint8 asymmetric group 16"
    assert lines["conv"].weight == "uint4 asymmetric per row"
    figures = dict(lines["conv"].figures)
    assert figures["loss"] < figures["loss if rounded to nearest"]
    assert lines["norm"].weight == "float"
    assert float((converted(x).detach() - expected).norm() / expected.norm()) < 4 / 15


def test_data_change_nothing() -> None:
    """Forward passes between prepare and convert are allowed."""
    one, other = (prepare(seeded(lambda: nn.Linear(8, 4)), HQQConfig(), registry=REGISTRY) for _ in "ab")
    other(values(1, 3, 8))
    packed = [convert(model).get_submodule("packed") for model in (one, other)]
    assert all(isinstance(each, PackedWeight) for each in packed)
    assert torch.equal(*(each.get_buffer("codes") for each in packed))


def test_symmetric_grids_keep_their_zero_points() -> None:
    """Only the scale is found."""
    weight = values(2, 5, 64)
    grid = Grid(dtype=DType.int(3), symmetric=True, group_size=16)
    found = half_quadratic(weight, grid, lp_norm=0.7, steps=20)
    assert not found.params.zero_point.any()
    assert float(found.loss.sum()) < float(found.rounded_loss.sum())


def test_groups_that_do_not_fit_are_refused() -> None:
    """By path, with what does; ragged groups are taken."""
    model = seeded(lambda: nn.Sequential(nn.Linear(12, 4)))
    with pytest.raises(ConfigError, match="group_size=8 does not divide its 12 input columns") as caught:
        prepare(model, HQQConfig(group_size=8), registry=REGISTRY)
    assert caught.value.problems[0].module == "0"
    config = HQQConfig(group_size=8, ragged_groups=True, show_progress=False)
    packed = convert(prepare(model, config, registry=REGISTRY)).get_submodule("0.packed")
    assert isinstance(packed, PackedWeight)
    assert (packed.dtype, packed.scale.shape) == (UINT4, (4, 2))


def test_a_target_is_checked_before_anything_changes() -> None:
    """What a runtime does not take is refused by prepare; configs that it gives are taken."""
    model = seeded(lambda: nn.Sequential(nn.Linear(128, 8), nn.Linear(8, 8)))
    overrides = {"1": no_quant()}
    with pytest.raises(ConfigError, match=r"vLLM takes .* and the weight is uint3"):
        prepare(model, HQQConfig(bits=3, target=profiles.VLLM, overrides=overrides), registry=REGISTRY)
    config = profiles.LLAMA_CPP.config(HQQConfig, overrides=overrides, show_progress=False)
    converted = convert(prepare(model, config, registry=REGISTRY))
    assert isinstance(converted.get_submodule("0"), QuantizedLinear)


def test_numbers_out_of_range_are_refused_together() -> None:
    """All fields at once."""
    with pytest.raises(ConfigError) as caught:
        HQQConfig(bits=9, lp_norm=0.0, steps=-1, group_size=0)
    assert [problem.field for problem in caught.value.problems] == ["bits", "group_size", "lp_norm", "steps"]
