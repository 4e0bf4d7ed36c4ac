"""In which order the passes of a model call its blocks, and samples of what the blocks gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter

from torch import Tensor
from typing_extensions import Self

from tico_quantizers.calibration._snapshots import same_bits

_VERIFIED_PASSES = 2  # to leave something twice, so that a block finds what another pass has left
_SAMPLED = 2**12


class BlockFlow:
    """The order of the first calls of blocks in each pass, and how many calls each pass made of each block.

    It `has_loops` where a block was given what itself or one that the pass first calls after it had given.
    """

    def __init__(self) -> None:
        self.counts: list[list[int]] = []
        self.has_loops = False
        self._called: list[int] = []
        self._before: dict[int, set[int]] = {}

    def note(self, number: int) -> None:
        """Note that the pass calls block `number`."""
        if number not in self._called:
            self._called.append(number)

    def precedes(self, number: int, other: int) -> bool:
        """Whether block `other`, which is called with what block `number` gave, can be run after it.

        It can where this pass called `number` first, or an earlier pass did and the model has it first.
        """
        called = self._called
        if number in called:
            found = called.index(number) < called.index(other)
            self.has_loops |= not found
        else:
            found = number < other
        if found:
            self._before.setdefault(other, set()).add(number)
        return found

    def drop_unfinished(self) -> None:
        """Forget the pass that did not end."""
        self._called = []

    def accept(self, counts: list[int]) -> None:
        """Count the pass that has ended, which has called each block so many times."""
        for earlier, later in zip(self._called, self._called[1:], strict=False):
            self._before.setdefault(later, set()).add(earlier)
        self.counts.append(counts)
        self._called = []

    def trial_passes(self) -> int:
        """Return how many passes it takes until two have called each of the blocks that any has called."""
        waiting = {number for counts in self.counts for number, count in enumerate(counts) if count}
        called: Counter[int] = Counter()
        for index, counts in enumerate(self.counts):
            called.update(number for number, count in enumerate(counts) if count)
            waiting = {number for number in waiting if called[number] < _VERIFIED_PASSES}
            if not waiting:
                return index + 1
        return len(self.counts)

    def order(self, blocks: int) -> list[int]:
        """Return the numbers of all `blocks`, in the order in which passes call them.

        Where passes contradict each other it is the order in the model.
        """
        graph = {number: self._before.get(number, set()) for number in range(blocks)}
        try:
            return list(TopologicalSorter(graph).static_order())
        except CycleError:
            return list(range(blocks))

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """Return what all `parts` have seen, one after the other."""
        found = cls()
        for part in parts:
            found.counts += part.counts
            found.has_loops |= part.has_loops
            for number, before in part._before.items():
                found._before.setdefault(number, set()).update(before)
        return found


class Samples:
    """Some elements of what blocks gave in the first passes that called them.

    They tell whether a call that is made again gives the same.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], list[Tensor]] = {}
        self._passes: dict[int, set[int]] = {}

    def note(self, number: int, call: int, in_pass: int, leaves: Sequence[Tensor]) -> None:
        """Keep elements of what the call `call` of block `number` gave in pass `in_pass`."""
        passes = self._passes.setdefault(number, set())
        if in_pass in passes or len(passes) < _VERIFIED_PASSES:
            passes.add(in_pass)
            self._known[number, call] = samples_of(leaves)

    @classmethod
    def joined(cls, parts: Iterable[tuple[Self, Sequence[Sequence[int]]]]) -> Self:
        """Return those of the first passes of all, given each part with the counts of calls in its passes."""
        found, before, passes_before = cls(), Counter[int](), 0
        for part, counts in parts:
            for number, passes in part._passes.items():
                kept = found._passes.setdefault(number, set())
                for index in sorted(passes & {*range(len(counts))})[: _VERIFIED_PASSES - len(kept)]:
                    kept.add(passes_before + index)
                    first = sum(of_pass[number] for of_pass in counts[:index])
                    for call in range(first, first + counts[index][number]):
                        found._known[number, before[number] + call] = part._known[number, call]
            passes_before += len(counts)
            for of_pass in counts:
                before.update(dict(enumerate(of_pass)))
        return found

    def agree(self, number: int, call: int, found: Sequence[Tensor]) -> bool:
        """Whether elements that were `found` are those of the call, as far as it is known."""
        known = self._known.get((number, call))
        return known is None or same_samples(known, found)


def samples_of(leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return up to 4096 elements of each of `leaves`, evenly spaced."""
    flats = [leaf.detach().reshape(-1) for leaf in leaves]
    return [flat[:: max(flat.numel() // _SAMPLED, 1)].clone() for flat in flats]


def same_samples(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether both are the same elements."""
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(same_bits(x, y) for x, y in pairs)
