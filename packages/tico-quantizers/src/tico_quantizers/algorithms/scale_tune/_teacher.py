"""What the float model says for each sample, of which only its last layer is run again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import attrs
import torch
from torch import Tensor, nn

from tico_quantizers.algorithms.scale_tune._logits import Select, run
from tico_quantizers.calibration import Call, after_call, quiet_runs
from tico_quantizers.tuning import TreeState


class Teacher:
    """The float model, whose modules `before` remembers.

    Logits would take too much memory to be kept. What the head reads is small: from the second time on, only
    the head runs for a sample. That holds for models whose logits are the output of a linear layer as it
    gives it; others run as a whole each time.
    """

    def __init__(self, before: TreeState) -> None:
        self._before = before
        self._heads: dict[int, _Head] = {}

    @torch.no_grad()
    def logits(self, sample: int, call: Call) -> Tensor:
        """Return the logits (rows, classes) of real tokens for sample number `sample`, which is `call`."""
        with self._before.again(), quiet_runs(self._before.root):
            known = self._heads.get(sample)
            return self._first(sample, call) if known is None else known.logits()

    def _first(self, sample: int, call: Call) -> Tensor:
        with _watched(self._before.root) as last:
            logits, select = run(self._before.root, call)
        match last:
            case [(layer, read, given)] if given is logits:
                self._heads[sample] = _Head(layer, read.clone(), call, select)
        return select(logits)


@attrs.frozen(eq=False)
class _Head:
    """A linear layer that gives the logits, and what it reads in one call of the model."""

    layer: nn.Linear
    read: Tensor
    call: Call
    select: Select

    def logits(self) -> Tensor:
        with self.call.autocast.again():
            given: Tensor = self.layer(self.read)
        return self.select(given)


_Last = list[tuple[nn.Linear, Tensor, object]]


@contextmanager
def _watched(root: nn.Module) -> Iterator[_Last]:
    """Give the last linear layer below `root` that was called with one tensor, its input and its output."""
    last: _Last = []
    layers = [each for each in root.modules() if isinstance(each, nn.Linear)]
    handles = [after_call(layer, partial(_note, last, layer)) for layer in layers]
    try:
        yield last
    finally:
        for handle in handles:
            handle.remove()


def _note(
    last: _Last, layer: nn.Linear, args: tuple[object, ...], kwargs: dict[str, object], output: object
) -> None:
    match args:
        case (Tensor() as read,) if not kwargs:
            last[:] = [(layer, read, output)]
