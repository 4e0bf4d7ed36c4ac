"""Which units of activations have a grid each, and that grids fit what comes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, coverage, prepare, report
from tico.quantization.config import (
    DType,
    MSESpec,
    NumericsError,
    PercentileSpec,
    QScheme,
    QuantSpec,
    UnsupportedError,
    affine,
    no_quant,
)
from tico_config import Granularity, PerChannel, PerGroup
from tico_observers import RangeStatistic, params_from_range
from tico_quantizers import QuantizedModule
from tico_quantizers.testing import refused
from tico_wrapq import Add, QuantPoint
from tiny_models import values

PER_CHANNEL = affine(DType.uint(8), QScheme.PER_CHANNEL_ASYMM)
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear": (lambda: nn.Linear(6, 6), (6,), -1),
    "tokens": (lambda: nn.Linear(6, 6), (3, 6), -1),
    "conv1d": (lambda: nn.Conv1d(6, 6, 1), (6, 5), -2),
    "conv2d": (lambda: nn.Conv2d(6, 6, 1), (6, 5, 4), -3),
    "conv3d": (lambda: nn.Conv3d(6, 6, 1), (6, 5, 4, 3), -4),
    "transposed": (lambda: nn.ConvTranspose2d(6, 6, 1), (6, 5, 4), -3),
    "layer norm": (lambda: nn.LayerNorm(6), (3, 6), -1),
    "group norm": (lambda: nn.GroupNorm(2, 6), (6, 5, 4), 1),
    "batch norm": (lambda: nn.BatchNorm2d(6), (6, 5, 4), 1),
    "instance norm": (lambda: nn.InstanceNorm2d(6), (6, 5, 4), -3),
    "pool": (lambda: nn.AvgPool2d(1), (6, 5, 4), -3),
    "prelu": (lambda: nn.PReLU(6), (6, 5, 4), 1),
}


def _prepared(kind: str, spec: QuantSpec = PER_CHANNEL) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(KINDS[kind][0]()).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((8 * weight).round() / 8)  # sums are exact, in whatever order
    return prepare(model, PTQConfig(activation=spec))


def _data(kind: str, rows: int = 8) -> Tensor:
    shape = KINDS[kind][1]
    scaled = values(0, rows, *shape) * torch.linspace(1, 9, rows).view(-1, *(1 for _ in shape))
    return (8 * scaled).round() / 8


@pytest.mark.parametrize("kind", KINDS)
def test_grids_per_channel_go_along_the_channels(kind: str) -> None:
    """Wherever a module has its channels, each of them has the grid of its own range."""
    model, x, axis = _prepared(kind), _data(kind), KINDS[kind][2]
    model(x)
    layer = convert(model)[0]
    grid = layer.act_in if isinstance(layer, QuantizedModule) else layer.get_submodule("act_in.fixed")
    seen = RangeStatistic(granularity=PerChannel(axis)).observe(x).extremes
    assert seen is not None
    expected = params_from_range(
        seen.minimum, seen.maximum, DType.uint(8), symmetric=False, granularity=PerChannel(axis)
    )
    assert expected.scale.shape == (6,)
    assert torch.equal(grid.scale, expected.scale)
    assert torch.equal(grid.zero_point, expected.zero_point)


@pytest.mark.parametrize("kind", KINDS)
def test_grids_do_not_depend_on_the_batch(kind: str) -> None:
    """Batches of another number of rows, or in another order, give what the rows give by themselves."""
    model, x = _prepared(kind), _data(kind)
    for batch in x.flip(0).split([3, 5]):
        model(batch)
    whole = _prepared(kind)
    whole(x)
    convert(model), convert(whole)
    for rows in (x[:1], x, torch.cat([x, x])):
        assert model(rows).shape == rows.shape
        assert torch.equal(model(rows), whole(rows))


@pytest.mark.parametrize("axis", [1, -3])
def test_the_axis_of_a_convolution_may_count_from_either_end(axis: int) -> None:
    """Both name the channels of a batch."""
    named = _prepared("conv2d", affine(DType.uint(8), granularity=PerChannel(axis)))
    left = _prepared("conv2d")
    for model in (named, left):
        model(_data("conv2d"))
        convert(model)
    assert torch.equal(named(_data("conv2d")), left(_data("conv2d")))


@pytest.mark.parametrize("granularity", [PerChannel(0), PerGroup(-1, 2), PerGroup(0, 4), PerChannel(-2)])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "layer norm"])
def test_grids_along_other_axes_are_refused(kind: str, granularity: Granularity) -> None:
    """With every point, before anything is changed, with what can be asked for."""
    model = nn.Sequential(KINDS[kind][0]()).eval()
    config = PTQConfig(activation=affine(DType.uint(8), granularity=granularity))
    with refused(model, UnsupportedError, module="0.act_in", field="granularity") as error:
        prepare(model, config)
    assert "0.act_out" in str(error.value)
    assert "PerTensor()" in str(error.value)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.GELU, nn.Sigmoid, nn.PReLU])
def test_modules_that_are_used_for_any_channels_ask_for_the_axis(kind: type[nn.Module]) -> None:
    """Their points do not guess, and take the axis that they are told."""
    model = nn.Sequential(nn.Conv1d(6, 6, 1), kind()).eval()
    with refused(model, UnsupportedError, module="1.act_in", field="granularity") as error:
        prepare(model, PTQConfig(activation=PER_CHANNEL))
    assert "PerChannel(axis)" in str(error.value)
    told = {"1.*": affine(DType.uint(8), granularity=PerChannel(1))}
    prepared = prepare(model, PTQConfig(activation=PER_CHANNEL, overrides=told))
    prepared(_data("conv1d"))
    convert(prepared)
    assert prepared(_data("conv1d", 2)).shape == (2, 6, 5)


def test_other_channels_than_those_of_the_grid_are_refused() -> None:
    """A frozen grid is never broadcast over what it was not made for."""
    told = affine(DType.uint(8), granularity=PerChannel(1))
    model = prepare(nn.Sequential(nn.ReLU()).eval(), PTQConfig(activation=told))
    model(values(0, 4, 6))
    convert(model)
    for shape in ((4, 1), (4, 7), (4, 7, 6), (6,)):
        with pytest.raises(NumericsError, match=r"scales of shape \(6,\)"):
            model(torch.zeros(shape))


class Masked(nn.Module):
    """Two sums of scores and a mask."""

    def __init__(self, stand_in: float) -> None:
        super().__init__()
        self.first, self.second = Add(), Add()
        self.stand_in = stand_in

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores, masked twice."""
        mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), self.stand_in)
        masked: Tensor = self.second(self.first(x, mask), mask)
        return masked


POINTS = ("first.right", "first.act_out", "second.left", "second.right", "second.act_out")


@pytest.mark.parametrize("observer", [None, PercentileSpec(), MSESpec(10)], ids=str)
@pytest.mark.parametrize("stand_in", [-1e30, -1.5e38])
def test_masks_in_the_range_of_points_are_refused(
    stand_in: float, observer: PercentileSpec | MSESpec | None
) -> None:
    """All of them at once, by path; the model watches on, and can be prepared without these points."""
    config = PTQConfig(activation=affine(DType.uint(8), observer=observer))
    model = prepare(Masked(stand_in).eval(), config)
    model(values(0, 4, 4))
    with refused(model, NumericsError, module=POINTS[0], field="range") as error:
        convert(model)
    assert [problem.module for problem in error.value.problems] == list(POINTS)
    kept = PTQConfig(overrides={path: no_quant() for path in POINTS})
    model = prepare(Masked(stand_in).eval(), kept)
    model(values(0, 4, 4))
    assert [line.path for line in coverage(convert(model)).lines if line.points] == ["first"]


def test_masks_of_smaller_numbers_are_reported() -> None:
    """What may be a mask is named with its magnitude, and nothing else is."""
    model = prepare(Masked(-1e9).eval(), PTQConfig())
    model(values(0, 4, 4))
    lines = {line.path: dict(line.figures) for line in report(convert(model)).layers}
    assert lines["first"]["right largest magnitude"] == 1e9
    assert "left largest magnitude" not in lines["first"]


def test_points_know_their_units() -> None:
    """Before any data, and in the words of the config where these are enough."""
    model = _prepared("conv2d")
    points = [module for module in model.modules() if isinstance(module, QuantPoint)]
    assert [point.granularity for point in points] == [PerChannel(-3)] * 2
