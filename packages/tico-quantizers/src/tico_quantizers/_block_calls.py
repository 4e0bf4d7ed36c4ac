"""The calls of every block during the user's own passes, so that the blocks can be run one by one."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tico_quantizers._calls import Call, FromPrevious, Replay, Snapshots, map_leaves, tensor_leaves
from tico_quantizers._forward_watch import Calibration, Recorder


class BlockCalls(Recorder):
    """What each block was called with.

    Of the hidden states that go from block to block only those of the first are kept: where an argument
    is an output of the block before, its place is noted instead.
    """

    def __init__(self, blocks: tuple[nn.Module, ...]) -> None:
        self.blocks = blocks
        self._accepted: list[list[Call]] = [[] for _ in blocks]
        self._unfinished: list[list[Call]] = [[] for _ in blocks]
        self._outputs: list[dict[int, weakref.ref[Tensor]]] = [{} for _ in blocks]
        self._snapshots = Snapshots()

    def watch(self, calibration: Calibration) -> list[RemovableHandle]:
        """Set the hooks that tell it, while `calibration` watches, what each block gets and gives."""
        handles: list[RemovableHandle] = []
        for number, block in enumerate(self.blocks):
            before, after = _Before(self, number, calibration), _After(self, number, calibration)
            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(block.register_forward_hook(after))
        return handles

    def drop_unfinished(self) -> None:
        """Forget the calls of a pass that did not end."""
        self._unfinished = [[] for _ in self.blocks]
        self._outputs = [{} for _ in self.blocks]

    def accept(self) -> None:
        """Count the calls of the pass that has ended."""
        for accepted, new in zip(self._accepted, self._unfinished, strict=True):
            accepted.extend(new)
        self._unfinished = [[] for _ in self.blocks]

    def note_call(self, number: int, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        """Keep the arguments of a call of block `number`."""
        call = self._snapshots.take(args, kwargs, lambda tensor: self._from_previous(number, tensor))
        self._unfinished[number].append(call)

    def note_output(self, number: int, output: object) -> None:
        """Remember, as long as they live, the tensors that block `number` has just given."""
        self._outputs[number] = {
            leaf: weakref.ref(tensor) for leaf, tensor in enumerate(tensor_leaves(output))
        }

    def _from_previous(self, number: int, tensor: Tensor) -> FromPrevious | None:
        if number == 0:
            return None
        call = len(self._accepted[number - 1]) + len(self._unfinished[number - 1]) - 1
        for leaf, reference in self._outputs[number - 1].items():
            if reference() is tensor:
                return FromPrevious(call, leaf)
        return None

    def run(
        self, number: int, outputs: Mapping[tuple[int, int], Tensor], *, keep: bool
    ) -> Iterator[dict[tuple[int, int], Tensor]]:
        """Call block `number` as it was called, on the `outputs` of the block before.

        Yields after each call; with `keep`, what is yielded are the output tensors by call and leaf.
        """
        replay = Replay(self._accepted[number], outputs)
        for index, (args, kwargs) in enumerate(replay):
            with torch.no_grad():
                output: object = self.blocks[number](*args, **kwargs)
            leaves = enumerate(tensor_leaves(output)) if keep else ()
            yield {(index, leaf): tensor for leaf, tensor in leaves}

    def wanted_by_next(self, number: int) -> frozenset[tuple[int, int]]:
        """Return which outputs of block `number`, by call and leaf, the next block reads."""
        found: set[tuple[int, int]] = set()

        def note(leaf: object) -> object:
            if isinstance(leaf, FromPrevious):
                found.add((leaf.call, leaf.leaf))
            return leaf

        for call in self._accepted[number + 1]:
            for value in (*call.args, *call.kwargs.values()):
                map_leaves(value, note)
        return frozenset(found)


class _Before:
    def __init__(self, calls: BlockCalls, number: int, calibration: Calibration) -> None:
        self._calls, self._number, self._calibration = calls, number, calibration

    def __call__(self, block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if self._calibration.watching:
            self._calls.note_call(self._number, args, kwargs)


class _After:
    def __init__(self, calls: BlockCalls, number: int, calibration: Calibration) -> None:
        self._calls, self._number, self._calibration = calls, number, calibration

    def __call__(self, block: nn.Module, args: object, output: object) -> None:
        if self._calibration.watching:
            self._calls.note_output(self._number, output)
            self._calibration.accept_unless_in_forward()
