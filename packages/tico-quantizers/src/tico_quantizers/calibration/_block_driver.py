"""The one driver of algorithms that work block by block: it runs the blocks of a model again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Protocol

import torch
from typing_extensions import Self

from tico_modules import keep_dequantized
from tico_quantizers.calibration._block_calls import BlockCalls
from tico_quantizers.calibration._block_inputs import BlockInputs
from tico_quantizers.calibration._called_once import LastLayer
from tico_quantizers.calibration._calls import Kept
from tico_quantizers.calibration._checkpoint import Checkpoint
from tico_quantizers.calibration._forward_watch import Calibration
from tico_quantizers.calibration._grouped_gram import GroupedGram
from tico_quantizers.calibration._input_grams import InputGrams
from tico_quantizers.calibration._token_weights import WITH_GRADIENTS, watch_sensitivity
from tico_quantizers.layers import QuantizedWeight


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


class Step(Protocol):
    """What an algorithm does with the layers of a block."""

    def learn(
        self, paths: tuple[str, ...], statistics: Mapping[str, GroupedGram | int]
    ) -> list[QuantizedWeight]:
        """Take what the layers at `paths` have read, of an expert that read too little the number of tokens.

        The step may replace these layers in the model, unless the blocks are `fixed`. It returns the weights
        to be kept in a checkpoint.
        """

    def put_all(self, paths: tuple[str, ...], weights: list[QuantizedWeight]) -> None:
        """Put the `weights` of the layers at `paths`, which a checkpoint has kept, into the model."""


def run_blocks(inputs: BlockInputs, step: Step, checkpoint: Checkpoint) -> None:
    """Run every block again, and let `step` learn from each; then from the layers outside of blocks.

    Call it within `unchanged_process`, while the model is as it was recorded.

    Raises:
        CalibrationError: a layer that is no expert has read nothing.
        ArtifactError: a file of the checkpoint was changed.
    """
    walk = _BlockWalk(inputs)
    for number in range(len(inputs.blocks)):
        paths, name = inputs.paths_in(number), f"block-{number:05d}"
        saved = checkpoint.load(name, paths) if paths else []
        if saved is None:
            weights = []
            for stage in walk.stages(paths):
                weights += step.learn(stage, inputs.statistics(stage, walk.gather(stage), inputs.strays))
            checkpoint.save(name, weights)
        else:
            walk.pass_by()
            step.put_all(paths, saved)
        walk.advance()
    _run_outside(inputs, step, checkpoint)


def _run_outside(inputs: BlockInputs, step: Step, checkpoint: Checkpoint) -> None:
    paths, name = inputs.paths_in(None), "outside"
    saved = checkpoint.load(name, paths) if paths else []
    if saved is None:
        checkpoint.save(name, step.learn(paths, inputs.statistics(paths, inputs.outside)))
    else:
        step.put_all(paths, saved)


class _BlockWalk:
    """Where the driver stands: at one block, with the outputs of the one before it at hand.

    With `paired` those of the float model are, too. A block is then to be met by either `gather` or
    `pass_by` while its weights are float still.
    """

    def __init__(self, inputs: BlockInputs) -> None:
        self._inputs = inputs
        self._calls = inputs.calls
        self._options = inputs.options
        self._stream = _Stream(inputs.calls, inputs.options.forward_dtype)
        self._float = _Stream(inputs.calls, inputs.options.forward_dtype) if inputs.options.paired else None
        self._number = 0

    def gather(self, paths: tuple[str, ...]) -> InputGrams:
        """Return what the layers at `paths` read when the block is run on the data."""
        if self._float is not None:
            return self._gather_pairs(paths, self._float.last_calls())
        stream = self._stream
        return self._gather(paths, stream.last_calls() if self._options.fixed else stream.calls())

    def pass_by(self) -> None:
        """Run the float block, if that is needed, without learning from it."""
        if self._float is not None:
            self._float.advance()

    def stages(self, paths: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Return `paths` in the parts that are learned from one after the other.

        With `true_sequential` these are the layers that read the same, in the order in which the first call
        of the block reads it. Those that it does not reach come last.
        """
        if not self._options.true_sequential:
            return [paths]
        grams = self._gather(paths, itertools.islice(self._stream.calls(), 1))
        waiting = dict.fromkeys(paths)
        stages = []
        for readers in grams.readers():
            stage = tuple(path for path in waiting if path in readers)
            waiting = {path: None for path in waiting if path not in readers}
            stages += [stage] if stage else []
        return [*stages, tuple(waiting)] if waiting else stages

    def advance(self) -> None:
        """Go on to the next block, on what this one gives."""
        if self._stream.number == self._number:
            self._stream.advance()
        self._number += 1

    def _gather(self, paths: tuple[str, ...], calls: Iterator[None]) -> InputGrams:
        grams, number = self._grams(paths), self._number
        with _Watched(self._calls, number, grams, may_end=self._may_end(number)) as watched:
            for _ in calls:
                watched.collector.accept()
        return grams

    def _may_end(self, number: int) -> bool:
        """Whether a call of the block may end at its last layer, as nothing after it matters."""
        once = not self._options.fixed and self._inputs.called_once.holds(number)
        return once and not self._calls.shares_objects(number)

    def _gather_pairs(self, paths: tuple[str, ...], float_calls: Iterator[None]) -> InputGrams:
        """Return the same, each input beside the one that the float model has in its place."""
        grams, number = self._grams(paths, asymmetric=True), self._number
        calls = self._stream.calls()
        for _ in range(len(self._calls.accepted[number])):
            twins = InputGrams(grams.layers)
            with _Watched(self._calls, number, twins):
                next(float_calls, None)
            with _Watched(self._calls, number, grams) as watched:
                next(calls)
                grams.pair_with(twins)
                watched.collector.accept()
        next(float_calls, None)
        return grams

    def _grams(self, paths: tuple[str, ...], *, asymmetric: bool = False) -> InputGrams:
        layers = {path: self._inputs.layers[path] for path in paths}
        weights = self._inputs.token_weights(layers)
        return InputGrams(layers, weights, tokens=self._calls.tokens, disposable=True, asymmetric=asymmetric)


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
        # Last, so that what is padding is known still when the weights are computed.
        self._handles = learning + weighing + ending + calls.tokens.watch(block)

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
