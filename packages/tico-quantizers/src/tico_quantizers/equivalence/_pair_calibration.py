"""Calibration of algorithms that work on pairs, which the data show while they pass through the model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import ClassVar, Final, Protocol, TypeVar

import attrs
from torch import nn

from tico_config import CalibrationError, Found, Problem, SmoothingConfig
from tico_modules import Edit, Offload
from tico_quantizers.calibration import (
    Calibration,
    Call,
    ReachedLayers,
    Recorder,
    Snapshots,
    require_watched,
)
from tico_quantizers.equivalence._channel_flow import FollowedTensors
from tico_quantizers.equivalence._function_check import (
    Scaled,
    exact_scale,
    probing_scale,
    require_same_function,
)
from tico_quantizers.equivalence._hook_effects import HookEffects
from tico_quantizers.equivalence._pair_search import (
    mapped_pairs,
    pairs_of,
    require_finite_weights,
    require_pairs,
    traced,
)
from tico_quantizers.equivalence._passages import Passages, Trace
from tico_quantizers.equivalence._smoothing_pairs import Candidates, FoundPairs
from tico_quantizers.protocol import Example

R_co = TypeVar("R_co", covariant=True)


class _Callable(Protocol[R_co]):
    def __call__(self, *args: object, **kwargs: object) -> R_co: ...


class _ShownPairs(Recorder):
    """The pairs that show in passes, and calls of the model on which they can be tried.

    Kept are the first call and, with mappings, each that speaks against a pair of them in a new way.
    """

    def __init__(self, candidates: Candidates, config: SmoothingConfig) -> None:
        self.candidates = candidates
        self.config = config
        self.mapped = mapped_pairs(candidates, config.mappings) if config.mappings else None
        self.passages = Passages()
        self.calls: list[Call] = []
        self._doubts: set[tuple[str, str]] = set()
        self.is_tracing = False
        self._shown: tuple[Passages, Call | None] | None = None
        self._tensors = FollowedTensors()

    def follow(self, forward: _Callable[R_co], args: tuple[object, ...], kwargs: dict[str, object]) -> R_co:
        """Return what `forward` gives, and note the ways that channels take in it."""
        keeps = not self.calls or self.mapped is not None
        call = Snapshots().take(args, kwargs, lambda _: None) if keeps else None
        trace = Trace(self.candidates, self._tensors)
        self.is_tracing = True
        try:
            output = trace.follow(lambda: forward(*args, **kwargs))
        finally:
            self.is_tracing = False
        self._shown = trace.passages(), call
        return output

    def learn(self, passages: Passages, call: Call) -> None:
        """Count a pass."""
        self._shown = passages, call
        self.digest()
        self.accept()

    def drop_unfinished(self) -> None:
        """Forget what a pass that did not end has shown."""
        self._shown = None

    def digest(self) -> None:
        """Refuse a model without pairs.

        Raises:
            ConfigError: the passes have reached every layer, and show none.
        """
        if self._shown is not None:
            found = self.pairs(self.passages.merge(self._shown[0]))
            require_pairs(found, self.candidates, self.config)

    def accept(self) -> None:
        """Count the pass that has ended."""
        if self._shown is not None:
            passages, call = self._shown
            doubts = self._doubts_in(passages)
            if call is not None and (not self.calls or doubts - self._doubts):
                self.calls.append(call)
            self._doubts |= doubts
            self.passages = self.passages.merge(passages)
        self._shown = None

    def tell(self) -> object:
        """Return what passes have shown, and the calls that were kept."""
        return _Told(self.passages, self.calls, self._doubts)

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Have been shown what the passes of all ranks show."""
        passages, calls, doubts = Passages(), list[Call](), set[tuple[str, str]]()
        for each in (each for each in told if isinstance(each, _Told)):
            passages = passages.merge(each.passages)
            calls += each.calls if self.mapped is not None or not calls else []
            doubts |= each.doubts
        edit.set_attribute(self, "passages", passages)
        edit.set_attribute(self, "calls", calls)
        edit.set_attribute(self, "_doubts", doubts)

    def _doubts_in(self, passages: Passages) -> set[tuple[str, str]]:
        """Return what `passages` say against pairs of the mappings, each with the path of the producer."""
        pairs = () if self.mapped is None else self.mapped.pairs
        shown = [pair for pair in pairs if passages.is_used(pair.path)]
        reasons = ((pair.path, passages.reason_against(pair, self.candidates)) for pair in shown)
        return {(path, reason) for path, reason in reasons if reason is not None}

    @property
    def doubts(self) -> dict[str, str]:
        """What passes say against pairs of the mappings, by the path of the producer."""
        return dict(sorted(self._doubts, reverse=True))

    def pairs(self, passages: Passages) -> FoundPairs:
        """Return the pairs that follow from `passages`."""
        return pairs_of(passages, self.candidates, self.config, self.mapped)


@attrs.frozen(eq=False)
class _Told:
    """What the passes of one rank have shown."""

    passages: Passages
    calls: list[Call]
    doubts: set[tuple[str, str]]


class PairCalibration(Calibration):
    """What is learnt of the inputs of layers, and in which pairs they are.

    The pairs show in every pass of the model: what one of them does with a channel that does not fit a pair
    ends it, and a layer that none of them has reached may be in none.
    """

    told_by_recorders: ClassVar[bool] = True

    def __init__(self, candidates: Candidates, config: SmoothingConfig, *recorders: Recorder) -> None:
        self.candidates = candidates
        self.reached = ReachedLayers(candidates.layers)
        self._effects = HookEffects()
        self._shown = _ShownPairs(candidates, config)
        super().__init__(self.reached, self._shown, self._effects, *recorders)

    def start(self, model: nn.Module, example: Example | None, edit: Edit) -> None:
        """Start to watch, until `finish`; refuse at once what the example shows.

        Raises:
            ConfigError: the example shows that there are no pairs, or that a mapping is wrong.
        """
        if example is not None:
            self._shown.learn(*traced(model, self.candidates, example))
            self._require_mapped(model)
        self.handles += self.reached.watch(self, free=self.candidates.reasons)
        self.handles += self._effects.watch(model, self)
        edit.set_attribute(model, "forward", _FollowedForward(model.forward, self, self._shown))

    def finish(self, model: nn.Module, edit: Edit) -> None:
        """Give `model` its own `forward` back, when `edit` is done."""
        wrapper: object = vars(model).get("forward")
        if isinstance(wrapper, _FollowedForward):
            edit.on_commit(lambda: wrapper.give_back(model))

    def _require_mapped(self, model: nn.Module) -> None:
        shown = self._shown
        if shown.mapped is not None:
            scaled = [(pair, probing_scale(pair)) for pair in shown.mapped.pairs]
            require_same_function(model, scaled, shown.calls, shown.doubts, field="mappings")

    def require_same_function(
        self, model: nn.Module, scaled: Sequence[Scaled], offload: Offload | None = None
    ) -> None:
        """Refuse to scale pairs where that changes what `model` gives for calls that were kept.

        Scaled weights go to the folder of `offload` while that is tried.

        Raises:
            ConfigError: with every pair that changes the function.
        """
        shown, field = self._shown, "model" if self._shown.mapped is None else "mappings"
        exact = [(pair, exact_scale(scale)) for pair, scale in scaled]
        require_same_function(
            model,
            exact,
            shown.calls,
            shown.doubts,
            field=field,
            with_hooks=self._effects.are_some,
            offload=offload,
        )

    def shown_pairs(self) -> FoundPairs:
        """Return the pairs that have shown so far; more data may show others."""
        return self._shown.pairs(self._shown.passages)

    def require_shown_pairs(self) -> None:
        """Refuse statistics of a file before a pass has shown the pairs, which no file holds.

        Raises:
            CalibrationError: no pass of the whole model has been seen.
        """
        if not self._shown.calls:
            raise CalibrationError(_NO_PASS)

    def pairs(self) -> FoundPairs:
        """Return the pairs.

        Raises:
            CalibrationError: the model was never run, or only a part of it, by itself; with the layers.
            ConfigError: there are none.
            NumericsError: a weight holds NaN or infinity by now.
        """
        require_finite_weights(self.candidates)
        alone = sorted(path for path in self.reached.paths if path and not self._shown.passages.is_used(path))
        if alone:
            raise CalibrationError(*map(_called_alone, alone))
        if not self._shown.calls:
            candidates = self.candidates
            require_watched(set(), tuple(path for path in candidates.layers if candidates.consumer(path)))
        found = self.shown_pairs()
        require_pairs(found, self.candidates, self._shown.config, last=True)
        return found


_NO_PASS: Final = Problem(
    field="args",
    value=Found("none"),
    expected="example inputs where a calibration file is loaded",
    sentence="a calibration file does not say which layers read what another one gives, and no pass has yet"
    " shown it",
    remedy="give prepare args or kwargs, example inputs of the model",
)


def _called_alone(path: str) -> Problem:
    return Problem(
        module=path,
        field="data",
        value=Found("calls of a part of the model only"),
        expected="passes of the whole model, which show what reads what",
        sentence="data reached it only by calls of a part of the model, which do not show what reads what",
        remedy="run data through the whole prepared model, or pass args to prepare that reach it",
    )


class _FollowedForward:
    """The `forward` of a model, followed while the calibration watches."""

    def __init__(self, original: _Callable[object], calibration: Calibration, shown: _ShownPairs) -> None:
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
