"""The complete state of a model, and exceptions in the middle of a change to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")


def bits_of(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """Return everything that `tensor` holds."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tensor.shape, bytes(flat.tolist())


def tensors_of(model: nn.Module) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    """Return the bits of every parameter and buffer by its path."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: bits_of(tensor) for name, tensor in named}


def state_of(model: nn.Module) -> dict[str, object]:
    """Return which object stands where, with which attributes, hooks, mode and bits."""
    modules = dict(model.named_modules(remove_duplicate=False))
    parts: dict[str, object] = {path: _own_state(module) for path, module in modules.items()}
    return parts | {f"{name} bits": bits for name, bits in tensors_of(model).items()}


def _own_state(module: nn.Module) -> tuple[object, ...]:
    hooks = [tuple(map(id, getattr(module, name).values())) for name in _HOOKS]
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    tensors = [(name, id(tensor), tensor.requires_grad) for name, tensor in own]
    return id(module), module.training, tuple(vars(module)), hooks, tensors


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Refuse, with an AssertionError, a block that changes anything about `model`."""
    before = state_of(model)
    yield
    after = state_of(model)
    changed = [path for path in before | after if before.get(path) != after.get(path)]
    assert changed == [], changed


class _TorchFunction(Protocol):
    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call it."""


class InjectedError(Exception):
    """The exception that a `FailingCall` raises."""


class FailingCall(TorchFunctionMode):
    """Counts the calls of torch made inside; the one numbered `fails_at`, from 1, raises; none with 0.

    Calls that only switch a mode are left out: torch itself could not switch it back.
    """

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__()
        self.count = 0
        self._fails_at = fails_at

    def __torch_function__(
        self,
        func: _TorchFunction,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Make the call, or raise."""
        if not getattr(func, "__name__", "").startswith("_set_"):
            self.count += 1
            if self.count == self._fails_at:
                raise InjectedError(f"at call {self.count}")
        return func(*args, **(kwargs or {}))


def failing_calls(action: Callable[[], object], wanted: int) -> list[FailingCall]:
    """Return up to `wanted` faults, spread evenly over the calls of torch that `action` makes."""
    counted = FailingCall()
    with counted:
        action()
    steps = min(wanted, counted.count)
    return [FailingCall(1 + index * (counted.count - 1) // max(steps - 1, 1)) for index in range(steps)]
