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

from tico_quantizers.calibration._activation_store import ActivationStore
from tico_quantizers.calibration._call_template import CallTemplate
from tico_quantizers.calibration._calls import (
    Call,
    FromPrevious,
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

    place: FromPrevious
    tensor: weakref.ref[Tensor]
    revision: int

    def is_still(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and self.revision == revision(tensor)


class BlockCalls(Recorder):
    """What each block was called with.

    Of the hidden states that go from block to block only those of the first are kept: where an argument
    is an output of the block before, its place is noted instead. What else a block is given (a mask, the
    output of an earlier block, one that something has written to since) is kept as it was in that pass. An
    object that every block is given, such as a cache, has for each block the state that this block gave it.
    The tensors are kept in `store`; those that stand where other calls have an output of the block before
    are hidden states, which it may keep in fewer bits.
    """

    def __init__(self, blocks: tuple[nn.Module, ...], store: ActivationStore | None = None) -> None:
        self.blocks = blocks
        self.store = store or ActivationStore()
        self.tokens = RealTokens()
        self._accepted: list[list[Call]] = [[] for _ in blocks]
        self._unfinished: list[list[Call]] = [[] for _ in blocks]
        self._outputs: list[list[_Output]] = [[] for _ in blocks]
        self._snapshots = Snapshots()
        self._running = 0
        self._template: CallTemplate | None = None

    @property
    def is_running(self) -> bool:
        """Whether a block is being called."""
        return self._running > 0

    def watch(self, calibration: Calibration) -> list[RemovableHandle]:
        """Set the hooks that tell it, while `calibration` watches, what each block gets and gives."""
        handles: list[RemovableHandle] = []
        for number, block in enumerate(self.blocks):
            begin, end = partial(self._begin, calibration, number), partial(self._end, calibration, number)
            # In front of the user's own hooks, which will see what it has kept when the block runs again.
            handles.append(before_call(block, begin, calibration, first=True))
            handles.append(after_call(block, end, calibration))
        return handles

    def _begin(
        self, calibration: Calibration, number: int, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        if not calibration.in_forward:
            self.drop_calls()
        self.note_call(number, args, kwargs, calibration.tokens.now())

    def _end(
        self, calibration: Calibration, number: int, args: object, kwargs: object, output: object
    ) -> None:
        self.note_output(number, output)
        calibration.accept_unless_in_forward()

    def drop_unfinished(self) -> None:
        """Forget the calls of a pass that did not end."""
        self.drop_calls()
        self._outputs = [[] for _ in self.blocks]

    def drop_calls(self) -> None:
        """Forget the calls that no accepted pass has made."""
        self._unfinished = [[] for _ in self.blocks]
        self._running = 0

    def digest(self) -> None:
        """Put the tensors of the pass that has ended into the store."""
        self._template = self._template or CallTemplate.of(self._unfinished)
        whole = [leaves_of(call) for calls in self._unfinished for call in calls]
        hidden = {
            index for leaves in whole for index, leaf in enumerate(leaves) if isinstance(leaf, FromPrevious)
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
        self._unfinished = [[] for _ in self.blocks]
        self._running = 0

    def rest_is_known(self) -> bool:
        """Whether all calls of this pass follow from that of the first block, the only one yet."""
        first, *others = self._unfinished
        known = self._template is not None and len(first) == 1 and not any(others)
        return known and self._template is not None and self._template.fits(first[0])

    def complete(self) -> None:
        """Note the calls that the other blocks of the pass that goes on would have got."""
        if self._template is not None and self.rest_is_known():
            numbers = [len(accepted) for accepted in self._accepted[:-1]]
            made = self._template.calls(self._unfinished[0][0], numbers)
            self._unfinished = [self._unfinished[0], *([call] for call in made)]

    def note_call(
        self,
        number: int,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        said: tuple[Statement, ...] = (),
    ) -> None:
        """Keep the arguments of a call of block `number`, and what masks have `said` of its tokens."""
        call = self._snapshots.take(args, kwargs, lambda tensor: self._from_previous(number, tensor))
        self._unfinished[number].append(attrs.evolve(call, said=said))
        self._running += 1

    def note_output(self, number: int, output: object) -> None:
        """Remember, as long as they live, the tensors that block `number` has just given."""
        self._running = max(self._running - 1, 0)
        self._snapshots.settle()
        call = len(self._accepted[number]) + len(self._unfinished[number]) - 1
        self._outputs[number] = [
            _Output(FromPrevious(call, leaf), weakref.ref(tensor), revision(tensor))
            for leaf, tensor in enumerate(tensor_leaves(output))
        ]

    def _from_previous(self, number: int, tensor: Tensor) -> FromPrevious | None:
        outputs = self._outputs[number - 1] if number else []
        return next((output.place for output in outputs if output.is_still(tensor)), None)

    @property
    def accepted(self) -> list[list[Call]]:
        """The calls of each block in passes that ended well."""
        return self._accepted

    def run(
        self,
        number: int,
        outputs: Mapping[tuple[int, int], Kept],
        *,
        keep: bool,
        forward_dtype: torch.dtype | None = None,
    ) -> Iterator[dict[tuple[int, int], Tensor]]:
        """Call block `number` as it was called, on `outputs` of the block before.

        `forward_dtype` is what to compute in as far as that can be cast automatically; `tokens` know what is
        padding. Yields after each call, which `NothingMore` may end; with `keep`, what is yielded are the
        output tensors by call and leaf.
        """
        replay = Replay(self._accepted[number], outputs)
        for index, (args, kwargs, autocast) in enumerate(replay):
            casts, ended = (autocast.again(), _computing_in(forward_dtype)), suppress(NothingMore)
            output: object = None
            known = self.tokens.again(self._accepted[number][index].said)
            with torch.no_grad(), casts[0], casts[1], known, ended:
                output = self.blocks[number](*args, **kwargs)
            leaves = enumerate(tensor_leaves(output)) if keep else ()
            yield {(index, leaf): tensor for leaf, tensor in leaves}

    def shares_objects(self, number: int) -> bool:
        """Whether two calls of block `number` were given the same object, such as a cache."""
        return share_objects(self._accepted[number])

    @property
    def are_chained(self) -> bool:
        """Whether any block was given what the one before it gave."""
        return any(self.wanted_by_next(number) for number in range(len(self.blocks) - 1))

    def wanted_by_next(self, number: int) -> frozenset[tuple[int, int]]:
        """Return which outputs of block `number`, by call and leaf, the next block reads."""
        return frozenset(places(self._accepted[number + 1]))

    def last_reads(self, number: int) -> dict[int, list[tuple[int, int]]]:
        """Return, for each call of block `number`, which outputs of the block before no later one reads."""
        last = {place: index for index, call in enumerate(self._accepted[number]) for place in places([call])}
        found: dict[int, list[tuple[int, int]]] = {}
        for place, index in last.items():
            found.setdefault(index, []).append(place)
        return found


def places(calls: Sequence[Call]) -> list[tuple[int, int]]:
    """Return which outputs of the block before `calls` read, by call and leaf."""
    leaves = (leaf for call in calls for leaf in leaves_of(call))
    return [(leaf.call, leaf.leaf) for leaf in leaves if isinstance(leaf, FromPrevious)]


def _computing_in(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    if dtype is None:
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(torch.autocast("cpu", dtype=dtype))
    if torch.cuda.is_available():  # which of both a block computes on is not known here
        stack.enter_context(torch.autocast("cuda", dtype=dtype))
    return stack
