"""What goes from block to block in one version of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tico_modules import keep_dequantized
from tico_quantizers.calibration._block_calls import BlockCalls, NothingMore
from tico_quantizers.calibration._calls import FromBlock, Kept, tensor_leaves
from tico_quantizers.calibration._deal import Deal
from tico_quantizers.calibration._hooks import after_call
from tico_quantizers.calibration._passes import Passes
from tico_quantizers.calibration._ways import Ways


class Stream:
    """The outputs of the blocks before the one at `position`, as far as it or later ones read them.

    A call of a block draws the same random numbers in each of its passes, whatever was run before.
    """

    def __init__(
        self,
        calls: BlockCalls,
        passes: Passes,
        ways: Ways,
        forward_dtype: torch.dtype | None,
        deal: Deal,
        position: int = 0,
    ) -> None:
        self.calls = calls
        self.deal = deal
        self.position = position
        self._passes = passes
        self._ways = ways
        self._forward_dtype = forward_dtype
        self._outputs: dict[FromBlock, Kept] = {}
        replayed = [number for number in ways.order[position:] if number not in ways.dependent]
        self._last = calls.last_reads(replayed)

    @property
    def number(self) -> int:
        """The block that it stands at."""
        return self._ways.order[self.position]

    @property
    def outputs(self) -> Mapping[FromBlock, Kept]:
        """What earlier blocks have given, as far as this one or later ones read it."""
        return self._outputs

    def seed(self, index: int) -> None:
        """Let what is random in a call of the block be what it is in each of its passes."""
        torch.default_generator.manual_seed(self.number + index * len(self.calls.blocks))

    def runs(self) -> Iterator[None]:
        """Make each call of the block that the deal gives this rank."""
        return (None for _ in self._run(keep=False))

    def last_runs(self, *, at_once: bool = True, into: dict[FromBlock, Kept] | None = None) -> Iterator[None]:
        """Make each call of the block for the last time, and go on to the next block.

        Unless `at_once`, what no later call reads is kept until all have been made, which may then fail.
        All that the calls give is put `into` a dictionary where there is one.
        """
        found: dict[FromBlock, Kept] = {}
        store = self.calls.store.another()
        done = self._read_last()
        for index, tensors in self._run(keep=True):
            kept = {
                place: store.keep(x)
                for place, x in tensors.items()
                if into is not None or place in self._last
            }
            found |= {place: each for place, each in kept.items() if place in self._last}
            if into is not None:
                into |= kept
            for place in done.pop(index, ()) if at_once else ():
                del self._outputs[place]
            yield
        for place in (place for places in done.values() for place in places):
            del self._outputs[place]
        self._outputs |= found
        self.position += 1

    def advance(self) -> None:
        """Go on to the next block, for which this one is run only if something reads what it gives."""
        if any(place.block == self.number for place in self._last):
            for _ in self.last_runs():
                pass
        else:
            for place in (place for places in self._read_last().values() for place in places):
                del self._outputs[place]
            self.position += 1

    def _read_last(self) -> dict[int, list[FromBlock]]:
        """Return, for each call of the block, which outputs no later one reads."""
        found: dict[int, list[FromBlock]] = {}
        for place in self._outputs:
            number, index = self._last[place]
            if number == self.number:
                found.setdefault(index, []).append(place)
        return found

    def _run(self, *, keep: bool) -> Iterator[tuple[int, dict[FromBlock, Tensor]]]:
        number = self.number
        if number in self._ways.dependent:
            yield from enumerate(self._run_passes(number))
            return
        own, dtype = self.deal.own(number), self._forward_dtype
        made = self.calls.run(number, self._outputs, keep=keep, forward_dtype=dtype, only=own)
        with keep_dequantized(self.calls.blocks[number]):
            for index in own:
                self.seed(index)
                yield index, next(made)

    def _run_passes(self, number: int) -> Iterator[dict[FromBlock, Tensor]]:
        """Run the whole model for each of the user's passes, up to its last call of the block."""
        counts = [of_pass[number] for of_pass in self.calls.flow.counts]
        run = _PassRun(number, counts)
        root = self._passes.root
        handles = [after_call(self.calls.blocks[number], run.end), *self.calls.tokens.watch(root)]
        with keep_dequantized(root):
            try:
                for _ in self._passes.run(self._forward_dtype):
                    yield run.taken()
            finally:
                for handle in handles:
                    handle.remove()


class _PassRun:
    """Takes what a block gives in whole passes, and ends each with the last of its `counts` of calls."""

    def __init__(self, number: int, counts: Sequence[int]) -> None:
        self._number = number
        self._counts = iter(counts)
        self._left = next(self._counts, 0)
        self._calls = 0
        self._outputs: dict[FromBlock, Tensor] = {}

    def taken(self) -> dict[FromBlock, Tensor]:
        """Return the outputs of the pass that has ended, and start with the next one."""
        outputs, self._outputs = self._outputs, {}
        self._left = next(self._counts, 0)
        return outputs

    def end(self, args: object, kwargs: object, output: object) -> None:
        for leaf, tensor in enumerate(tensor_leaves(output)):
            self._outputs[FromBlock(self._number, self._calls, leaf)] = tensor
        self._calls += 1
        self._left -= 1
        if self._left == 0:
            raise NothingMore
