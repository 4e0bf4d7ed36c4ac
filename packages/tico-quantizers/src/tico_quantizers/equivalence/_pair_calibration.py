"""Calibration of algorithms that work on pairs, which may be known only when the first data come."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

from torch import nn

from tico_config import CalibrationError, Found, Problem, SmoothingConfig
from tico_quantizers.calibration import Calibration, ReachedLayers, Recorder, before_call, remember_hooks
from tico_quantizers.equivalence._hook_effects import HookEffects
from tico_quantizers.equivalence._pair_search import traced_pairs
from tico_quantizers.equivalence._smoothing_pairs import Candidates, FoundPairs
from tico_quantizers.protocol import Example


class PairCalibration(Calibration):
    """What is learnt of the inputs of the pairs' consumers.

    Where neither an example nor mappings tell the pairs, the model is run once more on the inputs of the
    first pass, before that pass.
    """

    def __init__(self, candidates: Candidates, config: SmoothingConfig, *recorders: Recorder) -> None:
        self.candidates = candidates
        self.config = config
        self.found: FoundPairs | None = None
        self.reached = ReachedLayers(candidates.layers)
        self.effects = HookEffects()
        super().__init__(self.reached, *recorders)

    def start(self, model: nn.Module, found: FoundPairs | None) -> None:
        """Start to watch; without the pairs, find them in the first pass."""
        self.handles += self.reached.watch(self)
        if not self.config.mappings:
            self.handles += self.effects.watch(model, self)
        if found is None:
            self.handles.append(before_call(model, partial(self._find, model)))
        else:
            self.found = found
            self.watch(found)

    @abstractmethod
    def watch(self, found: FoundPairs) -> None:
        """Start to watch what the consumers of the pairs are given."""

    def _find(self, model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Find the pairs by running `model`, if they are not known."""
        if self.found is None and self.watching:
            example = Example(args=args, kwargs=kwargs)
            self.watching = False
            try:
                found = traced_pairs(model, self.candidates, self.config, example)
            finally:
                self.watching = True
            self._begin_to_watch(model, found)

    def _begin_to_watch(self, model: nn.Module, found: FoundPairs) -> None:
        """Start to watch the pairs that were found, wholly or not at all."""
        restore, handles, recorders = remember_hooks(model), list(self.handles), self.recorders
        try:
            self.watch(found)
        except BaseException:
            restore()
            self.handles, self.recorders = handles, recorders
            raise
        self.found = found

    def pairs(self) -> FoundPairs:
        """Return the pairs.

        Raises:
            CalibrationError: the model was never run, or in a way that the pairs were not found for.
        """
        if self.found is None:
            remedy = "run data through the prepared model, or pass args to prepare"
            sentence = "no calibration data were run through the model"
            raise CalibrationError(
                Problem(value=Found("none"), expected="calibration data", remedy=remedy, sentence=sentence)
            )
        self.effects.require_none()
        called = self.found.called
        problems = [
            Problem(
                module=path,
                value=Found("a layer that the inputs from which the pairs were found do not reach"),
                expected="layers that they reach",
                sentence="the inputs from which the pairs were found do not reach it",
                remedy="pass args to prepare that reach it",
            )
            for path in sorted(self.reached.paths)
            if called is not None and path and path not in called
        ]
        if problems:
            raise CalibrationError(*problems)
        return self.found
