"""What SmoothQuant learns from the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import nn

from tico_config import ConfigError, Found, Problem, SmoothQuantConfig
from tico_modules import Edit
from tico_observers import AbsMaxStatistic, Statistic
from tico_quantizers.calibration import (
    ABSMAX,
    BlockInputs,
    BlockOptions,
    float_statistics,
    read_range,
    require_layers,
    require_watched,
)
from tico_quantizers.equivalence import Candidates, InputMaxima, Pair, PairCalibration, alone
from tico_quantizers.protocol import Example


@final
class SmoothQuantCalibration(PairCalibration):
    """The largest magnitudes of the inputs of each pair's consumers; for a search, Gram matrices too."""

    def __init__(
        self, model: nn.Module, candidates: Candidates, config: SmoothQuantConfig, options: BlockOptions
    ) -> None:
        self.maxima = InputMaxima()
        super().__init__(candidates, config, self.maxima)
        found = ((path, candidates.consumer(path)) for path in candidates.layers)
        self._consumers = {path: layer for path, layer in found if layer is not None}
        self._config = config
        layers = candidates.layers
        self.inputs = BlockInputs(model, layers, options, self.reached) if searches(config) else None

    def start(self, model: nn.Module, example: Example | None, edit: Edit) -> None:
        """Start to watch; every layer that could be a consumer is observed."""
        super().start(model, example, edit)
        consumers = self._consumers
        self.handles += self.maxima.watch(
            tuple(alone(path, layer) for path, layer in consumers.items()), self
        )
        if self.inputs is not None:
            self.inputs.record(self)
            self.inputs.watch(consumers, self)

    @property
    def reached_paths(self) -> set[str]:
        """The layers that data have reached, here or where they were seen before."""
        return self.reached.paths | self.maxima.statistics.keys()

    def statistics(self) -> Mapping[str, Statistic]:
        """Return the ranges of what possible consumers have read, and for a search their Gram matrices."""
        if not self.maxima.statistics:
            require_watched(set(), tuple(self._consumers))
        ranges = {
            f"{path}{ABSMAX}": self.maxima.statistics.get(path, AbsMaxStatistic()) for path in self._consumers
        }
        return ranges if self.inputs is None else {**float_statistics(self.inputs), **ranges}

    def adopt(self, statistics: Mapping[str, Statistic]) -> None:
        """Smooth by what the consumers of pairs have read elsewhere, too."""
        self.require_shown_pairs()
        pairs = self.shown_pairs().pairs
        paths = {each.path for pair in pairs for each in pair.consumers}
        require_layers(statistics, sorted(paths), ABSMAX)
        seen = {path: read_range(path, self._consumers[path], statistics) for path in paths}
        if self.inputs is not None:
            searched = (pair for pair in pairs if config_of(self._config, pair).alpha == "auto")
            self.inputs.adopt(statistics, {each.path for pair in searched for each in pair.consumers})
        self.maxima.adopt(seen)


def config_of(config: SmoothQuantConfig, pair: Pair) -> SmoothQuantConfig:
    """Return what holds for a pair, by the rules for its producer and its consumers.

    Raises:
        ConfigError: two rules contradict each other.
    """
    found = [config.resolve(path) for path in (pair.path, *(consumer.path for consumer in pair.consumers))]
    first, *others = [each for each in found if each.origin != "defaults"] or found
    for other in others:
        if other.spec != first.spec:
            value = Found(f"{first.origin} and {other.origin}, which say different things")
            expected = "one rule for a pair, which has one scale"
            sentence = (
                f"{first.origin} and {other.origin} say different things about a pair, which has one scale"
            )
            raise ConfigError(
                Problem(
                    module=pair.path, field="overrides", value=value, expected=expected, sentence=sentence
                )
            )
    return first.spec


def searches(config: SmoothQuantConfig) -> bool:
    """Return whether `config` asks for a search for any pair."""
    rules = (rule for rule in config.overrides.values() if isinstance(rule, Mapping))
    return config.alpha == "auto" or any(rule.get("alpha") == "auto" for rule in rules)
