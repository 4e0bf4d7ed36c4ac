"""Two threads that calibrate one model at once are told so; nothing is lost without a word."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import AWQConfig, GPTQConfig, PTQConfig, SmoothQuantConfig, convert, prepare
from tico_config import BaseConfig, CalibrationError
from tico_quantizers.testing import ResidualBlock, same_tensors, seeded, tensors_of, values

CONFIGS = [
    GPTQConfig(show_progress=False),
    AWQConfig(group_size=None, show_progress=False),
    SmoothQuantConfig(),
    SmoothQuantConfig(alpha="auto"),
]


def blocks() -> nn.Module:
    """Return two blocks."""
    return nn.Sequential(ResidualBlock(), ResidualBlock())


@pytest.mark.parametrize("config", [*CONFIGS, PTQConfig(strict_wrap=False)], ids=lambda config: config.name)
def test_passes_at_once_are_refused(config: BaseConfig) -> None:
    """The second one is; the first counts, and so do those that come later, from any thread."""
    one, two = values(0, 4, 6, 8), values(1, 4, 6, 8) * 3
    expected = prepare(seeded(blocks), config, (one,))
    expected(one)
    expected(two)
    model, errors = prepare(seeded(blocks), config, (one,)), list[CalibrationError]()
    started, finish = threading.Event(), threading.Event()

    def wait(*call: object) -> None:
        started.set()
        assert finish.wait(5)

    handle = model.get_submodule("0").register_forward_hook(wait)

    def run(batch: Tensor) -> None:
        try:
            with torch.no_grad():
                model(batch)
        except CalibrationError as error:
            errors.append(error)

    first = threading.Thread(target=run, args=(one,))
    first.start()
    assert started.wait(5)
    run(two)
    finish.set()
    first.join()
    handle.remove()
    assert [error.field for error in errors] == ["thread"]
    later = threading.Thread(target=run, args=(two,))
    later.start()
    later.join()
    assert len(errors) == 1
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(expected)))
