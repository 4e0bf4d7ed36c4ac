"""The blocks of a model, found from its structure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from torch import nn

from tico_modules import child_path, children, named_modules


def find_blocks(model: nn.Module, wanted: Iterable[nn.Module]) -> tuple[tuple[str, nn.Module], ...]:
    """Return the chain of modules of one type that stand in a row and hold most of the `wanted` modules.

    A chain is a run of at least two distinct children of one module, alike in type, each of which has
    children of its own. So the layers of a transformer are taken, not the experts in one of them, be they
    more. Of chains that hold equally many the longest is taken, then the first. Empty where there is none:
    the whole model is then one block.

    >>> stack = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2)) for _ in range(3)))
    >>> [path for path, _ in find_blocks(stack, [block[0] for block in stack])]
    ['0', '1', '2']
    """
    sought = {id(module) for module in wanted}
    best: tuple[tuple[str, nn.Module], ...] = ()
    best_size = (0, 0)
    for path, parent in named_modules(model):
        named = [(child_path(path, name), child) for name, child in children(parent).items()]
        for _, run in groupby(named, key=lambda item: type(item[1])):
            chain = tuple(run)
            counts = [_count(block, sought) for _, block in chain]
            distinct = len({id(block) for _, block in chain}) == len(chain)
            if len(chain) >= 2 and distinct and all(counts) and (sum(counts), len(chain)) > best_size:
                best, best_size = chain, (sum(counts), len(chain))
    return best


def homes_in(blocks: Sequence[nn.Module]) -> dict[int, int | None]:
    """Return, by the identity of a module, the number of its block; None where several blocks hold it."""
    homes: dict[int, int | None] = {}
    for number, block in enumerate(blocks):
        for _, module in named_modules(block):
            homes[id(module)] = None if id(module) in homes else number
    return homes


def _count(block: nn.Module, sought: set[int]) -> int:
    """Return how many wanted modules stand below `block`, itself not counted."""
    return sum(id(module) in sought for _, module in named_modules(block) if module is not block)
