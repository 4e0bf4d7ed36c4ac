"""Calibration of algorithms that work on pairs, which the data show while they pass through the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import attrs
from torch import nn

from tico_config import CalibrationError, Found, Problem, SmoothingConfig
from tico_modules import Edit, Offload
from tico_quantizers.calibration import (
    Calibration,
    ReachedLayers,
    Recorder,
    require_watched,
)
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
)
from tico_quantizers.equivalence._passages import Passages, Trace
from tico_quantizers.equivalence._shown_ways import (
    ShownWays,
    Told,
    called_alone,
    follow_forward,
    give_forward_back,
    traced,
)
from tico_quantizers.equivalence._smoothing_pairs import Candidates, FoundPairs
from tico_quantizers.protocol import Example


class _ShownPairs(ShownWays[Passages]):
    """The pairs that show in passes.

    With mappings, each call that speaks against a pair of them in a new way is kept.
    """

    def __init__(self, candidates: Candidates, config: SmoothingConfig) -> None:
        super().__init__(Passages())
        self.candidates = candidates
        self.config = config
        self.mapped = mapped_pairs(candidates, config.mappings) if config.mappings else None
        self._doubts: set[tuple[str, str]] = set()

    def trace(self) -> Trace:
        """Return what follows the next pass."""
        return Trace(self.candidates, self.tensors)

    def needs_call(self) -> bool:
        """Return whether the next call may be kept."""
        return super().needs_call() or self.mapped is not None

    def keeps(self, passages: Passages) -> bool:
        """Return whether the call that has shown `passages` is kept."""
        doubts = self._doubts_in(passages)
        new = bool(doubts - self._doubts)
        self._doubts |= doubts
        return super().keeps(passages) or new

    def check(self, passages: Passages) -> None:
        """Refuse a model without pairs.

        Raises:
            ConfigError: the passes have reached every layer, and show none.
        """
        require_pairs(self.pairs(passages), self.candidates, self.config)

    def tell(self) -> object:
        """Return what passes have shown, and the calls that were kept."""
        return _Told(self.passages, self.calls, self._doubts)

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Have been shown what the passes of all ranks show, and with mappings all calls that were kept."""
        super().hear(told, edit)
        found = [each for each in told if isinstance(each, _Told)]
        edit.set_attribute(self, "_doubts", {doubt for each in found for doubt in each.doubts})
        if self.mapped is not None:
            edit.set_attribute(self, "calls", [call for each in found for call in each.calls])

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
class _Told(Told[Passages]):
    """What the passes of one rank have shown, and what speaks against mappings."""

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
            self._shown.learn(*traced(model, self._shown.trace(), example))
            self._require_mapped(model)
        self.handles += self.reached.watch(self, free=self.candidates.reasons)
        self.handles += self._effects.watch(model, self)
        follow_forward(model, self, self._shown, edit)

    def finish(self, model: nn.Module, edit: Edit) -> None:
        """Give `model` its own `forward` back, when `edit` is done."""
        give_forward_back(model, edit)

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
        require_finite_weights(self.candidates.atoms())
        alone = sorted(path for path in self.reached.paths if path and not self._shown.passages.is_used(path))
        if alone:
            raise CalibrationError(*map(called_alone, alone))
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
