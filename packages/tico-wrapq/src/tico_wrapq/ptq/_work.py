"""The multiply-accumulates of modules, measured in the forward passes of a calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import final

from torch import nn

from tico_modules import Edit
from tico_quantizers import Calibration, Recorder
from tico_quantizers.calibration import after_call
from tico_wrapq.base import QuantModuleBase
from tico_wrapq.torch_nn import layer_work


@final
class Work(Recorder):
    """The multiply-accumulates of each module, by its path, over the passes that have ended well."""

    def __init__(self, calibration: Calibration) -> None:
        self.done: dict[str, int] = {}
        self._latest: dict[str, int] = {}
        self._calibration = calibration

    def measure(self, path: str, module: nn.Module) -> None:
        """Count what `module` does from now on; the hook is among the calibration's handles."""
        note = partial(self._note, path, module)
        self._calibration.handles.append(after_call(module, note, self._calibration))

    def _note(
        self,
        path: str,
        module: nn.Module,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        output: object,
    ) -> None:
        """Note a call until the forward pass ends; outside of a pass of the model it counts at once."""
        self._calibration.require_own_pass()
        if isinstance(module, QuantModuleBase):
            count = module.work(args, kwargs, output)
        else:
            x = args[0] if args else next(iter(kwargs.values()), None)
            count = layer_work(module, x, output)
        self.add(path, count)

    def add(self, path: str, count: int) -> None:
        """Note `count` multiply-accumulates of the module at `path`, as `measure` does those of a call."""
        self._latest[path] = self._latest.get(path, 0) + count
        self._calibration.accept_unless_in_forward()

    def tell(self) -> dict[str, int]:
        """Return what was counted."""
        return self.done

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Count what all ranks have done."""
        total: Counter[str] = Counter()
        for done in told:
            total.update(done if isinstance(done, dict) else {})
        edit.set_attribute(self, "done", dict(total))

    def drop_unfinished(self) -> None:
        """Forget what a forward pass that did not end has left."""
        self._latest.clear()

    def accept(self) -> None:
        """Count what the pass has shown."""
        for path, count in self._latest.items():
            self.done[path] = self.done.get(path, 0) + count
        self._latest.clear()
