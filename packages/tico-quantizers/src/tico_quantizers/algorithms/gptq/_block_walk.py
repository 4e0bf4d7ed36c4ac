"""The blocks of a model, run again one by one, each on what the quantized ones before it give."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import TracebackType

import torch
from typing_extensions import Self

from tico_modules import keep_dequantized
from tico_quantizers.algorithms.gptq._plan import Target, layers_of, weights_of
from tico_quantizers.calibration import (
    WITH_GRADIENTS,
    BlockCalls,
    Calibration,
    CalledOnce,
    InputGrams,
    Kept,
    LastLayer,
    watch_sensitivity,
)


class _Stream:
    """What goes from block to block in one version of the model: the outputs before the block `number`.

    A call of a block draws the same random numbers in each of its passes, whatever was run before.
    """

    def __init__(self, calls: BlockCalls, forward_dtype: torch.dtype | None) -> None:
        self.number = 0
        self._calls = calls
        self._forward_dtype = forward_dtype
        self._outputs: dict[tuple[int, int], Kept] = {}

    def calls(self) -> Iterator[None]:
        """Make each call of the block."""
        return (None for _ in self._run(keep=False))

    def last_calls(self) -> Iterator[None]:
        """Make each call of the block for the last time, and go on to the next block."""
        found: dict[tuple[int, int], Kept] = {}
        wanted, done = self._wanted(), self._calls.last_reads(self.number)
        store = self._calls.store.another()
        for index, tensors in enumerate(self._run(keep=True)):
            found |= {key: store.keep(tensors[key]) for key in tensors if key in wanted}
            for key in done.get(index, ()):
                del self._outputs[key]
            yield
        self._outputs = found
        self.number += 1

    def advance(self) -> None:
        """Go on to the next block, for which this one is run only if it reads what this one gives."""
        if self._wanted():
            for _ in self.last_calls():
                pass
        else:
            self._outputs = {}
            self.number += 1

    def _wanted(self) -> frozenset[tuple[int, int]]:
        is_last = self.number + 1 == len(self._calls.blocks)
        return frozenset() if is_last else self._calls.wanted_by_next(self.number)

    def _run(self, *, keep: bool) -> Iterator[dict[tuple[int, int], torch.Tensor]]:
        made = self._calls.run(self.number, self._outputs, keep=keep, forward_dtype=self._forward_dtype)
        with keep_dequantized(self._calls.blocks[self.number]):
            for index in range(len(self._calls.accepted[self.number])):
                torch.default_generator.manual_seed(self.number + index * len(self._calls.blocks))
                yield next(made)


class BlockWalk:
    """Where a conversion stands: at one block, with the outputs of the quantized one before it at hand.

    With `asymmetric` those of the float model are, too. A block is then to be met by either `grams` or
    `pass_by` while its weights are float still.
    """

    def __init__(
        self,
        calls: BlockCalls,
        forward_dtype: torch.dtype | None = None,
        *,
        called_once: CalledOnce,
        asymmetric: bool = False,
    ) -> None:
        self._calls = calls
        self._called_once = called_once
        self._stream = _Stream(calls, forward_dtype)
        self._float = _Stream(calls, forward_dtype) if asymmetric else None

    def grams(self, targets: tuple[Target, ...]) -> InputGrams:
        """Return what `targets` read when the block is run on the data."""
        if self._float is None:
            return self._grams(targets, self._stream.calls())
        return self._paired_grams(targets, self._float.last_calls())

    def pass_by(self) -> None:
        """Run the float block, if that is needed, without learning from it."""
        if self._float is not None:
            self._float.advance()

    def stages(self, targets: tuple[Target, ...]) -> list[tuple[Target, ...]]:
        """Return `targets` by what they read, in the order in which the first call of the block reads it.

        Those that it does not reach come last.
        """
        grams = self._grams(targets, itertools.islice(self._stream.calls(), 1))
        waiting = {target.path: target for target in targets}
        stages = []
        for readers in grams.readers():
            stage = tuple(waiting.pop(path) for path in list(waiting) if path in readers)
            stages += [stage] if stage else []
        return [*stages, tuple(waiting.values())] if waiting else stages

    def advance(self) -> None:
        """Go on to the next block, on what this one gives."""
        self._stream.advance()

    def _grams(self, targets: tuple[Target, ...], calls: Iterator[None]) -> InputGrams:
        grams = InputGrams(layers_of(targets), weights_of(targets), disposable=True)
        number = self._stream.number
        may_end = self._called_once.holds(number) and not self._calls.shares_objects(number)
        with _Watched(self._calls, number, grams, may_end=may_end) as watched:
            for _ in calls:
                watched.collector.accept()
        return grams

    def _paired_grams(self, targets: tuple[Target, ...], float_calls: Iterator[None]) -> InputGrams:
        """Return the same, each input beside the one that the float model has in its place."""
        number, layers = self._stream.number, layers_of(targets)
        grams = InputGrams(layers, weights_of(targets), disposable=True, asymmetric=True)
        calls = self._stream.calls()
        for _ in range(len(self._calls.accepted[number])):
            twins = InputGrams(layers)
            with _Watched(self._calls, number, twins):
                next(float_calls, None)
            with _Watched(self._calls, number, grams) as watched:
                next(calls)
                grams.pair_with(twins)
                watched.collector.accept()
        next(float_calls, None)
        return grams


class _Watched:
    """Hooks by which `grams` learn from a block, and weigh what they learn, while the context lasts.

    If it `may_end`, what the block does after the last layer is left out, unless it decides on the weights.
    """

    def __init__(self, calls: BlockCalls, number: int, grams: InputGrams, *, may_end: bool = False) -> None:
        self.collector = Calibration(grams)
        self.collector.in_forward = True
        self._grams = grams
        block = calls.blocks[number]
        learning, weighing = grams.watch(self.collector), watch_sensitivity(block, grams)
        ending = LastLayer(grams.layers).watch(block) if may_end and not weighing else []
        self._handles = learning + weighing + ending

    def __enter__(self) -> Self:
        """Start."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        if isinstance(error, RuntimeError) and "auto" in self._grams.token_weights.values():
            error.add_note(WITH_GRADIENTS)
