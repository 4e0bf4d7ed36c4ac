"""What passes of a model show of its residual stream and of the values of its attention heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import attrs
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from tico_modules import named_modules, own_tensor
from tico_quantizers.calibration import after_call, before_call, tensor_leaves
from tico_quantizers.equivalence._channel_flow import FollowedTensors
from tico_quantizers.equivalence._passages import (
    WATCHING,
    Passages,
    Reading,
    common_row,
    distinct,
    plain,
    reading_of_rows,
)
from tico_quantizers.equivalence._rotatable import Rotatable
from tico_quantizers.equivalence._rotation_flow import RotationFlow
from tico_quantizers.layers import input_tensor

R = TypeVar("R")


@attrs.frozen(eq=False, kw_only=True)
class StreamWays:
    """What any number of passes have shown; merging does not depend on their order.

    `passages` has readings of layers, norms and tables, and what breaks a source; `sums`, `heads`,
    `looked_up` and `weighed` are those of `RotationFlow`.
    """

    passages: Passages = attrs.field(factory=Passages)
    sums: frozenset[tuple[str, str]] = frozenset()
    heads: Mapping[str, frozenset[int]] = attrs.field(factory=dict)
    looked_up: frozenset[str] = frozenset()
    weighed: frozenset[str] = frozenset()

    def merge(self, other: StreamWays) -> Self:
        """Return what the passes of both have shown."""
        sources = dict.fromkeys([*self.heads, *other.heads])
        none: frozenset[int] = frozenset()
        return attrs.evolve(
            self,
            passages=self.passages.merge(other.passages),
            sums=self.sums | other.sums,
            heads={each: self.heads.get(each, none) | other.heads.get(each, none) for each in sources},
            looked_up=self.looked_up | other.looked_up,
            weighed=self.weighed | other.weighed,
        )

    def is_used(self, name: str) -> bool:
        """Return whether a layer, norm or table was called or read."""
        return self.passages.is_used(name) or name in self.passages.multiplied or name in self.looked_up


class StreamTrace:
    """One pass, with what every layer, norm and table reads and writes in it."""

    def __init__(self, model: nn.Module, rotatable: Rotatable, tensors: FollowedTensors) -> None:
        weights = ((path, own_tensor(module, "weight")) for path, module in rotatable.atoms())
        guarded = {path: weight for path, weight in weights if weight is not None}
        tables = {
            name: weight
            for name, each in rotatable.tables.items()
            if (weight := own_tensor(each.module, each.name)) is not None
        }
        self.flow = RotationFlow(guarded, tables, tensors)
        self._model = model
        self._rotatable = rotatable
        self._readings: dict[str, list[Reading]] = {}

    def follow(self, run: Callable[[], R]) -> R:
        """Return what `run`, a forward pass, gives, and note the ways that channels take in it."""
        with self._hooks(), self.flow:
            output = run()
        self.flow.end(plain(output), "it is an output of the model")
        return output

    def passages(self) -> StreamWays:
        """Return what has shown."""
        flow = self.flow
        found = Passages(
            broken=flow.broken,
            also_read=flow.also_read,
            readings={path: distinct(tuple(each)) for path, each in self._readings.items()},
            multiplied={
                name: distinct(tuple(map(reading_of_rows, each))) for name, each in flow.multiplied.items()
            },
        )
        heads = {source: frozenset(sizes) for source, sizes in flow.heads.items()}
        return StreamWays(
            passages=found,
            sums=frozenset(flow.sums),
            heads=heads,
            looked_up=frozenset(flow.looked_up),
            weighed=frozenset(flow.weighed),
        )

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """Watch the calls of every module inside the block."""
        atoms = {path for path, _ in self._rotatable.atoms()}
        handles: list[RemovableHandle] = []
        try:
            for path, module in named_modules(self._model):
                enter, leave = (self._enter, self._leave) if path in atoms else (self._into, self._out_of)
                # Behind the user's own hooks: what counts is what the layer reads and gives in the end.
                handles.append(before_call(module, partial(enter, path), WATCHING))
                handles.append(after_call(module, partial(leave, path), WATCHING))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _into(self, path: str, *call: object) -> None:
        self.flow.places.append(path)

    def _out_of(self, path: str, *call: object) -> None:
        if self.flow.places:
            self.flow.places.pop()

    def _enter(self, path: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Note what the module at `path` is called with, and do not look inside."""
        self.flow.paused += 1
        if self.flow.paused > 1:
            return
        reading = Reading()
        if path not in self._rotatable.experts:
            x = input_tensor(path, args, kwargs)
            channels = self.flow.channels_of(x)
            if channels is not None and self._reads(path):
                reading = Reading(channels.source, common_row(channels.numbers))
            others = [each for each in tensor_leaves((args, kwargs)) if each is not x]
        else:
            others = []
        refused = others if reading.channels is not None else [args, kwargs]
        self.flow.end(refused, f"{path} reads it{self._why_not(path)}")
        self._readings.setdefault(path, []).append(reading)

    def _reads(self, path: str) -> bool:
        return self._rotatable.layer(path) is not None or self._rotatable.norm(path) is not None

    def _why_not(self, path: str) -> str:
        """Return why what reads channels cannot undo a rotation, to go behind its path."""
        if path in self._rotatable.experts:
            return f", which holds weights of several experts in {self._rotatable.experts[path]}"
        if path in self._rotatable.reasons:
            return f": {self._rotatable.reasons[path]}"
        return "" if not self._reads(path) else ", and not all of its channels in their order"

    def _leave(self, path: str, args: object, kwargs: object, output: object) -> None:
        """Follow the output of the module at `path`, if it can be rotated."""
        self.flow.paused -= 1
        if self.flow.paused or not isinstance(output, Tensor) or not output.ndim:
            return
        if path in self._rotatable.experts:
            self.flow.begin_rows(path, output)
            self.flow.end(output, f"{self._rotatable.experts[path]} holds weights of several experts")
        if self._rotatable.norm(path) is not None:
            self.flow.norms.add(path)
            self.flow.begin_rows(path, output)
        elif self._rotatable.layer(path) is not None:
            self.flow.begin_rows(path, output)
