"""Quantization points: passing, watching, frozen."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tico.quantization.config import (
    MXFP8,
    NVFP4,
    CalibrationError,
    DType,
    LifecycleError,
    QuantSpec,
    UnsupportedError,
    affine,
    no_quant,
)
from tico_config import FloatFormat, MSESpec, PerToken
from tico_observers import AffineParams, fake_quantize_blocks, params_per_token
from tico_observers.float_formats import tensor_scale_of
from tico_quantizers import ActivationGrid, Calibration, Edit
from tico_quantizers.testing import refused
from tico_wrapq import ACT_IN, Frozen, Mode, Passing, QuantLinear, QuantPoint, Watching
from tico_wrapq.base import Passage
from tiny_models import values

UINT8 = affine(DType.uint(8))
TOKENWISE = affine(DType.int(8), granularity=PerToken())


def _point(spec: QuantSpec = UINT8) -> QuantPoint:
    return QuantPoint("fc.act_in", ACT_IN, spec)


def _watching(*batches: torch.Tensor) -> QuantPoint:
    point = _point()
    point.watch()
    for batch in batches:
        point(batch)
    return point


def test_new_point_lets_pass() -> None:
    """The tensor itself comes out."""
    x = values(0, 3, 4)
    point = _point()
    assert point(x) is x
    assert point.state == Passing()


def test_watching_point_lets_pass_and_sees() -> None:
    """The tensor itself comes out, and its range determines the grid."""
    x = torch.tensor([-1.0, 0.5, 254.0])
    point = _watching()
    lacked = point.lacks_data
    assert point(x) is x
    assert isinstance(point.state, Watching)
    assert (lacked, point.lacks_data) == (True, False)
    grid = point.determine_grid()
    assert grid is not None
    assert (grid.scale.item(), grid.zero_point.item()) == (1.0, 1)


def test_frozen_point_moves_to_its_grid() -> None:
    """What comes out is on the grid, whatever the observer saw since."""
    point = _watching(torch.tensor([0.0, 255.0]))
    with Edit() as edit:
        point.fix(point.determine_grid(), edit)
    assert isinstance(point.state, Frozen)
    assert point(torch.tensor([0.4, 0.6, 300.0, -5.0])).tolist() == [0.0, 1.0, 255.0, 0.0]


def test_undone_fix_watches_on() -> None:
    """A conversion that fails leaves the point watching, with what it has seen."""
    point = _watching(torch.tensor([0.0, 255.0]))
    with pytest.raises(KeyError):
        _fix_and_fail(point)
    point(torch.tensor([510.0]))
    grid = point.determine_grid()
    assert grid is not None
    assert grid.scale.item() == 2.0


def _fix_and_fail(point: QuantPoint) -> None:
    with Edit() as edit:
        point.fix(point.determine_grid(), edit)
        raise KeyError


def test_unfinished_batches_do_not_count() -> None:
    """Only what was accepted determines the grid."""
    point, passage = _point(), Passage()
    point.watch(passage)
    point(torch.tensor([0.0, 255.0]))
    calibration = passage.calibration = Calibration(passage)
    calibration.begin([], (), {})
    point(torch.tensor([1e6]))
    calibration.drop_unfinished()
    calibration.end((), {}, None)
    grid = point.determine_grid()
    assert grid is not None
    assert grid.scale.item() == 1.0


def test_grid_of_no_data_is_refused() -> None:
    """A point that saw nothing says which one it is."""
    point = _watching()
    with refused(point, CalibrationError, module="fc.act_in"):
        point.determine_grid()


def test_float_point_never_watches() -> None:
    """no_quant() passes before and after."""
    point = _point(no_quant())
    point.watch()
    assert point.state == Passing()
    assert not point.lacks_data
    assert point.determine_grid() is None


def test_grid_per_token_needs_no_data() -> None:
    """Each vector along the last axis gets the grid of its own range."""
    point = _point(TOKENWISE)
    point.watch()
    assert point.state == Passing()
    with Edit() as edit:
        point.fix(point.determine_grid(), edit)
    x = torch.cat([values(0, 2, 4), 1000 * values(1, 2, 4)])
    params = params_per_token(x, DType.int(8), symmetric=True)
    expected = (x / params.scale[:, None]).round().clamp(-128, 127) * params.scale[:, None]
    assert torch.equal(point(x), expected)
    assert len(set(params.scale.tolist())) == 4


def test_a_block_format_needs_no_data() -> None:
    """A point in an MX format is dynamic: it watches nothing, and each block has the scale of its values."""
    point = _point(affine(MXFP8()))
    point.watch()
    assert isinstance(point.state, Passing)
    edit = Edit()
    with edit:
        point.fix(point.determine_grid(), edit)
    x = values(0, 2, 40)
    assert torch.equal(point(x), fake_quantize_blocks(x, MXFP8()))


def test_nvfp4_learns_the_scale_of_the_tensor() -> None:
    """It watches the range of all data; the scales of blocks are those of the values that come, under it."""
    point = _point(affine(NVFP4()))
    point.watch()
    seen = [values(0, 3, 40), 5 * values(1, 2, 40)]
    for x in seen:
        point(x)
    assert point.is_dynamic
    edit = Edit()
    with edit:
        point.fix(point.determine_grid(), edit)
    largest = torch.tensor([x.abs().amax().item() for x in seen])
    x = values(2, 2, 40)
    expected = fake_quantize_blocks(x, NVFP4(), tensor_scale=tensor_scale_of(largest))
    assert torch.equal(point(x), expected)
    assert torch.equal(point(x[:1]), expected[:1])
    assert not torch.equal(expected, fake_quantize_blocks(x, NVFP4()))


@pytest.mark.parametrize("dtype", [MXFP8(), NVFP4()])
def test_scales_of_blocks_of_activations_are_not_searched(dtype: FloatFormat) -> None:
    """They come from each block, by the standard's rule: an observer that searches is refused."""
    with refused(None, UnsupportedError, field="observer", module="fc.act_in"):
        _point(affine(dtype, observer=MSESpec()))


def test_unknown_point_is_refused() -> None:
    """The names that the wrapper has are listed."""
    wrapper = QuantLinear(nn.Linear(4, 2), "fc", lambda path: UINT8)
    with refused(wrapper, LifecycleError, field="point", module="fc") as error:
        wrapper.point("act_mid")
    assert "act_in, weight, act_out" in str(error.value)


def test_specs_come_from_full_paths() -> None:
    """A wrapper asks for each of its points by the path of the point."""
    asked: list[str] = []

    def resolve(path: str) -> QuantSpec:
        asked.append(path)
        return UINT8

    wrapper = QuantLinear(nn.Linear(4, 2), "model.fc", resolve)
    assert asked == ["model.fc.act_in", "model.fc.weight", "model.fc.act_out"]
    assert wrapper.mode is Mode.NO_QUANT
    assert [name for name, _ in wrapper.named_points()] == ["act_in", "act_out"]


def test_frozen_point_does_not_watch_again() -> None:
    """Going back would lose its grid; the error says what it has."""
    point = _watching(torch.tensor([0.0, 255.0]))
    with Edit() as edit:
        point.fix(point.determine_grid(), edit)
    with refused(point, LifecycleError, module="fc.act_in") as error:
        point.watch()
    assert "uint8 static" in str(error.value)


def test_grid_of_a_frozen_point_is_its_child() -> None:
    """State and child are the same grid: once fixed, in a copy, and where fixing was undone."""
    point = _watching(torch.tensor([0.0, 255.0]))
    with pytest.raises(KeyError):
        _fix_and_fail(point)
    assert (type(point.state), point.fixed) == (Watching, None)
    with Edit() as edit:
        point.fix(point.determine_grid(), edit)
    for each in (point, copy.deepcopy(point)):
        assert isinstance(each.state, Frozen)
        assert each.state.grid is each.fixed
    with Edit() as edit:
        point.fix(None, edit)
    assert (type(point.state), point.fixed) == (Passing, None)


def test_label_says_what_happens() -> None:
    """The spec while data are awaited, the grid once it is fixed."""
    point = _watching(torch.tensor([1.0]))
    assert point.label == "uint8 asymmetric"
    params = AffineParams(scale=torch.tensor(1.0), zero_point=torch.tensor(0), dtype=DType.uint(8))
    with Edit() as edit:
        point.fix(ActivationGrid.static(params), edit)
    assert point.label == "uint8 static"
