"""Exceptions raised in the middle of other code, at any call of torch that it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch.overrides import TorchFunctionMode


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
