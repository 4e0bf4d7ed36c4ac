"""Watching the user's forward passes, each of them counted only once it has ended well."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from tico_config import CalibrationError, Found, Problem
from tico_modules import DataFingerprint, Edit, named_modules
from tico_quantizers.calibration._hooks import after_call, before_call
from tico_quantizers.calibration._real_tokens import RealTokens


class Recorder(ABC):
    """Something that learns from forward passes, and takes back what an unfinished one has shown."""

    @property
    def is_running(self) -> bool:
        """Whether a call that it records as a whole goes on: what happens inside does not count yet."""
        return False

    @abstractmethod
    def drop_unfinished(self) -> None:
        """Forget what a forward pass that did not end has left."""

    def digest(self) -> None:  # noqa: B027  # most have nothing to compute
        """Compute what `accept` needs; what may fail is done here, and changes nothing that counts."""

    @abstractmethod
    def accept(self) -> None:
        """Count what the forward pass that has just ended has shown; this cannot fail."""


class Calibration(Recorder):
    """What an algorithm learns from the data, by its `recorders`; `handles` are the hooks it has set.

    `data` is the fingerprint of the calls that were counted, `tokens` tell which rows are padding.
    """

    def __init__(self, *recorders: Recorder) -> None:
        self.recorders = recorders
        self.data = DataFingerprint()
        self.tokens = RealTokens()
        self.handles: list[RemovableHandle] = []
        self.watching = True
        self.in_forward = False
        self._thread: int | None = None

    def admits(self, *, at_start: bool) -> bool:
        """Return whether a call counts that starts or ends now.

        Raises:
            CalibrationError: it starts while a pass of another thread goes on.
        """
        if not self.watching or self._thread in (None, threading.get_ident()):
            return self.watching
        others = any(thread.ident == self._thread for thread in threading.enumerate())
        if others and at_start:
            raise CalibrationError(_other_thread())
        return not others

    def drop_unfinished(self) -> None:
        """Forget what a forward pass that did not end has left."""
        for recorder in self.recorders:
            recorder.drop_unfinished()
        self.data.drop_unfinished()
        self.tokens.clear()

    def accept(self) -> None:
        """Count what the forward pass that has just ended has shown: with every recorder or with none."""
        try:
            for recorder in self.recorders:
                recorder.digest()
        except BaseException:
            self.drop_unfinished()
            raise
        for recorder in self.recorders:
            recorder.accept()
        self.data.accept()

    def begin(
        self, modal: list[tuple[str, nn.Module]], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """Start to learn from a forward pass of the model.

        Raises:
            CalibrationError: one of the `modal` modules is in training mode.
        """
        _require_evaluation_mode(modal)
        self.drop_unfinished()
        self.data.note(args, kwargs)
        self.in_forward = True
        self._thread = threading.get_ident()

    def end(self, args: object, kwargs: object, output: object) -> None:
        """Count the forward pass of the model, which has ended well."""
        if self.in_forward:
            self.in_forward = False
            self.accept()

    def leave(self, args: object, kwargs: object, output: object) -> None:
        """Let other threads call the model, whether the forward pass ended well or not."""
        self._thread = None

    def accept_unless_in_forward(self) -> None:
        """Count at once what a part of the model that was called by itself has shown."""
        if not (self.in_forward or any(recorder.is_running for recorder in self.recorders)):
            self.accept()

    def pause(self, edit: Edit) -> None:
        """Stop learning, until `edit` is undone."""
        self.drop_unfinished()
        edit.set_attribute(self, "watching", False)


def watch_forward(root: nn.Module, calibration: Calibration) -> tuple[RemovableHandle, ...]:
    """Tell `calibration` where each forward pass of `root` begins and ends; return the hooks."""
    begin = partial(calibration.begin, _modal(root))
    ends = before_call(root, begin, calibration), after_call(root, calibration.end, calibration)
    left = after_call(root, calibration.leave, calibration, always=True)
    return *ends, *calibration.tokens.watch(root, calibration), left


def _other_thread() -> Problem:
    return Problem(
        field="thread",
        value=Found("two that call the model at once"),
        expected="one at a time while the model is calibrated",
        sentence="another thread is in the middle of a pass of the model, which this call would spoil",
        remedy="calibrate in one thread, or copies of the prepared model in one each",
    )


def require_evaluation_mode(root: nn.Module) -> None:
    """Refuse to learn from a model whose modules behave otherwise in training.

    Raises:
        CalibrationError: with every such module that is in training mode.
    """
    _require_evaluation_mode(_modal(root))


def _require_evaluation_mode(modules: list[tuple[str, nn.Module]]) -> None:
    training = [
        Problem(
            module=path or type(module).__name__,
            field="training",
            value=True,
            expected="False while the model is calibrated",
            sentence="it is in training mode, in which it behaves otherwise than it will in use",
            remedy="call model.eval() first",
        )
        for path, module in modules
        if module.training and _depends_on_mode(module)
    ]
    if training:
        raise CalibrationError(*training)


def _modal(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of the kinds that may behave otherwise in training, with their paths."""
    return [(path, module) for path, module in named_modules(root) if isinstance(module, _MODAL)]


_MODAL = (_DropoutNd, _NormBase, nn.RNNBase, nn.MultiheadAttention, nn.RReLU)


def _depends_on_mode(module: nn.Module) -> bool:
    match module:
        case _DropoutNd():
            return module.p > 0
        case _NormBase():
            return module.track_running_stats
        case nn.RNNBase() | nn.MultiheadAttention():
            return module.dropout > 0
        case nn.RReLU():
            return True
        case _:
            return False


def require_watched(executed: set[str], expected: tuple[str, ...]) -> None:
    """Refuse to convert modules that no calibration data have reached.

    Raises:
        CalibrationError: with every one of them.
    """
    missing = [
        Problem(
            module=path,
            value=Found("none"),
            expected="calibration data",
            sentence="no calibration data reached it",
            remedy="run data that reach it through the prepared model, or leave it out by an override",
        )
        for path in expected
        if path not in executed
    ]
    if missing:
        raise CalibrationError(*missing)
