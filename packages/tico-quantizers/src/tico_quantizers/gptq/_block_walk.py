"""The blocks of a model, run again one by one, each on what the quantized ones before it give."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from tico_quantizers._block_calls import BlockCalls
from tico_quantizers._calls import Kept
from tico_quantizers._forward_watch import Calibration
from tico_quantizers._input_grams import InputGrams
from tico_quantizers.gptq._plan import Target, layers_of, weights_of
from tico_quantizers.gptq._token_weights import WITH_GRADIENTS, watch_sensitivity


class BlockWalk:
    """Where a conversion stands: at the block `number`, with the outputs of the one before it at hand.

    A block draws the same random numbers in each of its passes, whatever was run before.
    """

    def __init__(self, calls: BlockCalls, forward_dtype: torch.dtype | None = None) -> None:
        self.number = 0
        self._calls = calls
        self._forward_dtype = forward_dtype
        self._outputs: dict[tuple[int, int], Kept] = {}

    def grams(self, targets: tuple[Target, ...]) -> InputGrams:
        """Return what `targets` read when the block is run on the data."""
        return self._grams(targets, self._run(keep=False))

    def stages(self, targets: tuple[Target, ...]) -> list[tuple[Target, ...]]:
        """Return `targets` by what they read, in the order in which the first call of the block reads it.

        Those that it does not reach come last.
        """
        grams = self._grams(targets, itertools.islice(self._run(keep=False), 1))
        waiting = {target.path: target for target in targets}
        stages = []
        for readers in grams.readers():
            stage = tuple(waiting.pop(path) for path in list(waiting) if path in readers)
            stages += [stage] if stage else []
        return [*stages, tuple(waiting.values())] if waiting else stages

    def advance(self) -> None:
        """Go on to the next block, on what this one gives."""
        found: dict[tuple[int, int], Kept] = {}
        if self.number + 1 < len(self._calls.blocks):
            wanted = self._calls.wanted_by_next(self.number)
            done = self._calls.last_reads(self.number)
            store = self._calls.store.another()
            for index, tensors in enumerate(self._run(keep=True) if wanted else ()):
                found |= {key: store.keep(tensors[key]) for key in tensors if key in wanted}
                for key in done.get(index, ()):
                    del self._outputs[key]
        self._outputs = found
        self.number += 1

    def _grams(
        self, targets: tuple[Target, ...], passes: Iterator[dict[tuple[int, int], torch.Tensor]]
    ) -> InputGrams:
        grams = InputGrams(layers_of(targets), weights_of(targets), disposable=True)
        collector = Calibration(grams)
        collector.in_forward = True
        handles = grams.watch(collector) + watch_sensitivity(self._calls.blocks[self.number], grams)
        try:
            for _ in passes:
                collector.accept()
        except RuntimeError as error:
            if "auto" in grams.token_weights.values():
                error.add_note(WITH_GRADIENTS)
            raise
        finally:
            for handle in handles:
                handle.remove()
        return grams

    def _run(self, *, keep: bool) -> Iterator[dict[tuple[int, int], torch.Tensor]]:
        torch.default_generator.manual_seed(self.number)
        return self._calls.run(self.number, self._outputs, keep=keep, forward_dtype=self._forward_dtype)
