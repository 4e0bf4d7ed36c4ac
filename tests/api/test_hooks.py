"""The user's own hooks, before, during and after quantization."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico.quantization.config import BaseConfig, CalibrationError
from tico_quantizers.testing import refused, tensors_of, unchanged
from tiny_models import Net, images, net, values

every_config = pytest.mark.parametrize(
    "config", [PTQConfig(), GPTQConfig(show_progress=False)], ids=lambda config: config.name
)
PLACES = ("", "conv", "norm", "head", "head.0")


class _Log:
    """A hook of any kind that notes its name when it is called."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name, self._calls = name, calls

    def __call__(self, module: nn.Module, *rest: object) -> None:
        self._calls.append(self._name)


def _hooked(calls: list[str]) -> Net:
    model = net()
    for path in PLACES:
        module = model.get_submodule(path)
        module.register_forward_pre_hook(_Log(f"{path} first", calls))
        module.register_forward_pre_hook(_Log(f"{path} kwargs", calls), with_kwargs=True)
        module.register_forward_hook(_Log(f"{path} after", calls))
        module.register_forward_hook(_Log(f"{path} always", calls), always_call=True)
    return model


@every_config
def test_hooks_are_called_in_order_before_during_and_after(config: BaseConfig) -> None:
    """Every hook runs once a pass, where it ran in the float model."""
    calls: list[str] = []
    model = _hooked(calls)
    model(images(0))
    expected = list(calls)
    assert len(expected) == 4 * len(PLACES)
    calls.clear()
    prepare(model, config)
    model(images(0))
    assert calls == expected
    convert(model)
    calls.clear()
    model(images(0))
    assert calls == expected


@every_config
def test_handles_still_remove_their_hooks(config: BaseConfig) -> None:
    """A handle from before prepare works on the converted module."""
    calls: list[str] = []
    model = net()
    handles = [model.get_submodule(path).register_forward_hook(_Log(path, calls)) for path in PLACES]
    prepare(model, config)
    model(images(0))
    convert(model)
    for handle in handles:
        handle.remove()
    calls.clear()
    model(images(0))
    assert calls == []


@every_config
@pytest.mark.parametrize("path", PLACES)
def test_hooks_set_between_prepare_and_convert_survive(config: BaseConfig, path: str) -> None:
    """A hook that a prepared module was given is one of the converted module's."""
    calls: list[str] = []
    model = prepare(net(), config)
    handle = model.get_submodule(path).register_forward_hook(_Log("late", calls))
    model(images(0))
    convert(model)
    calls.clear()
    model(images(0))
    assert calls == ["late"]
    handle.remove()
    model(images(0))
    assert calls == ["late"]


def _tenfold(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
    return 10 * args[0]


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.ReLU()], ids=["linear", "relu"])
def test_grids_fit_what_hooks_make_of_the_input(layer: nn.Module) -> None:
    """A hook that scales the input scales what is calibrated, so that nothing is clipped."""
    model = nn.Sequential(nn.Linear(4, 4), layer).eval()
    model[1].register_forward_pre_hook(_tenfold)
    x = values(0, 16, 4)
    expected = model(x)
    prepared = prepare(model, PTQConfig())
    prepared(x)
    assert (convert(prepared)(x) - expected).abs().max() < expected.abs().max() / 50


@every_config
def test_hook_that_raises_costs_one_batch(config: BaseConfig) -> None:
    """The exception reaches the caller, the model goes on learning without that batch."""
    expected = prepare(net(), config)
    expected(images(0))
    model = prepare(net(), config)
    model(images(0))
    failing = model.get_submodule("head.0").register_forward_hook(_fail)
    with unchanged(model), pytest.raises(KeyError, match="mine"):
        model(images(1))
    failing.remove()
    found = tensors_of(convert(model))
    assert all(torch.equal(value, found[name]) for name, value in tensors_of(convert(expected)).items())


def _fail(module: nn.Module, args: object, output: object) -> None:
    raise KeyError("mine")


@every_config
def test_training_mode_is_refused_and_listed(config: BaseConfig) -> None:
    """Every module that behaves otherwise in training is named, and no statistic of batch norm moves."""
    model = prepare(net(), config)
    model.train()
    with refused(model, CalibrationError, field="training", module=_norm_path(model)) as error:
        model(images(0))
    assert [problem.module for problem in error.value.problems] == [_norm_path(model), "drop"]
    model.eval()
    model(images(0))
    convert(model)


def _norm_path(model: nn.Module) -> str:
    found = [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    return str(found[0])
