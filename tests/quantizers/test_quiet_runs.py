"""Algorithms run modules more often than their user; he does not notice, and a fault changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import AWQConfig, GPTQConfig, SmoothQuantConfig, convert, prepare
from tico_config import CalibrationError, ConfigError, ModuleConfig
from tico_quantizers import protocol
from tico_quantizers.calibration import after_call, quiet_runs
from tico_quantizers.testing import (
    HookRegistrations,
    ResidualBlock,
    refused,
    same_tensors,
    sampled,
    seeded,
    state_of,
    tensors_of,
    unchanged,
    values,
)

CONFIGS = [
    GPTQConfig(show_progress=False),
    GPTQConfig(show_progress=False, true_sequential=True),
    GPTQConfig(show_progress=False, asymmetric=0.5, token_weights="uniform"),
    AWQConfig(group_size=None, show_progress=False),
    SmoothQuantConfig(),
    SmoothQuantConfig(alpha="auto"),
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
pairs = pytest.mark.parametrize("config", CONFIGS[3:], ids=lambda config: config.name)


class Counting(ResidualBlock):
    """A block that counts its calls in every way."""

    calls: Tensor
    last: Tensor

    def __init__(self) -> None:
        """Make the counters."""
        super().__init__()
        self.number = 0
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state."""
        self.calls += 1
        self.last = x.detach().mean()
        self.number += 1
        self.seen_width = x.shape[-1]
        return super().forward(x)


def blocks() -> nn.Module:
    """Return two such blocks."""
    return seeded(lambda: nn.Sequential(Counting(), Counting()))


def counters(model: nn.Module) -> list[tuple[int, int, float]]:
    """Return what the blocks have counted."""
    found = [module for module in model.modules() if isinstance(module, Counting)]
    return [(int(block.calls), block.number, float(block.last)) for block in found]


def batches() -> list[Tensor]:
    """Return three batches."""
    return [values(seed, 2, 20, 8) for seed in range(3)]


@every_config
@pytest.mark.parametrize("with_example", [True, False])
def test_buffers_and_attributes_advance_once_a_call(config: ModuleConfig, with_example: bool) -> None:
    """Neither an example, nor the search for pairs, nor a conversion is a call of the user's."""
    float_model, model = blocks(), blocks()
    prepared = prepare(model, config, (batches()[0],) if with_example else None)
    for batch in batches():
        float_model(batch)
        prepared(batch)
    assert counters(convert(prepared)) == counters(float_model)


@every_config
def test_a_fault_in_the_last_step_undoes_all(config: ModuleConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that could not be told of its conversion is not converted, and not smoothed twice."""

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    model, other = (prepare(blocks(), config) for _ in range(2))
    for batch in batches():
        model(batch)
        other(batch)
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "remember", fail)
        with unchanged(model), pytest.raises(KeyboardInterrupt):
            convert(model)
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(other)))


@every_config
def test_a_conversion_that_fails_to_set_a_hook_changes_nothing(config: ModuleConfig) -> None:
    """Whichever hook on a block cannot be set, the others are gone, and so are the changes."""
    model = prepare(blocks(), config)
    for batch in batches():
        model(batch)
    with HookRegistrations() as registrations:
        other = convert(model, inplace=False)
    for number in sampled(registrations.count, 12):
        with unchanged(model), pytest.raises(KeyboardInterrupt), HookRegistrations(number, KeyboardInterrupt):
            convert(model)
    assert same_tensors(tensors_of(convert(model)), tensors_of(other))


@every_config
def test_a_layer_that_was_replaced_since_is_refused(config: ModuleConfig) -> None:
    """What was learned is about another one."""
    model = prepare(blocks(), config)
    for batch in batches():
        model(batch)
    model.get_submodule("1").first = nn.Linear(8, 16)
    with refused(model, CalibrationError, field="module", module="1.first"):
        convert(model)


@pairs
def test_hooks_of_pairs_are_set_together_or_not_at_all(config: ModuleConfig) -> None:
    """Where a hook cannot be set in the first pass, none is, and the next pass finds the pairs."""
    other = prepare(blocks(), config)
    with HookRegistrations() as registrations:
        other(batches()[0])
    for number in range(1, registrations.count + 1):
        model = prepare(blocks(), config)
        before = {path: state.hooks for path, state in state_of(model).items()}
        with pytest.raises(KeyboardInterrupt), HookRegistrations(number, KeyboardInterrupt):
            model(batches()[0])
        assert {path: state.hooks for path, state in state_of(model).items()} == before
    model(batches()[0])
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(other)))


def _replace(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return output + 1


def _write(module: nn.Module, args: object, output: Tensor) -> None:
    output.add_(1)


@pairs
@pytest.mark.parametrize("hook", [_replace, _write])
@pytest.mark.parametrize("with_example", [True, False])
def test_pairs_do_not_reach_across_hooks_that_change_something(
    config: ModuleConfig,
    hook: Callable[[nn.Module, object, Tensor], object],
    with_example: bool,
) -> None:
    """Such hooks are a part of the function that scales have to leave as it is."""
    x, model = batches()[0], blocks()
    model.get_submodule("0.norm").register_forward_hook(hook)
    with torch.no_grad():
        prepared = prepare(model, config, (x,) if with_example else None)
        prepared(x)
    with refused(prepared, ConfigError, field="model", module="0.norm"):
        convert(prepared)


def test_hooks_come_back_in_their_order() -> None:
    """Those that were removed for a while, before those that an algorithm has set meanwhile."""
    model, calls = nn.ReLU(), list[str]()
    watched = Watched(calls)

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda module, args, output: calls.append(name)

    first = model.register_forward_hook(note("first"))
    model.register_forward_hook(note("second"))
    with quiet_runs(model):
        model(torch.ones(1))
        after_call(model, watched.note, None)
    assert calls == []
    model(torch.ones(1))
    assert calls == ["first", "second", "third"]
    first.remove()
    model(torch.ones(1))
    assert calls[3:] == ["second", "third"]


class Watched:
    """What an algorithm that watches a module notes."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def note(self, args: object, kwargs: object, output: object) -> None:
        """Note a call."""
        self.calls.append("third")


class Capturing(ResidualBlock):
    """A block that sets a hook when it is first called, and marks that it has: as transformers' models do."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state, after a second look at the norm's."""
        if "is_set" not in vars(self):
            self.is_set, self.captured = True, list[Tensor]()
            self.norm.register_forward_hook(lambda module, args, output: self.captured.append(output))
        self.captured.clear()
        output = super().forward(x)
        (captured,) = self.captured
        return output + captured


@every_config
def test_model_may_set_hooks_when_it_is_first_called(config: ModuleConfig) -> None:
    """Its mark and the hooks go together: they are not set twice."""
    model, x = seeded(lambda: nn.Sequential(Capturing(), Capturing())), values(1, 2, 8)
    expected = model(x)
    model = seeded(lambda: nn.Sequential(Capturing(), Capturing()))
    prepared = prepare(model, config, args=(x,))
    assert torch.equal(prepared(x), expected)
    converted = convert(prepared)
    assert torch.allclose(converted(x), expected, atol=0.5)


def test_hooks_that_a_run_sets_are_gone_after_it() -> None:
    """With the marks, and also where the user's own hooks are called."""
    for with_hooks in (False, True):
        model = seeded(Capturing)
        with quiet_runs(model, with_hooks=with_hooks):
            model(values(1, 2, 8))
        assert not model.norm._forward_hooks
        assert "is_set" not in vars(model)
