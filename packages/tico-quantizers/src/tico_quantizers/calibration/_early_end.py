"""Forward passes that end as soon as there is nothing more to learn from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from torch import nn
from torch.utils.hooks import RemovableHandle

from tico_modules import Edit
from tico_quantizers.calibration._block_calls import BlockCalls, NothingMore
from tico_quantizers.calibration._forward_watch import Calibration, Recorder
from tico_quantizers.calibration._hooks import before_call


class _Callable(Protocol):
    def __call__(self, *args: object, **kwargs: object) -> object: ...


class EarlyEnd(Recorder):
    """Counts in the first pass how often something is captured, and ends later ones after as many times.

    Where that was nothing but a call of each block, and the calls follow from that of the first one, later
    passes end there. A pass that captures less often than the first runs to its end, and so do those of the
    model's `generate`, which goes on from what they return.
    """

    def __init__(self, calls: BlockCalls) -> None:
        self._calls = calls
        self._in_first: int | None = None
        self._in_this = 0
        self.is_off = False

    def drop_unfinished(self) -> None:
        """Start to count anew."""
        self._in_this = 0

    def accept(self) -> None:
        """Take the pass that has ended for the first, if it is, and start to count anew."""
        if self._in_first is None and self._in_this:
            self._in_first = self._in_this
        self._in_this = 0

    def watch(
        self, modules: Sequence[nn.Module], calibration: Calibration, *, counts: Callable[[], bool]
    ) -> list[RemovableHandle]:
        """Count the calls of `modules` within a pass of the model, as far as `counts` says so."""
        count = partial(self._count, calibration, counts)
        return [before_call(module, count, calibration) for module in modules]

    def _count(
        self, calibration: Calibration, counts: Callable[[], bool], args: object, kwargs: object
    ) -> None:
        """Note that something was captured, and end the pass if it was the last.

        Raises:
            Exception: of a kind that the model's `forward` catches.
        """
        if not (calibration.in_forward and counts()):
            return
        self._in_this += 1
        if self.is_off or self._in_first is None:
            return
        if self._in_first == len(self._calls.blocks) and self._calls.rest_is_known():
            self._calls.complete()
            raise NothingMore
        if self._in_this == self._in_first:
            raise NothingMore

    def install(self, root: nn.Module, edit: Edit) -> None:
        """Let the `forward` of `root` end early, and its `generate` not, until `uninstall`."""
        edit.set_attribute(root, "forward", _EndingForward(root.forward))
        generate: object = getattr(root, "generate", None)
        if callable(generate):
            edit.set_attribute(root, "generate", _WholePasses(generate, self))

    @staticmethod
    def uninstall(root: nn.Module, edit: Edit) -> None:
        """Give `root` back what it had, when `edit` is done."""
        for name in ("forward", "generate"):
            wrapper: object = vars(root).get(name)
            if isinstance(wrapper, _EndingForward | _WholePasses):
                edit.on_commit(_Restored(root, name, wrapper.original))


class _EndingForward:
    def __init__(self, original: _Callable) -> None:
        self.original = original
        self.__signature__ = inspect.signature(original)

    def __call__(self, *args: object, **kwargs: object) -> object:
        try:
            return self.original(*args, **kwargs)
        except NothingMore:
            return None


class _WholePasses:
    def __init__(self, original: _Callable, end: EarlyEnd) -> None:
        self.original = original
        self._end = end

    def __call__(self, *args: object, **kwargs: object) -> object:
        before, self._end.is_off = self._end.is_off, True
        try:
            return self.original(*args, **kwargs)
        finally:
            self._end.is_off = before


class _Restored:
    """Puts an attribute of a model back: what its class has needs none of its own."""

    def __init__(self, root: nn.Module, name: str, original: object) -> None:
        self._root, self._name, self._original = root, name, original

    def __call__(self) -> None:
        if getattr(self._original, "__self__", None) is self._root:
            del vars(self._root)[self._name]
        else:
            vars(self._root)[self._name] = self._original
