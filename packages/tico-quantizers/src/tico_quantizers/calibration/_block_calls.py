"""The calls of every block during the user's own passes, so that the blocks can be run one by one."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial

import attrs
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tico_modules import Edit
from tico_quantizers.calibration._activation_store import ActivationStore
from tico_quantizers.calibration._block_flow import BlockFlow, Samples
from tico_quantizers.calibration._call_template import CallTemplate
from tico_quantizers.calibration._calls import (
    Call,
    FromBlock,
    Kept,
    Replay,
    leaves_of,
    share_objects,
    tensor_leaves,
    with_leaves,
)
from tico_quantizers.calibration._forward_watch import Calibration, Recorder
from tico_quantizers.calibration._hooks import after_call, before_call
from tico_quantizers.calibration._masks import Statement
from tico_quantizers.calibration._real_tokens import RealTokens
from tico_quantizers.calibration._snapshots import Snapshots, revision


class NothingMore(Exception):  # noqa: N818  # it is none
    """Ends a call of which nothing more is to be learned.

    An exception, so that the hooks that are always called are.
    """


@attrs.frozen(eq=False)
class _Output:
    """A tensor that a block gave, as long as it lives: which one it is, and what it was then."""

    place: FromBlock
    tensor: weakref.ref[Tensor]
    revision: int

    def is_still(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and self.revision == revision(tensor)


class BlockCalls(Recorder):
    """What each block was called with.

    Only the hidden states that the first block gets are kept. Where an argument is the output of an earlier
    block, its place is noted instead. Other arguments (a mask, an output that something has written to since)
    are kept as they were in that pass. An object that every block is given, such as a cache, is kept for each
    block in the state in which that block got it.

    The tensors are kept in `store`. Those that stand where other calls have an output of an earlier block are
    hidden states, which the store may keep in fewer bits. `template` says how the calls of the pass that has
    ended follow from the first. With `whole` the only block is the model itself, and each pass is a call of
    it.
    """

    def __init__(
        self, blocks: tuple[nn.Module, ...], store: ActivationStore | None = None, *, whole: bool = False
    ) -> None:
        self.blocks = blocks
        self._whole = whole
        self._pass: tuple[Calibration, Call] | None = None
        self.store = store or ActivationStore()
        self.tokens = RealTokens()
        self._accepted: list[list[Call]] = [[] for _ in blocks]
        self._unfinished: list[list[Call]] = [[] for _ in blocks]
        self._outputs: dict[int, _Output] = {}
        self._snapshots = Snapshots()
        self._running = 0
        self.template: CallTemplate | None = None
        self.flow = BlockFlow()
        self.samples = Samples()

    @property
    def is_running(self) -> bool:
        """Whether a block is being called."""
        return self._running > 0 or (self._pass is not None and self._pass[0].in_forward)

    def watch(self, calibration: Calibration, numbers: Sequence[int] | None = None) -> list[RemovableHandle]:
        """Set the hooks that tell it, while `calibration` watches, what blocks get and give.

        Without `numbers`, on all blocks.
        """
        handles: list[RemovableHandle] = []
        for number in range(len(self.blocks)) if numbers is None else numbers:
            block = self.blocks[number]
            begin, end = partial(self._begin, calibration, number), partial(self._end, calibration, number)
            # In front of the user's own hooks, which will see what it has kept when the block runs again.
            handles.append(before_call(block, begin, calibration, first=True))
            handles.append(after_call(block, end, calibration))
        return handles

    def _begin(
        self, calibration: Calibration, number: int, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        calibration.require_own_pass()
        if self._whole:  # the pass is about to begin, with which all that no pass has accepted is forgotten
            self._pass = calibration, self._snapshots.take(args, kwargs, lambda _: None)
            return
        if not calibration.in_forward:
            self.drop_calls()
        self.note_call(number, args, kwargs, calibration.tokens.now(args, kwargs))

    def _end(
        self, calibration: Calibration, number: int, args: object, kwargs: object, output: object
    ) -> None:
        calibration.require_own_pass()
        if self._pass is not None:
            call, self._pass = self._pass[1], None
            self.flow.note(number)
            self._unfinished[number].append(attrs.evolve(call, said=calibration.tokens.now()))
        self.note_output(number, output)
        calibration.accept_unless_in_forward()

    def drop_unfinished(self) -> None:
        """Forget the calls of a pass that did not end."""
        self.drop_calls()
        self._outputs = {}

    def drop_calls(self) -> None:
        """Forget the calls that no accepted pass has made."""
        self._unfinished = [[] for _ in self.blocks]
        self._running = 0
        self.flow.drop_unfinished()

    def digest(self) -> None:
        """Put the tensors of the pass that has ended into the store."""
        self.template = CallTemplate.of(self._unfinished)
        whole = [leaves_of(call) for calls in self._unfinished for call in calls]
        hidden = {
            index for leaves in whole for index, leaf in enumerate(leaves) if isinstance(leaf, FromBlock)
        }
        stored: dict[tuple[int, bool], object] = {}

        def kept(leaf: object, exactly: bool) -> object:
            if not isinstance(leaf, Tensor):
                return leaf
            key = id(leaf), exactly
            if key not in stored:
                stored[key] = self.store.keep(leaf, exactly=exactly)
            return stored[key]

        self._unfinished = [
            [
                with_leaves(
                    call, [kept(leaf, index not in hidden) for index, leaf in enumerate(leaves_of(call))]
                )
                for call in calls
            ]
            for calls in self._unfinished
        ]

    def accept(self) -> None:
        """Count the calls of the pass that has ended."""
        for accepted, new in zip(self._accepted, self._unfinished, strict=True):
            accepted.extend(new)
        self.flow.accept([len(new) for new in self._unfinished])
        self._unfinished = [[] for _ in self.blocks]
        self._running = 0
        self._snapshots.forget_gone()  # a pass that ends early ends before its block does

    def tell(self) -> object:
        """Return the calls, the order of the blocks, and samples of what they gave."""
        return _Told(self._accepted, self.flow, self.samples)

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Have recorded the calls of all ranks."""
        all_told = [each for each in told if isinstance(each, _Told)]
        calls: list[list[Call]] = [[] for _ in self.blocks]
        for each in all_told:
            before, taken = list(map(len, calls)), dict[int, object]()
            for known, new in zip(calls, each.calls, strict=True):
                known += [self._behind(before, call, taken) for call in new]
        edit.set_attribute(self, "_accepted", calls)
        edit.set_attribute(self, "flow", BlockFlow.joined(each.flow for each in all_told))
        pairs = ((each.samples, each.flow.counts) for each in all_told)
        edit.set_attribute(self, "samples", Samples.joined(pairs))

    def _behind(self, before: Sequence[int], call: Call, taken: dict[int, object]) -> Call:
        """Return a call of another rank, whose calls of each block come behind so many."""

        def moved(leaf: object) -> object:
            if isinstance(leaf, FromBlock):
                return attrs.evolve(leaf, call=leaf.call + before[leaf.block])
            if id(leaf) not in taken:
                taken[id(leaf)] = self.store.taken(leaf)
            return taken[id(leaf)]

        return with_leaves(call, [moved(leaf) for leaf in leaves_of(call)])

    def rest_is_known(self, template: CallTemplate) -> bool:
        """Whether the calls of this pass follow by `template` from that of the first block, the only one."""
        first, *others = self._unfinished
        return len(first) == 1 and not any(others) and template.fits(first[0])

    def complete(self, template: CallTemplate) -> None:
        """Note the calls that the other blocks of the pass that goes on would have got."""
        numbers = [len(accepted) for accepted in self._accepted]
        made = template.calls(self._unfinished[0][0], numbers)
        self._unfinished = [self._unfinished[0], *([call] for call in made)]

    def note_call(
        self,
        number: int,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        said: tuple[Statement, ...] = (),
    ) -> None:
        """Keep the arguments of a call of block `number`, and what masks have `said` of its tokens."""
        self.flow.note(number)
        call = self._snapshots.take(args, kwargs, lambda tensor: self._from_earlier(number, tensor))
        self._unfinished[number].append(attrs.evolve(call, said=said))
        self._running += 1

    def note_output(self, number: int, output: object) -> None:
        """Remember, as long as they live, the tensors that block `number` has just given."""
        self._running = max(self._running - 1, 0)
        self._snapshots.settle()
        call = len(self._accepted[number]) + len(self._unfinished[number]) - 1
        leaves = tensor_leaves(output)
        self.samples.note(number, call, len(self.flow.counts), leaves)
        for leaf, tensor in enumerate(leaves):
            place = FromBlock(number, call, leaf)
            self._outputs[id(tensor)] = _Output(place, weakref.ref(tensor), revision(tensor))

    def _from_earlier(self, number: int, tensor: Tensor) -> FromBlock | None:
        """Return the place of a tensor that a block that can be run before this one has given."""
        output = self._outputs.get(id(tensor))
        if output is None or not output.is_still(tensor):
            return None
        return output.place if self.flow.precedes(output.place.block, number) else None

    @property
    def accepted(self) -> list[list[Call]]:
        """The calls of each block in passes that ended well."""
        return self._accepted

    def run(
        self,
        number: int,
        outputs: Mapping[FromBlock, Kept],
        *,
        keep: bool,
        forward_dtype: torch.dtype | None = None,
        only: Sequence[int] | None = None,
    ) -> Iterator[dict[FromBlock, Tensor]]:
        """Call block `number` as it was called, on `outputs` of earlier blocks.

        `only` some of its calls are made, if these are given. `forward_dtype` is what to compute in as far as
        that can be cast automatically; `tokens` know what is padding. Yields after each call, which
        `NothingMore` may end; with `keep`, what is yielded are the output tensors.
        """
        made = range(len(self._accepted[number])) if only is None else only
        replay = Replay([self._accepted[number][index] for index in made], outputs)
        for index, (args, kwargs, autocast) in zip(made, replay, strict=True):
            casts, ended = (autocast.again(), computing_in(forward_dtype)), suppress(NothingMore)
            output: object = None
            known = self.tokens.again(self._accepted[number][index].said)
            with torch.no_grad(), casts[0], casts[1], known, ended:
                output = self.blocks[number](*args, **kwargs)
            leaves = enumerate(tensor_leaves(output)) if keep else ()
            yield {FromBlock(number, index, leaf): tensor for leaf, tensor in leaves}

    def shares_objects(self, number: int) -> bool:
        """Whether two calls of block `number` were given the same object, such as a cache."""
        return share_objects(self._accepted[number])

    def follows(self, number: int) -> bool:
        """Whether each call of block `number` was given something that an earlier block gave."""
        return all(places([call]) for call in self._accepted[number])

    def last_reads(self, numbers: Sequence[int]) -> dict[FromBlock, tuple[int, int]]:
        """Return which call, by block and number, is the last of blocks `numbers` to read each output."""
        return {
            place: (number, index)
            for number in numbers
            for index, call in enumerate(self._accepted[number])
            for place in places([call])
        }

    def again(
        self, root: nn.Module, passes: Iterator[None], numbers: Sequence[int], *, ended: bool = False
    ) -> BlockCalls:
        """Return the calls that blocks `numbers` get when the `passes` of `root` are made again.

        They may be `ended` with the first call of one of them.
        """
        fresh = BlockCalls(self.blocks, ActivationStore() if ended else self.store.another())
        calibration = Calibration(fresh)
        calibration.in_forward = True
        handles = fresh.watch(calibration, numbers)
        handles += calibration.tokens.watch(root)
        handles += [after_call(self.blocks[number], _end) for number in numbers if ended]
        try:
            for _ in passes:
                calibration.accept()
        finally:
            for handle in handles:
                handle.remove()
        return fresh

    def lists(self, paths: Sequence[str]) -> frozenset[str]:
        """Return the paths of those lists of blocks in which one reads another, given the paths of blocks."""
        homes = [path.rpartition(".")[0] for path in paths]
        read = (
            (number, place.block) for number, calls in enumerate(self._accepted) for place in places(calls)
        )
        return frozenset(homes[reader] for reader, source in read if homes[reader] == homes[source])


@attrs.frozen(eq=False)
class _Told:
    """What one rank has recorded."""

    calls: list[list[Call]]
    flow: BlockFlow
    samples: Samples


def _end(args: object, kwargs: object, output: object) -> None:
    raise NothingMore


def places(calls: Sequence[Call]) -> list[FromBlock]:
    """Return which outputs of earlier blocks `calls` read."""
    return [leaf for call in calls for leaf in leaves_of(call) if isinstance(leaf, FromBlock)]


def computing_in(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    if dtype is None:
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(torch.autocast("cpu", dtype=dtype))
    if torch.cuda.is_available():  # which of both a block computes on is not known here
        stack.enter_context(torch.autocast("cuda", dtype=dtype))
    return stack
