"""Largest magnitudes of what the consumers of pairs are given, channel by channel."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import partial

import attrs
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tico_config import TicoError
from tico_modules import Edit
from tico_observers import AbsMaxStatistic, Extremes, require_plausible
from tico_quantizers.calibration import Calibration, RealTokens, Recorder, before_call, located, revision
from tico_quantizers.equivalence._smoothing_pairs import Consumer, Pair
from tico_quantizers.layers import feature_axis, input_tensor


@attrs.frozen(eq=False)
class _Last:
    """The tensor that was observed last, as long as it lives."""

    tensor: weakref.ref[Tensor]
    revision: int

    def is_still(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and self.revision == revision(tensor)


class InputMaxima(Recorder):
    """The largest magnitude of each input feature of layers, by path.

    Of the consumers of a pair that read the same channels in the same order, the first stands for all.
    """

    def __init__(self) -> None:
        self.statistics: dict[str, AbsMaxStatistic] = {}
        self._unfinished: dict[str, AbsMaxStatistic] = {}
        self._last: dict[str, _Last] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> InputMaxima:
        """Return one that has seen the same; what a copied model is called with next is another tensor."""
        copied = InputMaxima()
        copied.statistics = dict(self.statistics)
        return copied

    def watch(self, pairs: tuple[Pair, ...], calibration: Calibration) -> list[RemovableHandle]:
        """Set a hook on every consumer that observes its inputs while `calibration` watches."""
        return [
            before_call(
                consumer.layer,
                partial(self._read, calibration, consumer, _first_alike(pair, consumer).path),
                calibration,
            )
            for pair in pairs
            for consumer in pair.consumers
        ]

    def _read(
        self,
        calibration: Calibration,
        consumer: Consumer,
        name: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> None:
        calibration.require_own_pass()
        self.note(consumer, name, input_tensor(consumer.path, args, kwargs), calibration.tokens)
        calibration.accept_unless_in_forward()

    def note(self, consumer: Consumer, name: str, x: Tensor, tokens: RealTokens) -> None:
        """Observe what is no padding in the input `x` of `consumer` under `name`.

        What was the last one observed there is not observed again.

        Raises:
            NumericsError: `x` holds NaN or infinity; the pass, which does not end, is not counted.
        """
        if name in self._last and self._last[name].is_still(x):
            return
        seen = self._unfinished.get(name) or self.statistics.get(name) or AbsMaxStatistic()
        try:
            axis = feature_axis(consumer.layer)
            self._unfinished[name] = seen.observe(tokens.strip(x, axis).movedim(axis, -1))
        except TicoError as error:
            raise located(error, consumer.path) from None
        self._last[name] = _Last(weakref.ref(x), revision(x))

    def drop_unfinished(self) -> None:
        """Forget what a pass that did not end has shown."""
        self._unfinished = {}
        self._last = {}

    def accept(self) -> None:
        """Count what the pass that has ended has shown."""
        self.statistics |= self._unfinished
        self.drop_unfinished()

    def tell(self) -> dict[str, AbsMaxStatistic]:
        """Return what was seen."""
        return self.statistics

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Have seen what all ranks have."""
        total: dict[str, AbsMaxStatistic] = {}
        for seen in told:
            for path, each in seen.items() if isinstance(seen, dict) else ():
                total[path] = total[path].merge(each) if path in total else each
        edit.set_attribute(self, "statistics", total)

    def adopt(self, seen: Mapping[str, AbsMaxStatistic]) -> None:
        """Count also what was `seen` of the inputs of layers, by path."""
        known = self.statistics
        self.statistics = known | {
            path: known[path].merge(each) if path in known else each
            for path, each in seen.items()
            if not each.is_empty
        }

    def range_of(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value of each channel of `pair`, or 0, (channels,) each.

        Raises:
            NumericsError: a consumer was given values that only a mask has.
        """
        low = torch.zeros(pair.channels, dtype=torch.float64, device=pair.consumers[0].channels.device)
        high = low.clone()
        for consumer in pair.consumers:
            statistic = self.statistics.get(consumer.path)
            seen = None if statistic is None else statistic.seen.extremes
            if seen is not None:
                _require_plausible(consumer.path, seen)
                low.scatter_reduce_(0, consumer.channels, seen.minimum.to(torch.float64), "amin")
                high.scatter_reduce_(0, consumer.channels, seen.maximum.to(torch.float64), "amax")
        return low, high


def _require_plausible(path: str, seen: Extremes) -> None:
    try:
        require_plausible(seen)
    except TicoError as error:
        raise located(error, path) from None


def _first_alike(pair: Pair, consumer: Consumer) -> Consumer:
    return next(other for other in pair.consumers if torch.equal(other.channels, consumer.channels))
