"""The blocks of a model, found from its structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

from torch import nn

from tico_modules import child_path, children, named_modules


def find_blocks(model: nn.Module, wanted: Iterable[nn.Module]) -> tuple[tuple[str, nn.Module], ...]:
    """Return the modules that form chains and hold `wanted` modules, in the order of the model.

    A chain is a run of at least two distinct children of one module, alike in type, each of which has
    children of its own; in a list or a sequence types may alternate. Of chains in chains the outer one
    counts: the layers of a transformer, not the experts in one of them. An inner one counts where the outer
    one has stages: lists, or modules whose own chain holds nearly all of their wanted ones. Empty where
    there is no chain: the whole model is then one block.

    >>> stack = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2)) for _ in range(3)))
    >>> [path for path, _ in find_blocks(stack, [block[0] for block in stack])]
    ['0', '1', '2']
    """
    sought = {id(module) for module in wanted}
    found = {id(block): (path, block) for path, block in _blocks_below("", model, sought)}
    return tuple(found.values())


Named: TypeAlias = tuple[str, nn.Module]


def _blocks_below(path: str, parent: nn.Module, sought: set[int]) -> list[Named]:
    """Return the blocks below `parent`; without recursion, so that no nesting is too deep."""
    found: list[Named] = []
    seen: set[int] = set()
    waiting = [(path, parent, False)]
    while waiting:
        place, module, is_block = waiting.pop()
        if is_block:
            found.append((place, module))
        elif id(module) not in seen:
            seen.add(id(module))
            waiting += reversed(list(_parts(place, module, sought)))
    return found


def _parts(path: str, parent: nn.Module, sought: set[int]) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield what `parent` consists of, and whether each part is a block."""
    chained = {id(block) for chain in _chains(path, parent, sought) for _, block in chain}
    for name, child in children(parent).items():
        below = child_path(path, name)
        if id(child) not in chained or isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield below, child, False
        else:
            stages = _stages(below, child, sought) or [(below, child)]
            yield from ((place, block, True) for place, block in stages)


def _chains(path: str, parent: nn.Module, sought: set[int]) -> Iterator[list[Named]]:
    """Yield the chains among the children of `parent`."""
    named = [(child_path(path, name), child) for name, child in children(parent).items()]
    if isinstance(parent, nn.ModuleList | nn.Sequential):
        kinds = Counter(type(child) for _, child in named)
        runs = [[item for item in named if kinds[type(item[1])] > 1]]
    else:
        runs = [list(run) for _, run in groupby(named, key=lambda item: type(item[1]))]
    for run in (run for run in runs if len(run) >= 2):
        chain = [item for item in run if _count(item[1], sought)]
        if len(chain) >= 2 and len({id(block) for _, block in chain}) == len(chain):
            yield chain


def _stages(path: str, block: nn.Module, sought: set[int]) -> list[Named]:
    """Return the blocks of a stage; none if `block` is one itself.

    Experts are no blocks, though they may hold most of a block: they have nothing beside matrices.
    """
    inner = _blocks_below(path, block, sought)
    if not inner:
        return []
    counts = [_count(module, sought) for _, module in inner]
    outside = _count(block, sought) - sum(counts)
    whole = min(counts) >= 2 and outside < max(counts)
    return inner if whole and all(_has_more(module, sought) for _, module in inner) else []


def _has_more(block: nn.Module, sought: set[int]) -> bool:
    """Whether `block` owns a parameter outside of its wanted modules, such as that of a norm."""
    own: Iterator[tuple[str, nn.Module]] = named_modules(block)
    return any(module._parameters and id(module) not in sought for _, module in own)


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
