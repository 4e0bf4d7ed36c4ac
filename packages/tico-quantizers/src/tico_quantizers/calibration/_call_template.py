"""How the calls of all blocks follow from that of the first."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from torch import Tensor
from typing_extensions import Self

from tico_quantizers.calibration._calls import Call, FromBlock, Leaf, Opaque, leaves_of, with_leaves


@attrs.frozen
class _OfFirst:
    """Stands for the argument leaf `leaf` of the first block's call."""

    leaf: int


@attrs.frozen(eq=False)
class CallTemplate:
    """The calls of a pass in which every block was called once, on what the one before it and the first got.

    `kinds` are the leaves of the first block's call, tensors and objects by their type alone; `others` are
    the calls of the blocks after it, with leaves that say where they come from.
    """

    kinds: tuple[Leaf, ...]
    others: tuple[Call, ...]

    @classmethod
    def of(cls, calls: Sequence[Sequence[Call]]) -> Self | None:
        """Return that of a pass, given the calls of each block; None if a block gets anything else."""
        if not calls or any(len(of_block) != 1 for of_block in calls):
            return None
        (first,), *others = calls
        own = leaves_of(first)
        places = {id(leaf): index for index, leaf in enumerate(own) if isinstance(leaf, Tensor | Opaque)}
        skeletons = []
        for (call,) in others:
            sources = [_source(leaf, places) for leaf in leaves_of(call)]
            if any(isinstance(source, Tensor | Opaque) for source in sources):
                return None
            skeletons.append(with_leaves(call, sources))
        return cls(tuple(map(_kind, own)), tuple(skeletons))

    def fits(self, first: Call) -> bool:
        """Return whether a call of the first block has arguments like those that this was made of."""
        return tuple(map(_kind, leaves_of(first))) == self.kinds

    def calls(self, first: Call, numbers: Sequence[int]) -> list[Call]:
        """Return the calls of the other blocks; `numbers` are those that the call of each block has."""
        own = leaves_of(first)

        def made(leaf: Leaf) -> Leaf:
            match leaf:
                case _OfFirst(leaf=index):
                    return own[index]
                case FromBlock(block=block):
                    return attrs.evolve(leaf, call=numbers[block])
                case _:
                    return leaf

        return [
            attrs.evolve(
                with_leaves(call, list(map(made, leaves_of(call)))), autocast=first.autocast, said=first.said
            )
            for call in self.others
        ]


def _source(leaf: Leaf, places: dict[int, int]) -> Leaf:
    return _OfFirst(places[id(leaf)]) if id(leaf) in places else leaf


def _kind(leaf: Leaf) -> Leaf:
    return type(leaf) if isinstance(leaf, Tensor | Opaque) else leaf
