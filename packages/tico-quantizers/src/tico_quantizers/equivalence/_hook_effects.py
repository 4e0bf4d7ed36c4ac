"""Whether the user's hooks change what goes through a model, which its pairs are then not found for."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.hooks import RemovableHandle

from tico_config import CalibrationError, Found, Problem
from tico_modules import named_modules
from tico_quantizers.calibration import (
    Calibration,
    after_call,
    before_call,
    has_foreign_hooks,
    revision,
    tensor_leaves,
)


class HookEffects:
    """Which modules have hooks of the user's that replace tensors or write to them, in his own passes."""

    def __init__(self) -> None:
        self.paths: dict[str, None] = {}
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

    def _begin(self, path: str, *call: object) -> None:
        self._seen[path] = _marks(call[-1] if len(call) == 3 else call)

    def _end(self, path: str, *call: object) -> None:
        if self._seen.pop(path, []) != _marks(call[-1] if len(call) == 3 else call):
            self.paths[path] = None

    def require_none(self) -> None:
        """Refuse pairs that were found without the user's hooks, where these change something.

        Raises:
            CalibrationError: with each module that has such hooks.
        """
        problems = [
            Problem(
                module=path or None,
                field="hooks",
                value=Found("hooks that change what goes through it"),
                expected="hooks that only look",
                sentence="it has hooks that change what goes through it, and pairs are found without them",
                remedy="remove them, or give the pairs by mappings",
            )
            for path in self.paths
        ]
        if problems:
            raise CalibrationError(*problems)


def _marks(tree: object) -> list[tuple[int, int]]:
    """Return which tensors `tree` holds, and a number each that changes when something writes to it."""
    return [(id(tensor), revision(tensor)) for tensor in tensor_leaves(tree)]
