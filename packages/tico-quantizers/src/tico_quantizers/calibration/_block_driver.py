"""The one driver of algorithms that work block by block: it runs the blocks of a model again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Protocol, TypeVar

import attrs
from typing_extensions import Self

from tico_config import CalibrationError, Found, Problem
from tico_modules import keep_dequantized, return_free_memory
from tico_quantizers.calibration._attempts import attempted_twice
from tico_quantizers.calibration._block_calls import BlockCalls
from tico_quantizers.calibration._block_inputs import BlockInputs
from tico_quantizers.calibration._block_runs import BlockRuns, Finish
from tico_quantizers.calibration._called_once import LastLayer
from tico_quantizers.calibration._calls import FromBlock, Kept
from tico_quantizers.calibration._checkpoint import Checkpoint
from tico_quantizers.calibration._deal import Deal
from tico_quantizers.calibration._forward_watch import Calibration
from tico_quantizers.calibration._gram_memory import parts_within
from tico_quantizers.calibration._grouped_gram import GroupedGram
from tico_quantizers.calibration._input_grams import InputGrams
from tico_quantizers.calibration._quiet_runs import quiet_runs
from tico_quantizers.calibration._ranks import Ranks
from tico_quantizers.calibration._renewal import Renewal
from tico_quantizers.calibration._row_numbers import RowWatch
from tico_quantizers.calibration._shared_grams import SharedGrams
from tico_quantizers.calibration._stream import Stream
from tico_quantizers.calibration._token_weights import WITHOUT_DERIVATIVES, watch_sensitivity
from tico_quantizers.calibration._ways import find_ways
from tico_quantizers.layers import QuantizedWeight

UNPAIRED = (
    "which of the tokens it reads in the float model is not known, so it makes up for no earlier errors"
)
UNFINISHED = "it is in no block that could be compared with the float one"


T = TypeVar("T")


class Step(Protocol):
    """What an algorithm does with the layers of a block."""

    def learn(
        self, paths: tuple[str, ...], statistics: Mapping[str, GroupedGram | int]
    ) -> list[QuantizedWeight]:
        """Take what the layers at `paths` have read, of an expert that read too little the number of tokens.

        It changes nothing in the model, and returns the weights that `put_all` is to put into it.
        """

    def put_all(self, paths: tuple[str, ...], weights: list[QuantizedWeight]) -> None:
        """Put the `weights` of the layers at `paths`, just found or kept in a checkpoint, into the model."""


def replay_blocks(
    inputs: BlockInputs, step: Step, checkpoint: Checkpoint, finish: Finish | None = None
) -> None:
    """Run every block again, as `run_blocks` does where nothing was adopted."""
    walk, kept = _BlockWalk(inputs), _KeptByFirst(checkpoint, inputs.ranks)
    for number in walk.ways.order:
        paths, name = inputs.paths_in(number), f"block-{number:05d}"
        walk.meet()
        saved = kept.load(name, paths) if paths else []
        if saved is None:
            weights = []
            for stage in walk.stages(paths):
                found = walk.finished(list(walk.learn(stage, step)), finish)
                step.put_all(stage, found)
                weights += found
            kept.save(name, weights)
        else:
            walk.pass_by()
            step.put_all(paths, saved)
        walk.advance()
    if finish is not None:
        inputs.note(inputs.paths_in(None), UNFINISHED)
    _run_outside(inputs, step, kept)


@attrs.frozen(eq=False)
class _KeptByFirst:
    """A checkpoint of which the first of the ranks alone reads and writes the files, for all of them."""

    checkpoint: Checkpoint
    ranks: Ranks

    def load(self, name: str, paths: tuple[str, ...]) -> list[QuantizedWeight] | None:
        kept = self.ranks.first("a checkpoint", lambda: self.checkpoint.read(name))
        return None if kept is None else self.checkpoint.restored(kept, paths)

    def save(self, name: str, weights: list[QuantizedWeight]) -> None:
        if self.ranks.number == 0:
            self.checkpoint.save(name, weights)


def _run_outside(inputs: BlockInputs, step: Step, kept: _KeptByFirst) -> None:
    paths, name = inputs.paths_in(None), "outside"
    saved = kept.load(name, paths) if paths else []
    found = step.learn(paths, inputs.statistics(paths, inputs.outside)) if saved is None else saved
    if saved is None:
        kept.save(name, found)
    step.put_all(paths, found)


class _BlockWalk:
    """Where the driver stands: at one block, with the outputs of those before it at hand.

    With `paired` or `compared` those of the float model are, too. A block is then to be met while its weights
    are float still: by `learn`, and with `compared` by `finished`, or by `pass_by`.
    """

    def __init__(self, inputs: BlockInputs) -> None:
        self._inputs = inputs
        self._options = inputs.options
        self._passes = inputs.passes
        ranks = inputs.ranks  # what is compared bit for bit is decided by one of them
        self.ways = ranks.first("how blocks run", lambda: find_ways(inputs.calls, inputs.passes))
        self._require_independent()
        self._stream = self._begin(inputs.calls)
        self._float = self._begin(inputs.calls) if inputs.options.is_in_step else None
        self._position = 0
        self._is_changed = False
        self._renewal = Renewal(inputs.passes)
        inputs.begin_notes()

    def _begin(self, calls: BlockCalls, position: int = 0) -> Stream:
        alone = not (self.ways.dependent or self._options.compared)
        deal = Deal.of(self._inputs.ranks, calls, alone=alone)
        return Stream(calls, self._passes, self.ways, self._options.forward_dtype, deal, position)

    def _require_independent(self) -> None:
        """Refuse blocks that only whole passes can show, where there are none, or two models in step."""
        if not self.ways.dependent or (self._passes.are_whole and not self._options.is_in_step):
            return
        number = next(number for number in self.ways.order if number in self.ways.dependent)
        sentence = "it depends on more than its arguments, such as what another block has left in an object"
        remedy = "run data through the whole model, with arguments that can be copied"
        raise CalibrationError(
            Problem(
                module=self._inputs.block_paths[number],
                field="arguments",
                value=Found("a block that gives something else when it is called by itself"),
                expected="a block that is a function of its arguments",
                sentence=sentence,
                remedy=f"{remedy}, and leave asymmetric at 0" if self._options.paired else remedy,
            )
        )

    @property
    def _number(self) -> int:
        return self.ways.order[self._position]

    def meet(self) -> None:
        """Have what this block and later ones are given anew, if it does not follow from earlier blocks.

        What stands between two chains of blocks, such as a norm or a merging of patches, then reads what the
        changed blocks give.
        """
        number, calls = self._number, self._stream.calls
        renewed = not self._options.fixed and self._passes.are_whole and number not in self.ways.dependent
        if renewed and self._is_changed and calls.accepted[number]:
            with self._quiet(whole=True):
                due = self._inputs.ranks.first("renewal", lambda: self._renewal.is_due(calls, number))
                if due:
                    passes = self._passes.run(self._options.forward_dtype)
                    calls = calls.again(self._passes.root, passes, self.ways.order[self._position :])
                    self._stream = self._begin(calls, self._position)
                    self._renewal.forget()
        self._renewal.pass_on(calls, number)

    def _quiet(self, *, whole: bool = False) -> AbstractContextManager[None]:
        """Return a context in which the block, or the `whole` model, is run without the user's notice."""
        if whole or self._number in self.ways.dependent:
            return quiet_runs(self._passes.root, with_hooks=self.ways.hooked_passes)
        block = self._stream.calls.blocks[self._number]
        return quiet_runs(block, with_hooks=self._number in self.ways.hooked)

    def learn(self, paths: tuple[str, ...], step: Step) -> Iterator[QuantizedWeight]:
        """Yield what `step` makes of what the layers at `paths` read, as many at a time as memory allows."""
        layers, options = {path: self._inputs.layers[path] for path in paths}, self._options
        sharing = partial(self._sharing, paths)
        parts = parts_within(layers, options.gram_memory, sharing, paired=options.paired)
        for number, part in enumerate(parts, 1):
            # Without a name for what was read, which then is gone before the next part is.
            yield from step.learn(part, self._statistics(part, is_last=number == len(parts)))

    def _sharing(self, paths: tuple[str, ...], *, first: bool = False) -> list[frozenset[str]]:
        """Return which of the layers at `paths` read the same when the block is run: all calls or the first.

        They are in the order in which they first do. Whether the block has derivatives is found for all of
        them, before any of them is replaced.
        """
        deal, number = self._stream.deal, self._number

        def look() -> list[tuple[int, list[frozenset[str]]]]:
            grams, found = self._grams(paths), []
            own = deal.own(number) if deal.is_split else itertools.count()
            looked = itertools.takewhile(lambda index: index == 0 or not first, own)
            with _Watched(self._stream.calls, number, grams):
                for index, _ in zip(looked, self._stream.runs(), strict=False):
                    found.append((index, grams.sharing()))
                    grams.drop_unfinished()
            return found

        def look_together() -> list[tuple[int, list[frozenset[str]]]]:
            told = deal.ranks.together("who reads the same", look) if deal.is_split else [look()]
            return list(itertools.chain(*told))

        with self._quiet():
            by_call = sorted(self._weighed(paths, look_together), key=lambda each: each[0])
            return list(dict.fromkeys(readers for _, shared in by_call for readers in shared))

    def _statistics(self, paths: tuple[str, ...], *, is_last: bool) -> dict[str, GroupedGram | int]:
        return self._inputs.statistics(paths, self._gathered(paths, is_last=is_last), self._inputs.strays)

    def _gathered(self, paths: tuple[str, ...], *, is_last: bool) -> InputGrams:
        """Return what the layers at `paths` read when the block is run on the data, the last time or not."""
        stream = self._stream

        def gather() -> InputGrams:
            if self._float is not None and self._options.paired:
                runs = self._float.last_runs(at_once=False) if is_last else self._float.runs()
                return self._gather_pairs(paths, runs)
            ends = self._options.fixed and is_last
            return self._gather(paths, stream.last_runs() if ends else stream.runs())

        with self._quiet():
            return self._weighed(paths, gather)

    def _weighed(self, paths: tuple[str, ...], gather: Callable[[], T]) -> T:
        """Return what `gather` does; without derivatives if the block has none."""
        weighed = [path for path, weights in self._inputs.token_weights(paths).items() if weights == "auto"]
        if not weighed:
            return gather()
        found = attempted_twice(gather)
        if found is None:
            self._inputs.alike |= {*weighed}
            self._inputs.note(weighed, WITHOUT_DERIVATIVES)
        return gather() if found is None else found

    def finished(self, weights: list[QuantizedWeight], finish: Finish | None) -> list[QuantizedWeight]:
        """Return what `finish` makes of the weights of the block, which is float still."""
        if finish is None or self._float is None:
            return weights
        wanted: dict[FromBlock, Kept] = {}
        with self._quiet():
            for _ in self._float.last_runs(into=wanted):
                pass
            runs = BlockRuns(self._stream, wanted)
            with keep_dequantized(self._stream.calls.blocks[self._number]):
                return self._inputs.ranks.first("the end of a block", lambda: finish(weights, runs))

    def pass_by(self) -> None:
        """Run the float block, if that is needed, without learning from it."""
        if self._float is not None:
            with self._quiet():
                self._float.advance()

    def stages(self, paths: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Return `paths` in the parts that are learned from one after the other.

        With `true_sequential` these are the layers that read the same, in the order in which the first call
        of the block reads it. Those that it does not reach come last.
        """
        if not self._options.true_sequential:
            return [paths]
        waiting = dict.fromkeys(paths)
        stages = []
        for readers in self._sharing(paths, first=True):
            stage = tuple(path for path in waiting if path in readers)
            waiting = {path: None for path in waiting if path not in readers}
            stages += [stage] if stage else []
        return [*stages, tuple(waiting)] if waiting else stages

    def advance(self) -> None:
        """Go on to the next block, on what this one gives."""
        self._is_changed |= bool(self._inputs.paths_in(self._number))
        if self._stream.position == self._position:
            with self._quiet():
                self._stream.advance()
        self._position += 1
        if self._options.offload is not None:
            return_free_memory()

    def _gather(self, paths: tuple[str, ...], calls: Iterator[None]) -> InputGrams:
        grams, number = self._grams(paths), self._number
        may_end = self._may_end(number)
        is_short = may_end and self._inputs.holds_all(number) and number not in self.ways.hooked
        with _Watched(self._stream.calls, number, grams, may_end=may_end, is_short=is_short) as watched:

            def make(count: int | None = None) -> None:
                for _ in itertools.islice(calls, count):
                    watched.collector.accept()

            self._learn(grams, make)
            next(calls, None)
        return grams

    def _learn(self, grams: InputGrams, make: Callable[[int | None], None]) -> None:
        """Let `make` make the calls of the block, all of them or as many as a rank does in each round."""
        deal, number = self._stream.deal, self._number
        if not isinstance(grams, SharedGrams):
            make(None)
            return
        for turn in range(deal.rounds):
            grams.exchange(partial(make, deal.of_round(number, turn)))
        grams.join()

    def _may_end(self, number: int) -> bool:
        """Whether a call of the block may end at its last layer, as nothing after it matters."""
        once = not self._options.fixed and self._inputs.called_once.holds(number)
        alone = number not in self.ways.dependent
        return once and alone and not self._stream.calls.shares_objects(number)

    def _gather_pairs(self, paths: tuple[str, ...], float_calls: Iterator[None]) -> InputGrams:
        """Return the same, each input beside the one that the float model has in its place."""
        grams, number = self._grams(paths, asymmetric=True), self._number
        blocks, calls = self._stream.calls, self._stream.runs()

        def make(count: int | None = None) -> None:
            for _ in range(len(self._stream.deal.own(number)) if count is None else count):
                twins = InputGrams(grams.layers, numbering=RowWatch())
                with _Watched(blocks, number, twins):
                    next(float_calls, None)
                with _Watched(blocks, number, grams) as watched:
                    next(calls)
                    grams.pair_with(twins)
                    watched.collector.accept()

        self._learn(grams, make)
        next(float_calls, None)
        self._inputs.note(sorted(grams.unpaired), UNPAIRED)
        return grams

    def _grams(self, paths: tuple[str, ...], *, asymmetric: bool = False) -> InputGrams:
        layers = {path: self._inputs.layers[path] for path in paths}
        weights = self._inputs.token_weights(layers)
        tokens, numbering = self._stream.calls.tokens, RowWatch() if asymmetric else None
        deal = self._stream.deal
        if deal.is_split:
            return SharedGrams(
                layers, weights, ranks=deal.ranks, tokens=tokens, asymmetric=asymmetric, numbering=numbering
            )
        return InputGrams(
            layers, weights, tokens=tokens, disposable=True, asymmetric=asymmetric, numbering=numbering
        )


class _Watched:
    """Hooks by which `grams` learn from a block, and weigh what they learn, while the context lasts.

    If it `may_end`, what the block does after the last layer is left out, unless it decides on the weights.
    If it `is_short`, the weights do not need the product of the last layer, see `watch_sensitivity`.
    """

    def __init__(
        self,
        calls: BlockCalls,
        number: int,
        grams: InputGrams,
        *,
        may_end: bool = False,
        is_short: bool = False,
    ) -> None:
        self.collector = Calibration(grams)
        self.collector.in_forward = True
        block = calls.blocks[number]
        numbering = grams.numbering.watch(block) if grams.numbering is not None else []
        learning = grams.watch(self.collector)
        weighing = watch_sensitivity(block, grams, is_short=is_short)
        ending = LastLayer(grams.layers).watch(block) if may_end and not weighing else []
        # Last, so that what is padding is known still when the weights are computed.
        self._handles = numbering + learning + weighing + ending + calls.tokens.watch(block)

    def __enter__(self) -> Self:
        """Start."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
