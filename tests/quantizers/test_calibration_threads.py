"""Two threads that calibrate one model at once are told so; nothing is lost without a word."""

from __future__ import annotations

import threading

import pytest
from torch import Tensor, nn

from tico.quantization import AWQConfig, GPTQConfig, SmoothQuantConfig, convert, prepare
from tico_config import BaseConfig, LifecycleError
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


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_pass_that_another_one_interrupts_is_an_error(config: BaseConfig) -> None:
    """The first of them is; the other one counts, as do later ones, from any thread."""
    one, two = values(0, 4, 6, 8), values(1, 4, 6, 8) * 3
    expected = prepare(seeded(blocks), config)
    for batch in (two, one):
        expected(batch)
    model, errors = prepare(seeded(blocks), config), list[LifecycleError]()
    started, finish = threading.Event(), threading.Event()

    def wait(*call: object) -> None:
        if threading.current_thread() is first:
            started.set()
            assert finish.wait(5)

    def run(batch: Tensor) -> None:
        try:
            model(batch)
        except LifecycleError as error:
            errors.append(error)

    first = threading.Thread(target=run, args=(one,))
    handle = model.get_submodule("0").register_forward_hook(wait)
    first.start()
    assert started.wait(5)
    run(two)
    finish.set()
    first.join()
    handle.remove()
    assert len(errors) == 1
    later = threading.Thread(target=run, args=(one,))
    later.start()
    later.join()
    assert len(errors) == 1
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(expected)))
