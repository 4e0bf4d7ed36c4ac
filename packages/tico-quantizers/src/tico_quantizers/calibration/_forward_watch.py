"""Watching the user's forward passes, each of them counted only once it has ended well."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import ClassVar, Final

import attrs
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from tico_config import CalibrationError, Found, LifecycleError, Problem, UnsupportedError
from tico_modules import DataFingerprint, Edit, Layout, named_modules
from tico_observers import Statistic
from tico_quantizers.calibration._compiled_calls import require_eager_call
from tico_quantizers.calibration._hooks import after_call, before_call
from tico_quantizers.calibration._ranks import ALONE
from tico_quantizers.calibration._real_tokens import RealTokens

# One for all calibrations, so that copying and pickling them stays simple: held while a pass begins or ends.
_TURN: Final = threading.RLock()


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

    def tell(self) -> object:
        """Return all that was counted, as a value that can be pickled, for the other ranks of a group.

        Raises:
            UnsupportedError: it is for this process alone, unless this is overridden.
        """
        raise UnsupportedError(_for_one_process(self))

    def hear(self, told: Sequence[object], edit: Edit) -> None:  # noqa: B027  # most tell nothing
        """Have counted, until `edit` is undone, what all ranks have `told`, in their order, also this one.

        Raises:
            UnsupportedError: what was counted depends on an order that is not known.
        """


class Calibration(Recorder):
    """What an algorithm learns from the data, by its `recorders`; `handles` are the hooks it has set.

    `data` is the fingerprint of the calls that were counted, `tokens` know which rows are padding, `files` is
    the number of calibration files that were loaded, and `ranks` are the processes that convert the model
    together. `told_by_recorders` is True for a class whose recorders can `tell` and `hear` all that it
    learns; other classes are refused on several ranks.
    """

    told_by_recorders: ClassVar[bool] = False

    def __init__(self, *recorders: Recorder) -> None:
        self.recorders = recorders
        self.ranks = ALONE
        self.files = 0
        self.data = DataFingerprint()
        self.tokens = RealTokens()
        self.handles: list[RemovableHandle] = []
        self.watching = True
        self.in_forward = False
        self._thread = threading.get_ident()
        self._begun: set[int] = set()

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

    def tell(self) -> object:
        """Return what the recorders tell, and the fingerprint of the data.

        Raises:
            UnsupportedError: it, or one of its recorders, is for one process alone.
        """
        if not self.told_by_recorders:
            raise UnsupportedError(_for_one_process(self))
        return _Told(self.data.text, self.data.calls, tuple(each.tell() for each in self.recorders))

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Have every recorder hear what those of the other ranks tell."""
        all_told, data = [each for each in told if isinstance(each, _Told)], DataFingerprint()
        for each in all_told:
            data.add(each.data, each.calls)
        edit.set_attribute(self, "data", data)
        for index, recorder in enumerate(self.recorders):
            recorder.hear([each.by_recorder[index] for each in all_told], edit)

    def begin(
        self, modal: list[tuple[str, nn.Module]], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """Start to learn from a forward pass of the model.

        Raises:
            CalibrationError: one of the `modal` modules is in training mode.
            UnsupportedError: torch.compile runs the model.
        """
        require_eager_call()
        _require_evaluation_mode(modal)
        with _TURN:
            self.drop_unfinished()
            self.data.note(args, kwargs)
            self._thread = threading.get_ident()
            self._begun.add(self._thread)
            self.in_forward = True

    def end(self, args: object, kwargs: object, output: object) -> None:
        """Count the forward pass of the model, which has ended well.

        Raises:
            LifecycleError: another thread has begun a pass since; this one is not counted.
        """
        with _TURN:
            begun = threading.get_ident() in self._begun
            self._begun.discard(threading.get_ident())
            if begun and self._thread != threading.get_ident():
                raise LifecycleError(_TWO_THREADS)
            if self.in_forward:
                self.in_forward = False
                self.accept()

    def require_own_pass(self) -> None:
        """Refuse to learn from a call while another thread is in a forward pass of the model, or was.

        Raises:
            LifecycleError: it is, or it was since this thread has begun the pass that the call is part of.
        """
        thread = threading.get_ident()
        if self._thread != thread and (self.in_forward or thread in self._begun):
            self._begun.discard(thread)
            raise LifecycleError(_TWO_THREADS)

    def accept_unless_in_forward(self) -> None:
        """Count at once what a part of the model that was called by itself has shown.

        Raises:
            LifecycleError: another thread is in a forward pass of the model.
        """
        self.require_own_pass()
        if not (self.in_forward or any(recorder.is_running for recorder in self.recorders)):
            self.accept()

    def statistics(self) -> Mapping[str, Statistic]:
        """Return what was seen, by name, for files that serve this and other algorithms.

        The model may be run again for it, and is not changed. A calibration that has nothing to keep need not
        override it.

        Raises:
            UnsupportedError: files hold nothing of what was seen.
            CalibrationError: nothing was seen yet.
        """
        raise UnsupportedError(_kept_in_no_file(self))

    def adopt(self, statistics: Mapping[str, Statistic]) -> None:
        """Add `statistics` to what has been seen: all of them or, after an error, none.

        They are those of the same float model, of this or another algorithm; names that mean nothing here are
        ignored.

        Raises:
            UnsupportedError: files hold nothing of what is needed, or a field of the config needs the data
                themselves.
            CalibrationError: `statistics` lack something.
            ArtifactError: they are of another model.
        """
        raise UnsupportedError(_kept_in_no_file(self))

    def ending_early(self, root: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which passes of `root` may end where nothing more is to be learned from them.

        What such a pass returns means nothing. By default passes run to their ends.
        """
        return nullcontext()

    def findings(self) -> Mapping[str, object]:
        """Return what the data have told besides statistics, as JSON values; by default nothing."""
        return {}

    def adopt_findings(self, findings: Layout, edit: Edit) -> None:
        """Add `findings`, which are those of a file; called before `adopt`.

        Raises:
            ArtifactError: a value is missing or of another type.
        """

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Learn nothing while the context lasts."""
        self.drop_unfinished()
        before, self.watching = self.watching, False
        try:
            yield
        finally:
            self.watching = before

    def pause(self, edit: Edit) -> None:
        """Stop learning, until `edit` is undone."""
        self.drop_unfinished()
        edit.set_attribute(self, "watching", False)


@attrs.frozen
class _Told:
    """The fingerprint of the data of one rank, and what each of its recorders tells."""

    data: str
    calls: int
    by_recorder: tuple[object, ...]


def _for_one_process(recorder: Recorder) -> Problem:
    name = type(recorder).__name__
    return Problem(
        field="group",
        value=Found(f"several ranks, each with a {name}"),
        expected="None for an algorithm of one process",
        sentence=f"a {name} does not share with other ranks what it learns from data",
        remedy="run all data through the model of one process, and convert that without a group",
    )


def _kept_in_no_file(calibration: Calibration) -> Problem:
    name = type(calibration).__name__
    return Problem(
        field="model",
        value=Found(f"one with a {name}"),
        expected="a model prepared with GPTQConfig, AWQConfig, SmoothQuantConfig or PTQConfig",
        sentence=f"calibration files serve GPTQ, AWQ, SmoothQuant and PTQ, and hold nothing of a {name}",
        remedy="run the data through the prepared model",
    )


_TWO_THREADS: Final = Problem(
    field="model",
    value=Found("two at once"),
    expected="run by one thread at a time while it is calibrated",
    sentence="two threads run the prepared model at once, and this pass is not counted",
    remedy="run the calibration data one batch after the other, by one thread",
)


class WatchedModule(nn.Module, ABC):
    """A module that watches its own calls, without `prepare`."""

    @property
    @abstractmethod
    def calibration(self) -> Calibration:
        """What was seen so far."""


def watch_forward(root: nn.Module, calibration: Calibration) -> tuple[RemovableHandle, ...]:
    """Tell `calibration` where each forward pass of `root` begins and ends; return the hooks."""
    begin = partial(calibration.begin, _modal(root))
    ends = before_call(root, begin, calibration), after_call(root, calibration.end, calibration)
    return *ends, *calibration.tokens.watch(root, calibration)


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
            sentence="it is in training mode, in which it behaves differently than in use",
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
