"""How what a block reads can be had again: by the block alone, or only by whole passes of the model."""

from __future__ import annotations

import itertools
from functools import partial

import attrs
import torch
from torch import Tensor

from tico_modules import keep_dequantized
from tico_quantizers.calibration._attempts import attempted_twice
from tico_quantizers.calibration._block_calls import BlockCalls
from tico_quantizers.calibration._block_flow import same_samples, samples_of
from tico_quantizers.calibration._calls import FromBlock, tensor_leaves
from tico_quantizers.calibration._hooks import after_call
from tico_quantizers.calibration._passes import Passes
from tico_quantizers.calibration._quiet_runs import has_foreign_hooks, quiet_runs


@attrs.frozen(kw_only=True)
class Ways:
    """What running the float blocks again has shown.

    Attributes:
        order: the numbers of all blocks, in the order in which passes call them.
        hooked: blocks of whose function the user's hooks are a part.
        dependent: blocks that depend on more than their arguments, such as what an earlier block has left
            somewhere: only whole passes of the model show what they read.
        hooked_passes: whether the user's hooks are a part of the model's function.
    """

    order: tuple[int, ...]
    hooked: frozenset[int] = frozenset()
    dependent: frozenset[int] = frozenset()
    hooked_passes: bool = False


def find_ways(calls: BlockCalls, passes: Passes) -> Ways:
    """Run the blocks as they were called in the first passes, and compare what they give.

    The blocks are run one after the other, each on all calls, as they will be later: so one that reads what
    an earlier block has left finds it as the last call left it, and gives something else. What comes after
    such a block is taken to depend on it. A block that gives different results for other random numbers
    cannot be compared, nor can those behind it.
    """
    order = tuple(calls.flow.order(len(calls.blocks)))
    hooked_passes = needs_hooks(calls, passes)
    if calls.flow.has_loops and passes.are_whole:
        return Ways(order=order, dependent=frozenset(order), hooked_passes=hooked_passes)
    hooked, dependent = _compared(calls, order)
    return Ways(order=order, hooked=hooked, dependent=dependent, hooked_passes=hooked_passes)


def _compared(calls: BlockCalls, order: tuple[int, ...]) -> tuple[frozenset[int], frozenset[int]]:
    """Return which blocks need the user's hooks, and which more than their arguments."""
    hooked, outputs, last = set[int](), dict[FromBlock, Tensor](), calls.last_reads(order)
    for position, number in enumerate(order):
        trial = _Trial(calls, number, outputs)
        if trial.agrees(with_hooks=False):
            pass
        elif has_foreign_hooks(calls.blocks[number]) and trial.agrees(with_hooks=True):
            hooked.add(number)
        elif trial.is_random():
            rest = (each for each in order[position:] if has_foreign_hooks(calls.blocks[each]))
            return frozenset({*hooked, *rest}), frozenset()
        else:
            return frozenset(hooked), frozenset(order[position:])
        for place in [place for place in outputs if place not in last or last[place][0] == number]:
            del outputs[place]
    return frozenset(hooked), frozenset()


class _Trial:
    """The calls that the first passes made of a block, made again on `outputs` of those before it."""

    def __init__(self, calls: BlockCalls, number: int, outputs: dict[FromBlock, Tensor]) -> None:
        self._calls = calls
        self._number = number
        self._outputs = outputs
        self._count = sum(counts[number] for counts in calls.flow.counts[: calls.flow.trial_passes()])

    def agrees(self, *, with_hooks: bool) -> bool:
        """Return whether the block gives what it gave; if so, its outputs are among the `outputs`."""
        found = self._outputs_of(seed=0, with_hooks=with_hooks)
        if found is None:
            return False
        agree = all(
            self._calls.samples.agree(self._number, index, samples_of(list(tensors.values())))
            for index, tensors in enumerate(found)
        )
        for tensors in found if agree else ():
            self._outputs |= tensors
        return agree

    def is_random(self) -> bool:
        """Return whether the block gives something else for other random numbers."""
        results = [self._outputs_of(seed, with_hooks=True) for seed in (0, 1)]
        samples = [
            [samples_of(list(tensors.values())) for tensors in result]
            for result in results
            if result is not None
        ]
        return len(samples) == 2 and not all(itertools.starmap(same_samples, zip(*samples, strict=True)))

    def _outputs_of(self, seed: int, *, with_hooks: bool) -> list[dict[FromBlock, Tensor]] | None:
        """Return what each call gives; None if one raises."""
        block = self._calls.blocks[self._number]

        def run() -> list[dict[FromBlock, Tensor]]:
            torch.default_generator.manual_seed(seed)
            made = self._calls.run(self._number, self._outputs, keep=True)
            with keep_dequantized(block), quiet_runs(block, with_hooks=with_hooks):
                return list(itertools.islice(made, self._count))

        return attempted_twice(run)


def needs_hooks(calls: BlockCalls, passes: Passes) -> bool:
    """Return whether blocks give something else in the first passes if the user's hooks are left out."""
    if not has_foreign_hooks(passes.root) or not passes.are_whole:
        return False
    count = calls.flow.trial_passes()
    found = attempted_twice(lambda: _samples_without_hooks(calls, passes, count))
    if found is None:
        return True
    numbers = range(len(found))
    expected = [sum(counts[number] for counts in calls.flow.counts[:count]) for number in numbers]
    return expected != list(map(len, found)) or not all(
        calls.samples.agree(number, index, each)
        for number in numbers
        for index, each in enumerate(found[number])
    )


def _samples_without_hooks(calls: BlockCalls, passes: Passes, count: int) -> list[list[list[Tensor]]]:
    """Return, for each block, samples of what its calls in the first `count` passes give."""
    found: list[list[list[Tensor]]] = [[] for _ in calls.blocks]

    def note(number: int, args: object, kwargs: object, output: object) -> None:
        found[number].append(samples_of(tensor_leaves(output)))

    with quiet_runs(passes.root):
        handles = [after_call(block, partial(note, number)) for number, block in enumerate(calls.blocks)]
        try:
            for _ in itertools.islice(passes.run(), count):
                pass
        finally:
            for handle in handles:
                handle.remove()
    return found
