"""An exception in the middle of calibration or conversion changes nothing and costs one batch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico.quantization.config import BaseConfig
from tico_quantizers.testing import TorchCalls, calls_of, same_tensors, sampled, tensors_of, unchanged
from tiny_models import TOKENS, images, net, tiny_llama

ERRORS = (RuntimeError, KeyboardInterrupt, MemoryError)
CONFIGS = (PTQConfig(), GPTQConfig(show_progress=False))
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, Tensor, Tensor]]] = {
    "net": (net, (images(0), images(1), images(2))),
    "llama": (tiny_llama, (TOKENS, TOKENS.flip(1), TOKENS.flip(0))),
}

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
every_model = pytest.mark.parametrize("name", MODELS)
in_place_and_not = pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "copy"])


def _calibrated(name: str, config: BaseConfig, batches: tuple[int, ...]) -> nn.Module:
    make, data = MODELS[name]
    model = prepare(make(), config)
    for batch in batches:
        model(data[batch])
    return model


def _fails(action: Callable[[], object], call: int, error: type[BaseException]) -> None:
    with pytest.raises(error, match="injected"), TorchCalls(call, error):
        action()


@every_config
@every_model
@in_place_and_not
def test_failed_convert_changes_nothing_and_can_be_repeated(
    name: str, config: BaseConfig, inplace: bool
) -> None:
    """Wherever convert fails, the prepared model is as it was, and converting it then gives the same bits."""
    expected = tensors_of(convert(_calibrated(name, config, (0, 1))))
    count = calls_of(lambda: convert(_calibrated(name, config, (0, 1)), inplace=inplace))
    count -= calls_of(lambda: _calibrated(name, config, (0, 1)))
    model = _calibrated(name, config, (0, 1))
    for index, call in enumerate(sampled(count, 30)):
        with unchanged(model):
            _fails(lambda: convert(model, inplace=inplace), call, ERRORS[index % len(ERRORS)])
    assert same_tensors(tensors_of(convert(model, inplace=inplace)), expected)


@every_config
@every_model
def test_model_goes_on_learning_after_a_failed_convert(name: str, config: BaseConfig) -> None:
    """Data shown after a conversion that failed count like those before it."""
    expected = tensors_of(convert(_calibrated(name, config, (0, 1))))
    count = calls_of(functools.partial(convert, _calibrated(name, config, (0,))))
    model = _calibrated(name, config, (0,))
    for call in sampled(count, 5):
        _fails(lambda: convert(model), call, RuntimeError)
    model(MODELS[name][1][1])
    assert same_tensors(tensors_of(convert(model)), expected)


@every_config
@every_model
def test_failed_batch_does_not_count(name: str, config: BaseConfig) -> None:
    """Wherever a forward pass fails, the batches before and after it count, and it does not."""
    data = MODELS[name][1]
    expected = tensors_of(convert(_calibrated(name, config, (0, 2))))
    count = calls_of(lambda: _calibrated(name, config, (0,))(data[1]))
    count -= calls_of(lambda: _calibrated(name, config, (0,)))
    for index, call in enumerate(sampled(count, 16)):
        model = _calibrated(name, config, (0,))
        with unchanged(model):
            _fails(lambda: model(data[1]), call, ERRORS[index % len(ERRORS)])  # noqa: B023
        model(data[2])
        assert same_tensors(tensors_of(convert(model)), expected)


@every_config
@every_model
def test_pass_that_fails_last_does_not_count(name: str, config: BaseConfig) -> None:
    """A conversion right after a forward pass that failed uses the passes before it only."""
    data = MODELS[name][1]
    expected = tensors_of(convert(_calibrated(name, config, (0,))))
    for call in (20, 60):
        model = _calibrated(name, config, (0,))
        _fails(lambda: model(data[1]), call, RuntimeError)  # noqa: B023
        assert same_tensors(tensors_of(convert(model)), expected)


@every_config
@every_model
@in_place_and_not
def test_failed_prepare_changes_nothing_and_can_be_repeated(
    name: str, config: BaseConfig, inplace: bool
) -> None:
    """Wherever prepare fails, the model is as it was, and preparing it then works."""
    make, data = MODELS[name]
    count = calls_of(lambda: prepare(make(), config, inplace=inplace)) - calls_of(make)
    model = make()
    for index, call in enumerate(sampled(count, 12)):
        with unchanged(model):
            _fails(lambda: prepare(model, config, inplace=inplace), call, ERRORS[index % len(ERRORS)])
    prepared = prepare(model, config, inplace=inplace)
    prepared(data[0])
    expected = tensors_of(convert(_calibrated(name, config, (0,))))
    assert same_tensors(tensors_of(convert(prepared)), expected)


def test_faults_are_injected() -> None:
    """The instrument itself works: the call asked for raises, and no other."""
    x = torch.ones(2)
    assert calls_of(lambda: torch.add(torch.neg(x), 1)) == 2
    with pytest.raises(MemoryError, match="call 2"), TorchCalls(2, MemoryError):
        torch.add(torch.neg(x), 1)
