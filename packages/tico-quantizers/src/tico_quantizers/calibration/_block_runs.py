"""A block run again sample by sample, beside what the float block gives for the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol, final

import attrs
import torch
from torch import Tensor

from tico_quantizers.calibration._attempts import attempted_twice
from tico_quantizers.calibration._calls import FromBlock, Kept, Replay, map_leaves, tensor_leaves
from tico_quantizers.calibration._stream import Stream
from tico_quantizers.layers import QuantizedWeight


@attrs.frozen
class _Sample:
    """One call of the block, or the part of it that a place along the first axis is, of `size` places."""

    call: int
    row: int | None = None
    size: int = 1

    def part(self, tensor: Tensor) -> Tensor:
        """Return what the sample is of a tensor of the whole call."""
        return tensor if self.row is None else tensor[self.row : self.row + 1]

    def of(self, tree: object) -> object:
        """Return the arguments of the sample, given those of the call."""

        def cut(leaf: object) -> object:
            is_split = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == self.size
            return self.part(leaf) if isinstance(leaf, Tensor) and is_split else leaf

        return tree if self.row is None else map_leaves(tree, cut)


@final
class BlockRuns:
    """The samples that the calls of a block consist of, in the order of the data, however they were batched.

    A sample is one place along the first axis of what the block gives, where the arguments of the call can
    be cut along theirs such that the block gives the same for the part; otherwise it is a whole call. Of what
    the block gives only the first tensor of floats is looked at.
    """

    def __init__(self, stream: Stream, wanted: Mapping[FromBlock, Kept]) -> None:
        self._stream = stream
        self._calls = stream.calls.accepted[stream.number]
        self._wanted = wanted
        self._places = self._first_places()
        self._forms: dict[tuple[object, ...], bool] = {}
        self._samples = [sample for call in self._places for sample in self._samples_of(call)]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._samples)

    @property
    def are_apart(self) -> bool:
        """Whether each call can be made by itself: none goes on with an object that another has changed."""
        return not self._stream.calls.shares_objects(self._stream.number)

    def output(self, sample: int) -> Tensor:
        """Return what the block gives for a sample: with derivatives where these are computed.

        It reads what the changed blocks before it give.
        """
        return self._output(self._samples[sample])

    def wanted(self, sample: int) -> Tensor:
        """Return what the float block gives in the float model."""
        chosen = self._samples[sample]
        return chosen.part(self._whole(chosen.call))

    def real(self, sample: int) -> Tensor | None:
        """Return which places of `wanted`, without its last axis, are no padding; None if all are."""
        chosen, tokens = self._samples[sample], self._stream.calls.tokens
        with tokens.again(self._calls[chosen.call].said):
            rows = tokens.rows(self._whole(chosen.call))
        return None if rows is None else chosen.part(rows)

    def _first_places(self) -> dict[int, FromBlock]:
        """Return, for each call, which of its outputs is the first tensor of floats."""
        found: dict[int, FromBlock] = {}
        for place in sorted(self._wanted, key=lambda place: (place.call, place.leaf)):
            if self._wanted[place].dtype.is_floating_point:
                found.setdefault(place.call, place)
        return found

    def _whole(self, call: int) -> Tensor:
        kept = self._wanted[self._places[call]]
        return kept if isinstance(kept, Tensor) else kept.tensor()

    def _samples_of(self, call: int) -> list[_Sample]:
        wanted = self._whole(call)
        size = len(wanted) if wanted.ndim > 1 else 1
        if size > 1 and self._can_be_cut(_Sample(call, 0, size)):
            return [_Sample(call, row, size) for row in range(size)]
        return [_Sample(call)]

    def _can_be_cut(self, sample: _Sample) -> bool:
        """Return whether the float block gives the same for the sample alone: half of the digits agree."""
        args, kwargs = self._arguments(sample.call)
        form = (sample.size, *(tuple(leaf.shape) for leaf in tensor_leaves((args, kwargs))))
        if form not in self._forms:
            with torch.no_grad():
                whole, alone = (
                    attempted_twice(partial(self._output, each)) for each in (_Sample(sample.call), sample)
                )
            self._forms[form] = whole is not None and alone is not None and _agree(sample.part(whole), alone)
        return self._forms[form]

    def _arguments(self, call: int) -> tuple[tuple[object, ...], dict[str, object]]:
        args, kwargs, _ = next(iter(Replay([self._calls[call]], self._stream.outputs)))
        return args, kwargs

    def _output(self, sample: _Sample) -> Tensor:
        call, block = self._calls[sample.call], self._stream.calls.blocks[self._stream.number]
        args, kwargs = self._arguments(sample.call)
        self._stream.seed(sample.call)
        with call.autocast.again():
            given: object = block(
                *(sample.of(value) for value in args),
                **{name: sample.of(value) for name, value in kwargs.items()},
            )
        return tensor_leaves(given)[self._places[sample.call].leaf]


def _agree(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors differ by rounding: by less than half of the digits of their dtype."""
    if one.shape != other.shape:
        return False
    limit = torch.finfo(one.dtype).eps ** 0.5
    one, other = one.to(torch.float32), other.to(torch.float32)
    return bool((one - other).norm() <= limit * one.norm())


class Finish(Protocol):
    """What is done with the weights that were found of a block before they are put into it."""

    def __call__(self, weights: Sequence[QuantizedWeight], runs: BlockRuns, /) -> list[QuantizedWeight]:
        """Return the weights to put, in the same order; the block is float, and is to stay what it is.

        It runs without derivatives unless they are switched on.
        """
