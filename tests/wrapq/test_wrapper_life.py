"""One module in a wrapper of its own: float, watched, quantized."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tico.quantization.config import (
    CalibrationError,
    ConfigError,
    DType,
    LifecycleError,
    PTQConfig,
    UnsupportedError,
    affine,
    no_quant,
)
from tico_quantizers import QuantizedLinear
from tico_quantizers.testing import TorchCalls, refused, same_tensors, tensors_of, unchanged
from tico_wrapq import Mode, PTQWrapper
from tiny_models import images, net, values


def _quantized(x: torch.Tensor) -> PTQWrapper:
    wrapper = PTQWrapper(nn.Linear(4, 2).eval())
    wrapper.enable_calibration()
    wrapper(x)
    wrapper.freeze_qparams()
    return wrapper


def test_life_of_a_wrapper() -> None:
    """Float, then float and watched, then integer."""
    layer, x = nn.Linear(4, 2).eval(), values(0, 8, 4)
    wrapper = PTQWrapper(layer)
    modes = [wrapper.mode]
    assert torch.equal(wrapper(x), layer(x))
    wrapper.enable_calibration()
    modes.append(wrapper.mode)
    assert torch.equal(wrapper(x), layer(x))
    wrapper.freeze_qparams()
    assert [*modes, wrapper.mode] == [Mode.NO_QUANT, Mode.CALIB, Mode.QUANT]
    assert isinstance(wrapper.wrapped, QuantizedLinear)
    assert 0 < (wrapper(x) - layer(x)).abs().max() < 0.1


def test_what_is_shown_before_calibration_does_not_count() -> None:
    """Only the passes after enable_calibration determine the grids."""
    wrapper, once = PTQWrapper(net()), PTQWrapper(net())
    wrapper(100 * images(0))
    for each in (wrapper, once):
        each.enable_calibration()
        each(images(0))
        each.freeze_qparams()
    assert same_tensors(tensors_of(wrapper), tensors_of(once))


def test_enabling_again_starts_over() -> None:
    """What was seen before is forgotten."""
    wrapper, once = PTQWrapper(net()), PTQWrapper(net())
    wrapper.enable_calibration()
    wrapper(100 * images(0))
    for each in (wrapper, once):
        each.enable_calibration()
        each(images(0))
        each.freeze_qparams()
    assert same_tensors(tensors_of(wrapper), tensors_of(once))


def test_pass_that_fails_does_not_count() -> None:
    """A batch counts for every point or for none."""
    wrapper, once = PTQWrapper(net()), PTQWrapper(net())
    for each in (wrapper, once):
        each.enable_calibration()
        each(images(0))
    with pytest.raises(RuntimeError, match="injected"), TorchCalls(40):
        wrapper(100 * images(1))
    for each in (wrapper, once):
        each(images(2))
        each.freeze_qparams()
    assert same_tensors(tensors_of(wrapper), tensors_of(once))


def test_freezing_without_calibration_is_refused() -> None:
    """The mode it is in and those it should be in are named."""
    wrapper = PTQWrapper(net())
    with refused(wrapper, LifecycleError, field="mode", module="PTQWrapper") as error:
        wrapper.freeze_qparams()
    assert "CALIB" in str(error.value)


def test_freezing_without_data_names_every_point() -> None:
    """Nothing is changed, and data can still be shown."""
    wrapper = PTQWrapper(net())
    wrapper.enable_calibration()
    with refused(wrapper, CalibrationError, module="conv.act_in") as error:
        wrapper.freeze_qparams()
    assert len(error.value.problems) == 10
    wrapper(images(0))
    wrapper.freeze_qparams()
    assert wrapper.mode is Mode.QUANT


@pytest.mark.parametrize("step", ["enable_calibration", "freeze_qparams"])
def test_quantized_wrapper_cannot_go_back(step: str) -> None:
    """What is integer is neither watched nor frozen again."""
    wrapper = _quantized(values(0, 8, 4))
    with refused(wrapper, LifecycleError, field="mode", module="PTQWrapper"):
        getattr(wrapper, step)()


def test_freezing_that_fails_can_be_repeated() -> None:
    """An exception in the middle leaves every wrapper in its place."""
    wrapper, once = PTQWrapper(net()), PTQWrapper(net())
    for each in (wrapper, once):
        each.enable_calibration()
        each(images(0))
    for call in (30, 200, 400):
        with unchanged(wrapper), pytest.raises(MemoryError), TorchCalls(call, MemoryError):
            wrapper.freeze_qparams()
    for each in (wrapper, once):
        each.freeze_qparams()
    assert same_tensors(tensors_of(wrapper), tensors_of(once))


def test_copy_is_calibrated_by_itself() -> None:
    """The points of a copy are its own."""
    wrapper = PTQWrapper(nn.Linear(4, 2).eval())
    wrapper.enable_calibration()
    wrapper(values(0, 8, 4))
    other = copy.deepcopy(wrapper)
    other(100 * values(0, 8, 4))
    for each in (wrapper, other):
        each.freeze_qparams()
    scales = [tensors_of(each)["wrapped.act_in.scale"].item() for each in (wrapper, other)]
    assert scales[1] == pytest.approx(100 * scales[0])


def test_config_of_a_wrapper_is_checked_like_a_models() -> None:
    """Unsupported modules and rules that match nothing are errors."""
    recurrent, linear = nn.LSTM(4, 4), nn.Linear(4, 2)
    with refused(recurrent, UnsupportedError, module="LSTM"):
        PTQWrapper(recurrent)
    with refused(linear, ConfigError, field="overrides"):
        PTQWrapper(linear, PTQConfig(overrides={"fc": no_quant()}))


def test_lone_module_has_points_with_short_paths() -> None:
    """A rule for a point of the root is the point's name."""
    config = PTQConfig(overrides={"act_in": affine(DType.int(16)), "act_out": no_quant()})
    wrapper = PTQWrapper(nn.Linear(4, 2).eval(), config)
    wrapper.enable_calibration()
    wrapper(values(0, 8, 4))
    wrapper.freeze_qparams()
    layer = wrapper.wrapped
    assert isinstance(layer, QuantizedLinear)
    assert layer.act_in is not None
    assert layer.act_in.dtype == DType.int(16)
    assert layer.act_out is None


@pytest.mark.parametrize("watched", [False, True])
def test_module_that_is_in_wrappers_is_refused(watched: bool) -> None:
    """The first `PTQWrapper` has changed it; once that one is quantized, another can follow."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), values(0, 8, 4)
    first = PTQWrapper(model)
    if watched:
        first.enable_calibration()
    with refused(model, LifecycleError, module="0", field="module"):
        PTQWrapper(model)
    first.enable_calibration()
    first(x)
    first.freeze_qparams()
    second = PTQWrapper(model)
    second.enable_calibration()
    second(x)
    second.freeze_qparams()
    assert isinstance(model[0], QuantizedLinear)
