"""What an algorithm leaves alone: the process, the user's hooks, attributes, gradients and modes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from tico_modules import named_modules
from tico_quantizers.testing._model_state import unchanged
from tico_quantizers.testing._promises.suite import PromiseSuite

_RUNS = "runs"
"""The attribute that keeps what was done to a module; only modules that were changed have it."""


class SurroundingsPromises(PromiseSuite):
    """The promises about everything around the weights."""

    def test_nothing_global_changes(self) -> None:
        """Settings of torch, random numbers and filters of warnings are as they were before."""
        with unchanged():
            self.quantized()

    def test_hooks_are_called_as_often_as_the_model(self) -> None:
        """The user's hooks run once for each forward pass of the user's, in order, and survive conversion."""
        calls: list[str] = []
        model = self.model()
        for path in ("", *self.layer_paths()):
            module = model.get_submodule(path)
            module.register_forward_pre_hook(partial(_note, calls, f"before {path}"))
            module.register_forward_hook(partial(_note, calls, f"after {path}"))
        batch = self.batches()[0]
        model(batch)
        once = list(calls)
        calls.clear()
        converted = self.quantized(model, [batch, batch])
        assert calls == 2 * once
        converted(batch)
        assert calls == 3 * once

    def test_nothing_is_left_on_float_modules(self) -> None:
        """After convert, modules that stay have the attributes and hooks that they had."""
        model = self.model()
        before = {id(module): _Traces(module) for _, module in named_modules(model)}
        converted = self.quantized(model)
        stays = [(path, module) for path, module in named_modules(converted) if id(module) in before]
        left = [path for path, module in stays if not before[id(module)].cover(module)]
        assert left == []

    def test_gradients_and_modes_stay(self) -> None:
        """Parameters and modules that stay keep `requires_grad`, their gradients and their mode."""
        model, batch = self.model(), self.batches()[0]
        model(batch).sum().backward()
        parameters = dict(model.named_parameters())
        for index, parameter in enumerate(parameters.values()):
            parameter.requires_grad_(index % 2 == 0)
        next(module for module in model.modules() if isinstance(module, nn.ReLU)).train()
        modes = {path: module.training for path, module in named_modules(model)}
        before = {name: (each.requires_grad, _copy(each.grad)) for name, each in parameters.items()}
        converted = self.quantized(model, [batch])
        for name, parameter in converted.named_parameters():
            if name in before:
                assert parameter.requires_grad == before[name][0], name
                assert _same(parameter.grad, before[name][1]) or parameter is not parameters[name], name
        found = {path: module.training for path, module in named_modules(converted) if path in modes}
        assert found == {path: modes[path] for path in found}

    def test_result_takes_part_in_gradients(self) -> None:
        """A model converted within `torch.inference_mode` can be differentiated by its input."""
        model, batch = self.model(), self.batches()[0]
        with torch.inference_mode():
            converted = self.quantized(model, [batch])
        x = batch.clone().requires_grad_()
        converted(x).sum().backward()
        assert x.grad is not None
        assert [buffer for buffer in converted.buffers() if buffer.is_inference()] == []


class _Traces:
    """The attributes, hooks and parameters of a module."""

    def __init__(self, module: nn.Module) -> None:
        self._names = set(vars(module))
        self._hooks = self._hooks_of(module)
        self._tensors = {name: tensor.detach().clone() for name, tensor in _own(module).items()}

    def cover(self, module: nn.Module) -> bool:
        """Tell whether the module has no more than it had."""
        own = _own(module)
        changed = any(not torch.equal(own[name], self._tensors[name]) for name in own)
        added = set(vars(module)) - self._names - ({_RUNS} if changed else set())
        return not added and self._hooks_of(module) == self._hooks

    @staticmethod
    def _hooks_of(module: nn.Module) -> list[int]:
        return [id(hook) for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())]


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False))


def _note(calls: list[str], name: str, module: nn.Module, *rest: object) -> None:
    calls.append(name)


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)
