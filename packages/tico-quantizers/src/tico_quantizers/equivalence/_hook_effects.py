"""Whether the user's hooks change what goes through a model, so that they are a part of its function."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn
from torch.utils.hooks import RemovableHandle

from tico_modules import Edit, named_modules
from tico_quantizers.calibration import (
    Calibration,
    Recorder,
    after_call,
    before_call,
    has_foreign_hooks,
    revision,
    tensor_leaves,
)


class HookEffects(Recorder):
    """Whether there `are_some`: hooks that replace tensors or write to them, in the passes of the user."""

    def __init__(self) -> None:
        self.are_some = False
        self._seen: dict[str, list[tuple[int, int]]] = {}

    def watch(self, model: nn.Module, calibration: Calibration) -> list[RemovableHandle]:
        """Set hooks in front of the user's and behind them, while `calibration` watches."""
        handles = []
        for path, module in named_modules(model):
            if has_foreign_hooks(module, below=False):
                begin, end = partial(self._begin, path), partial(self._end, path)
                handles += [
                    before_call(module, begin, calibration, first=True),
                    before_call(module, end, calibration),
                ]
                handles += [
                    after_call(module, begin, calibration, first=True),
                    after_call(module, end, calibration),
                ]
        return handles

    def drop_unfinished(self) -> None:
        """Keep what was seen: hooks that have changed tensors once may do so again."""

    def accept(self) -> None:
        """Keep what was seen."""

    def tell(self) -> bool:
        """Return whether there are some."""
        return self.are_some

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Have seen what any rank has."""
        edit.set_attribute(self, "are_some", any(told))

    def _begin(self, path: str, *call: object) -> None:
        self._seen[path] = _marks(call[-1] if len(call) == 3 else call)

    def _end(self, path: str, *call: object) -> None:
        if self._seen.pop(path, []) != _marks(call[-1] if len(call) == 3 else call):
            self.are_some = True


def _marks(tree: object) -> list[tuple[int, int]]:
    """Return which tensors `tree` holds, and a number each that changes when something writes to it."""
    return [(id(tensor), revision(tensor)) for tensor in tensor_leaves(tree)]
