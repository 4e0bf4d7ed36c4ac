"""The user's own passes of a model, kept so that they can be made again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tico_config import CalibrationError
from tico_modules import Edit
from tico_quantizers.calibration._activation_store import ActivationStore
from tico_quantizers.calibration._block_calls import NothingMore, computing_in
from tico_quantizers.calibration._calls import Call, Replay, leaves_of, with_leaves
from tico_quantizers.calibration._control_flow import form_of
from tico_quantizers.calibration._forward_watch import Calibration, Recorder
from tico_quantizers.calibration._hooks import after_call, before_call
from tico_quantizers.calibration._snapshots import Snapshots


class Passes(Recorder):
    """What the model was called with, pass by pass; None for a part of it that was called by itself.

    `form` is that of the pass that goes on: all but the values of tensors, as far as that tells two apart.
    """

    def __init__(self, root: nn.Module, store: ActivationStore) -> None:
        self.root = root
        self._store = store
        self._snapshots = Snapshots()
        self._begun: Call | None = None
        self._ended: Call | None = None
        self._accepted: list[Call | None] = []
        self.form: tuple[object, ...] | None = None

    def watch(self, calibration: Calibration) -> list[RemovableHandle]:
        """Set the hooks that tell it, while `calibration` watches, what the model is called with."""
        # In front of the user's own hooks, as for blocks.
        return [
            before_call(self.root, self._begin, calibration, first=True),
            after_call(self.root, self._end, calibration),
        ]

    def _begin(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        try:
            self._begun = self._snapshots.take(args, kwargs, lambda _: None)
        except CalibrationError:  # what cannot be copied matters only where a pass has to be made again
            self._begun = None
        self.form = None if self._begun is None else form_of(self._begun)

    def _end(self, args: object, kwargs: object, output: object) -> None:
        self._snapshots.settle()
        self._ended = self._begun

    def drop_unfinished(self) -> None:
        """Forget a pass that did not end."""
        self._ended = None

    def digest(self) -> None:
        """Put the tensors of the pass that has ended into the store."""
        if self._ended is not None:
            leaves = leaves_of(self._ended)
            kept = [self._store.keep(x, exactly=True) if isinstance(x, Tensor) else x for x in leaves]
            self._ended = with_leaves(self._ended, kept)

    def accept(self) -> None:
        """Count the pass that has ended."""
        self._accepted.append(self._ended)
        self._begun = self._ended = None
        self._snapshots.forget_gone()

    def tell(self) -> list[Call | None]:
        """Return the passes."""
        return self._accepted

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Have made the passes of all ranks."""
        passes: list[Call | None] = []
        for rank in told:
            made = rank if isinstance(rank, list) else []
            passes += made if made is self._accepted else [self._taken(call) for call in made]
        edit.set_attribute(self, "_accepted", passes)

    def _taken(self, call: Call | None) -> Call | None:
        """Return a call of another rank with its tensors in the store."""
        if call is None:
            return None
        return with_leaves(call, [self._store.taken(leaf) for leaf in leaves_of(call)])

    @property
    def are_whole(self) -> bool:
        """Whether all that was recorded came from passes of the model that can be made again."""
        return bool(self._accepted) and None not in self._accepted

    def run(self, forward_dtype: torch.dtype | None = None) -> Iterator[None]:
        """Make each pass again, up to where `NothingMore` ends it. Yields after each.

        Call it only if the passes `are_whole`. `forward_dtype` is as for `BlockCalls.run`.
        """
        calls = [call for call in self._accepted if call is not None]
        for number, (args, kwargs, autocast) in enumerate(Replay(calls, {})):
            torch.default_generator.manual_seed(number)
            ended = suppress(NothingMore)
            with torch.no_grad(), autocast.again(), computing_in(forward_dtype), ended:
                self.root(*args, **kwargs)
            yield
