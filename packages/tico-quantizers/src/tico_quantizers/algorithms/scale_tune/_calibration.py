"""Calibration of scales that are tuned: the calls of the model, beside what the base learns."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import nn

from tico_quantizers.calibration import Calibration, Call, Recorder, Snapshots, samples_of
from tico_quantizers.equivalence import ChannelScale
from tico_quantizers.protocol import AnyPrepared


class CallRecorder(Recorder):
    """The arguments of the forward passes of a model, in order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._begun: Call | None = None

    def note(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Copy the arguments of a pass that begins, which may change them."""
        self._begun = Snapshots().take(args, kwargs, lambda _: None)

    def drop_unfinished(self) -> None:
        """Forget the pass that has begun."""
        self._begun = None

    def accept(self) -> None:
        """Count the pass."""
        if self._begun is not None:
            self.calls.append(self._begun)
        self._begun = None


class ScaleTuneCalibration(Calibration):
    """The calls of the model, while the `base` calibrates on them, too; `norms` are those of the model."""

    def __init__(self, base: AnyPrepared, norms: tuple[ChannelScale, ...]) -> None:
        self.base = base
        self.norms = norms
        self.recorder = CallRecorder()
        super().__init__(self.recorder)

    def begin(
        self, modal: list[tuple[str, nn.Module]], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """Note the arguments of a forward pass of the model, which begins."""
        super().begin(modal, args, kwargs)
        self.recorder.note(args, kwargs)

    def ending_early(self, root: nn.Module) -> AbstractContextManager[None]:
        """Let passes end where the base learns nothing more: only their arguments are needed."""
        return self.base.calibration.ending_early(root)

    def samples(self) -> list[Call]:
        """Return the calls that were counted, one sample each, without its padding."""
        return [sample for call in self.recorder.calls for sample in samples_of(call)]
