"""Whether what blocks were given when they were recorded still holds where earlier ones have changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor

from tico_quantizers.calibration._activation_store import StoredTensor
from tico_quantizers.calibration._block_calls import BlockCalls
from tico_quantizers.calibration._calls import Call, Leaf, leaves_of
from tico_quantizers.calibration._passes import Passes
from tico_quantizers.calibration._snapshots import same_bits


class Renewal:
    """Tells when the calls of a block, and of those after it, are to be recorded again.

    That is where a block is given nothing that an earlier block gave, as the first one of a decoder or of a
    stage: what stands between reads changed blocks. And it is where it is given a tensor that no block was
    given since they were recorded, if the first passes now have another one in its place.
    """

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self._known: dict[int, Leaf] = {}

    def is_due(self, calls: BlockCalls, number: int) -> bool:
        """Return whether it is so for block `number`."""
        return not calls.follows(number) or (self._has_news(calls, number) and self._differs(calls, number))

    def pass_on(self, calls: BlockCalls, number: int) -> None:
        """Take what block `number` was given as known: it holds."""
        self._known |= {id(leaf): leaf for call in calls.accepted[number] for leaf in _tensors(call)}

    def forget(self) -> None:
        """Start anew, as everything is recorded again."""
        self._known = {}

    def _has_news(self, calls: BlockCalls, number: int) -> bool:
        return any(id(leaf) not in self._known for call in calls.accepted[number] for leaf in _tensors(call))

    def _differs(self, calls: BlockCalls, number: int) -> bool:
        """Return whether one of the first passes gives block `number` other tensors now, when it calls it."""
        trial = calls.flow.trial_passes()
        passes = itertools.islice(self._passes.run(), trial)
        now = calls.again(self._passes.root, passes, [number], ended=True).accepted[number]
        counts = [of_pass[number] for of_pass in calls.flow.counts]
        firsts = [sum(counts[:index]) for index in range(trial) if counts[index]]
        then = [calls.accepted[number][first] for first in firsts]
        return len(now) != len(then) or not all(map(self._agree, now, then))

    def _agree(self, now: Call, then: Call) -> bool:
        pairs = list(itertools.zip_longest(leaves_of(now), leaves_of(then)))
        return all(_same(one, other) for one, other in pairs if id(other) not in self._known)


def _tensors(call: Call) -> Iterator[Tensor | StoredTensor]:
    return (leaf for leaf in leaves_of(call) if isinstance(leaf, Tensor | StoredTensor))


def _same(now: Leaf, then: Leaf) -> bool:
    """Return whether a tensor is what was recorded; of other arguments that is not asked."""
    recorded = then.tensor() if isinstance(then, StoredTensor) else then
    return not isinstance(recorded, Tensor) or (isinstance(now, Tensor) and same_bits(now, recorded))
