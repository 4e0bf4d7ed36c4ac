"""Exceptions raised in the middle of other code: at a call of torch, or at the registration of a hook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import pytest
from torch import nn
from torch.overrides import TorchFunctionMode
from typing_extensions import Self


class TorchFunction(Protocol):
    """Any function or method of torch."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call it."""


class TorchCalls(TorchFunctionMode):
    """Counts the calls of torch made inside; the call number `fails_at`, counted from 1, raises `error`.

    Calls that only switch a mode are left out: torch itself could not switch it back.
    """

    def __init__(self, fails_at: int = 0, error: type[BaseException] = RuntimeError) -> None:
        """Start to count at 0; with `fails_at` 0 no call raises."""
        super().__init__()
        self.count = 0
        self._fails_at = fails_at
        self._error = error

    def __torch_function__(
        self,
        func: TorchFunction,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Count the call, then make it or raise."""
        if not getattr(func, "__name__", "").startswith("_set_"):
            self.count += 1
            if self.count == self._fails_at:
                raise self._error(f"injected at call {self.count}")
        return func(*args, **(kwargs or {}))


def calls_of(action: Callable[[], object]) -> int:
    """Return how many calls of torch `action` makes."""
    calls = TorchCalls()
    with calls:
        action()
    return calls.count


def sampled(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` call numbers from 1 to `count`: the first, the last, and evenly between."""
    if count <= wanted:
        return list(range(1, count + 1))
    return sorted({1 + index * (count - 1) // (wanted - 1) for index in range(wanted)})


class HookRegistrations:
    """Counts the forward hooks that are registered inside; the one number `fails_at`, from 1, raises `error`.

    >>> with HookRegistrations() as registrations:
    ...     handle = nn.ReLU().register_forward_hook(print)
    >>> registrations.count
    1
    """

    def __init__(self, fails_at: int = 0, error: type[BaseException] = RuntimeError) -> None:
        self.count = 0
        self._fails_at = fails_at
        self._error = error
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        """Start to count at 0."""
        self.count = 0
        for name in ("register_forward_hook", "register_forward_pre_hook"):
            self._patch.setattr(nn.Module, name, self._counted(getattr(nn.Module, name)))
        return self

    def __exit__(self, *raised: object) -> None:
        """Count no more."""
        self._patch.undo()

    def _counted(self, register: TorchFunction) -> TorchFunction:
        def counted(*args: object, **kwargs: object) -> object:
            self.count += 1
            if self.count == self._fails_at:
                raise self._error(f"injected at hook {self.count}")
            return register(*args, **kwargs)

        return counted
