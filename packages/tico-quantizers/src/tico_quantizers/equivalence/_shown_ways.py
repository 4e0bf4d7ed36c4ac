"""What passes of a model show of the ways that channels take, and calls on which conclusions are tried."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import attrs
from torch import nn
from typing_extensions import Self

from tico_config import ConfigError, Found, Problem, TicoError
from tico_modules import Edit
from tico_quantizers.calibration import Calibration, Call, Recorder, Snapshots, require_evaluation_mode
from tico_quantizers.equivalence._channel_flow import FollowedTensors
from tico_quantizers.equivalence._function_check import run_again
from tico_quantizers.protocol import Example

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class AnyCall(Protocol[R_co]):
    """What can be called with anything."""

    def __call__(self, *args: object, **kwargs: object) -> R_co:
        """Call it."""


class Ways(Protocol):
    """What any number of passes have shown."""

    def merge(self, other: Self, /) -> Self:
        """Return what the passes of both have shown, in any order."""


W = TypeVar("W", bound=Ways)
W_co = TypeVar("W_co", covariant=True)


class WayTrace(Protocol[W_co]):
    """Follows one pass."""

    def follow(self, run: Callable[[], R]) -> R:
        """Return what `run`, a forward pass, gives, and note the ways that channels take in it."""

    def passages(self) -> W_co:
        """Return what has shown."""


class ShownWays(Recorder, Generic[W]):
    """The `passages` of all passes, and `calls` of the model: the first one, and others that `keeps` says."""

    def __init__(self, passages: W) -> None:
        self.passages = passages
        self.calls: list[Call] = []
        self.is_tracing = False
        self.tensors = FollowedTensors()
        self._none = passages
        self._shown: tuple[W, Call | None] | None = None

    @abstractmethod
    def trace(self) -> WayTrace[W]:
        """Return what follows the next pass; tensors of earlier ones are in `tensors`."""

    def needs_call(self) -> bool:
        """Return whether the next call may be kept."""
        return not self.calls

    def keeps(self, passages: W) -> bool:
        """Return whether the call that has shown `passages` is kept; it counts now."""
        return not self.calls

    def check(self, passages: W) -> None:  # there may be nothing to refuse
        """Refuse what all passes have shown by now."""

    def follow(self, forward: AnyCall[R], args: tuple[object, ...], kwargs: dict[str, object]) -> R:
        """Return what `forward` gives, and note the ways that channels take in it."""
        call = Snapshots().take(args, kwargs, lambda _: None) if self.needs_call() else None
        trace = self.trace()
        self.is_tracing = True
        try:
            output = trace.follow(lambda: forward(*args, **kwargs))
        finally:
            self.is_tracing = False
        self._shown = trace.passages(), call
        return output

    def learn(self, passages: W, call: Call) -> None:
        """Count a pass."""
        self._shown = passages, call
        self.digest()
        self.accept()

    def drop_unfinished(self) -> None:
        """Forget what a pass that did not end has shown."""
        self._shown = None

    def digest(self) -> None:
        """Refuse what `check` refuses."""
        if self._shown is not None:
            self.check(self.passages.merge(self._shown[0]))

    def accept(self) -> None:
        """Count the pass that has ended."""
        if self._shown is not None:
            passages, call = self._shown
            if self.keeps(passages) and call is not None:
                self.calls.append(call)
            self.passages = self.passages.merge(passages)
        self._shown = None

    def tell(self) -> object:
        """Return what passes have shown, and the calls that were kept."""
        return Told(self.passages, self.calls)

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Have been shown what the passes of all ranks show."""
        passages, calls = self._none, list[Call]()
        for each in (each for each in told if isinstance(each, Told)):
            passages = passages.merge(each.passages)
            calls += each.calls if not calls else []
        edit.set_attribute(self, "passages", passages)
        edit.set_attribute(self, "calls", calls)


@attrs.frozen(eq=False)
class Told(Generic[W]):
    """What the passes of one rank have shown."""

    passages: W
    calls: list[Call]


def traced(model: nn.Module, trace: WayTrace[W], example: Example) -> tuple[W, Call]:
    """Return what shows when `model` is run on copies of `example`, and the call.

    Raises:
        ConfigError: the model raises an error for them.
        CalibrationError: the model is in training mode.
    """
    require_evaluation_mode(model)
    call = Snapshots().take(example.args, example.kwargs, lambda _: None)
    try:
        trace.follow(lambda: run_again(model, call))
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        if isinstance(error, TicoError):
            raise
        found = Found(f"inputs for which it raises {type(error).__name__}: {error}")
        sentence = f"the model raises {type(error).__name__} for args: {error}"
        expected = "inputs that the model takes"
        raise ConfigError(Problem(field="args", value=found, expected=expected, sentence=sentence)) from error
    return trace.passages(), call


def follow_forward(model: nn.Module, calibration: Calibration, shown: ShownWays[W], edit: Edit) -> None:
    """Give `model` a `forward` that `shown` follows while `calibration` watches."""
    edit.set_attribute(model, "forward", _FollowedForward(model.forward, calibration, shown))


def give_forward_back(model: nn.Module, edit: Edit) -> None:
    """Give `model` its own `forward` back, when `edit` is done."""
    wrapper: object = vars(model).get("forward")
    if isinstance(wrapper, _FollowedForward):
        edit.on_commit(lambda: wrapper.give_back(model))


class _FollowedForward(Generic[W]):
    """The `forward` of a model, followed while the calibration watches."""

    def __init__(self, original: AnyCall[object], calibration: Calibration, shown: ShownWays[W]) -> None:
        self._original = original
        self._calibration = calibration
        self._shown = shown
        self.__signature__ = inspect.signature(original)

    def __call__(self, *args: object, **kwargs: object) -> object:
        if self._shown.is_tracing or not self._calibration.watching:
            return self._original(*args, **kwargs)
        return self._shown.follow(self._original, args, kwargs)

    def give_back(self, model: nn.Module) -> None:
        """Take the wrapper away: what the class of `model` has needs no attribute of its own."""
        if getattr(self._original, "__self__", None) is model:
            del vars(model)["forward"]
        else:
            vars(model)["forward"] = self._original


def called_alone(path: str) -> Problem:
    """Return what is wrong where data have reached a module only by calls of a part of the model."""
    return Problem(
        module=path,
        field="data",
        value=Found("calls of a part of the model only"),
        expected="passes of the whole model, which show what reads what",
        sentence="data reached it only by calls of a part of the model, which do not show what reads what",
        remedy="run data through the whole prepared model, or pass args to prepare that reach it",
    )
