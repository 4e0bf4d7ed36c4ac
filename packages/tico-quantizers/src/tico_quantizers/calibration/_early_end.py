"""Forward passes that end as soon as there is nothing more to learn from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Protocol

import attrs
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tico_modules import Edit
from tico_quantizers.calibration._block_calls import BlockCalls, NothingMore
from tico_quantizers.calibration._call_template import CallTemplate
from tico_quantizers.calibration._calls import map_leaves
from tico_quantizers.calibration._control_flow import ValuesRead
from tico_quantizers.calibration._forward_watch import Calibration, Recorder
from tico_quantizers.calibration._hooks import after_call, before_call, is_observing
from tico_quantizers.calibration._passes import Passes


class _Callable(Protocol):
    def __call__(self, *args: object, **kwargs: object) -> object: ...


@attrs.frozen(eq=False)
class _WholePass:
    """What a pass that ran to its end has captured, and read of the values of tensors outside of blocks."""

    captured: tuple[int, ...]
    values: tuple[object, ...]
    template: CallTemplate | None


class EarlyEnd(Recorder):
    """Ends a pass once nothing more is to be captured, as an earlier pass of the same kind has shown.

    Two passes are of the same kind if their arguments differ only in the values of tensors, and if the code
    outside of the blocks has read the same values in both. The later one then calls the same modules, so it
    can end with the last module that is captured. If these modules are the blocks, each called once, and
    their calls follow from that of the first, it ends with the first. Passes within the model's `generate`,
    which needs what they return, run to their ends.
    """

    def __init__(self, calls: BlockCalls, passes: Passes, *, is_off: bool = False) -> None:
        self.is_off = is_off
        self._calls = calls
        self._passes = passes
        self._read = ValuesRead(self._is_inside)
        self._whole: dict[tuple[object, ...], _WholePass] = {}
        self._captured: list[int] = []
        self._is_ended = False

    def _is_inside(self) -> bool:
        """Whether code in a block, or of an algorithm's hook, is running."""
        return self._calls.is_running or is_observing()

    def drop_unfinished(self) -> None:
        """Start to count anew."""
        self._captured = []
        self._is_ended = False

    def accept(self) -> None:
        """Remember the pass that has ended, if it ran to its end, and start to count anew."""
        form = self._passes.form
        if form is not None and self._captured and not (self._is_ended or self.is_off):
            captured, values = tuple(self._captured), tuple(self._read.values)
            self._whole.setdefault(form, _WholePass(captured, values, self._calls.template))
        self.drop_unfinished()

    def tell(self) -> None:
        """Return nothing: what passes are like matters while they are made."""

    def watch(
        self, modules: Sequence[nn.Module], calibration: Calibration, *, counts: Callable[[], bool]
    ) -> list[RemovableHandle]:
        """Count the calls of `modules` within a pass of the model, as far as `counts` says so."""
        handles = []
        for module in modules:
            count = partial(self._count, calibration, counts, id(module))
            handles += [before_call(module, count, calibration), after_call(module, self._tell, calibration)]
        return handles

    def _tell(self, args: object, kwargs: object, output: object) -> None:
        """Note what is given to code outside that is no tensor: it may decide what is called next."""
        if self.is_off:
            return
        map_leaves(output, lambda leaf: None if isinstance(leaf, Tensor) else self._read.told(leaf))

    def _count(
        self,
        calibration: Calibration,
        counts: Callable[[], bool],
        identity: int,
        args: object,
        kwargs: object,
    ) -> None:
        """Note that something was captured, and end the pass if it was the last.

        Raises:
            Exception: of a kind that the model's `forward` catches.
        """
        if calibration.in_forward and not self.is_off and counts():
            self._captured.append(identity)
            if self._nothing_is_to_come():
                self._is_ended = True
                raise NothingMore

    def _nothing_is_to_come(self) -> bool:
        """Whether a pass like this one has captured no more; the calls that follow are then noted."""
        whole = None if self._passes.form is None else self._whole.get(self._passes.form)
        if whole is None or whole.values != tuple(self._read.values):
            return False
        alike = len(whole.captured) == len(self._calls.blocks) and self._captured == [whole.captured[0]]
        if alike and whole.template is not None and self._calls.rest_is_known(whole.template):
            self._calls.complete(whole.template)
            return True
        return whole.captured == tuple(self._captured)

    def watching(self) -> AbstractContextManager[object]:
        """Return the context that a pass is to be run in."""
        return nullcontext() if self.is_off else self._read.watching()

    @contextmanager
    def on(self, root: nn.Module) -> Iterator[None]:
        """Let passes of `root` end early while the context lasts."""
        if not self.is_off:
            yield
            return
        self.is_off = False
        try:
            with Edit() as edit:
                self.install(root, edit)
                self.uninstall(root, edit)
                yield
        finally:
            self.is_off = True

    def install(self, root: nn.Module, edit: Edit) -> None:
        """Let the `forward` of `root` end early, and its `generate` not, until `uninstall`."""
        edit.set_attribute(root, "forward", _EndingForward(root.forward, self))
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
    def __init__(self, original: _Callable, end: EarlyEnd) -> None:
        self.original = original
        self.__signature__ = inspect.signature(original)
        self._end = end

    def __call__(self, *args: object, **kwargs: object) -> object:
        with suppress(NothingMore), self._end.watching():
            return self.original(*args, **kwargs)
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
