"""Which rank makes which calls of blocks again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from tico_quantizers.calibration._block_calls import BlockCalls
from tico_quantizers.calibration._calls import Call, FromBlock, Opaque, leaves_of
from tico_quantizers.calibration._ranks import Ranks


@attrs.frozen(kw_only=True)
class Deal:
    """The calls that this rank makes: those of a part of the user's passes, or all of them.

    Passes are dealt out in turn, so that what ranks have made in a round stands in the order of one process.

    Attributes:
        is_split: whether each rank makes a part of the calls. Where calls of one pass depend on another's, as
            by a cache, all ranks make all.
        counts: how many calls there are of each block.
        passes: for each block the pass that each of its calls is of.
        rounds: how many passes a rank has at most.
        ranks: those that share the calls.
    """

    is_split: bool
    counts: tuple[int, ...]
    passes: tuple[tuple[int, ...], ...]
    rounds: int
    ranks: Ranks = attrs.field(eq=False)

    @classmethod
    def of(cls, ranks: Ranks, calls: BlockCalls, *, alone: bool) -> Deal:
        """Return that for `calls`, each of which is to be made by itself: `alone`, not by whole passes."""
        flow, counts = calls.flow.counts, tuple(map(len, calls.accepted))
        passes = tuple(
            tuple(index for index, of_pass in enumerate(flow) for _ in range(of_pass[number]))
            for number in range(len(calls.blocks))
        )
        known = counts == tuple(map(len, passes))
        split = ranks.count > 1 and alone and known and _are_apart(passes, calls.accepted, ranks.count)
        rounds = -(-len(flow) // ranks.count)
        return cls(is_split=split, counts=counts, passes=passes, rounds=rounds, ranks=ranks)

    def own(self, number: int) -> Sequence[int]:
        """Return which calls of block `number` this rank makes."""
        if not self.is_split:
            return range(self.counts[number])
        return [index for index, of in enumerate(self.passes[number]) if self.ranks.owns(of)]

    def of_round(self, number: int, turn: int) -> int:
        """Return how many calls of block `number` this rank makes in the round `turn`."""
        return self.passes[number].count(turn * self.ranks.count + self.ranks.number)


def _are_apart(passes: Sequence[Sequence[int]], calls: Sequence[Sequence[Call]], ranks: int) -> bool:
    """Return whether no call depends on one that another rank makes."""
    owner: dict[tuple[int, int], int] = {}
    for number, of_block in enumerate(calls):
        for index, call in enumerate(of_block):
            rank = passes[number][index] % ranks
            if any(passes[place.block][place.call] % ranks != rank for place in _places(call)):
                return False
            objects = {(number, id(leaf)) for leaf in leaves_of(call) if isinstance(leaf, Opaque)}
            if any(owner.setdefault(each, rank) != rank for each in objects):
                return False
    return True


def _places(call: Call) -> Iterator[FromBlock]:
    return (leaf for leaf in leaves_of(call) if isinstance(leaf, FromBlock))
