"""The modules of a prepared graph that see its values."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from tico_config import CalibrationError, Found, PerTensor, Problem, QuantSpec
from tico_modules import LayerReport
from tico_observers import (
    LARGEST_PLAUSIBLE,
    AffineParams,
    ChannelRangeStatistic,
    Extremes,
    Observer,
    channel_extremes,
    observer_for,
)
from tico_pt2e._graph import WeightSite
from tico_pt2e._shared_range import SharedRange
from tico_quantizers.calibration import Calibration, RealTokens, Recorder

_OUT_OF_REACH = 1000.0
"""Of two scores so far apart a softmax gives the lower one 0 in any format: e⁻¹⁰⁰⁰ is none of a float64."""


class Watch(nn.Module):
    """Sees a value on its way; what unfinished passes have shown can be taken back.

    A value that is found to hold a mask, a stand-in for minus infinity, is to have no grid, nor one that was
    always empty: see `why_float`.

    Args:
        path: that of the point.
        spec: what grid is asked for.
        axis: of the channels.
        scores: the value is on the way to a softmax, behind a place where a mask may be applied.
    """

    # What fx calls a node that must stay although nothing reads its result.
    _is_impure = True

    def __init__(self, path: str, spec: QuantSpec, *, axis: int = -1, scores: bool = False) -> None:
        super().__init__()
        self.path = path
        self.spec = spec
        self.scores = scores
        self._masked = self._accepted_masked = False
        self._was_empty = False
        self._shared = self._accepted_shared = SharedRange(channels=ChannelRangeStatistic(axis=axis))
        self._observer = observer_for(spec, path, PerTensor())
        self._accepted = copy.copy(self._observer)
        self._calibration: Calibration | None = None

    def forward(self, x: Tensor, *parts: Tensor) -> Tensor:
        """Return `x`, which joins `parts`, seen while calibration goes on."""
        if self._calibration is not None and self._calibration.watching:
            strip = self._calibration.tokens.strip
            with torch.inference_mode(mode=False):
                self._see(strip(x), [strip(part) for part in parts])
        return x

    def _see(self, x: Tensor, parts: Sequence[Tensor]) -> None:
        channels = channel_extremes(x.detach(), self._shared.channels.axis)
        if channels is None:
            self._was_empty = True
            return
        self._masked = self._masked or self._is_of_mask(channels)
        if self._masked:
            return
        self._observer.collect(x)
        if self._observer.on_nonfinite == "error":  # else values that are left out would count
            self._shared = self._shared.including(channels, parts)

    def _is_of_mask(self, seen: Extremes) -> bool:
        """Return whether only a mask has such values. NaN and infinity are left to the observer."""
        low, high = seen.minimum.amin().item(), seen.maximum.amax().item()
        if not math.isfinite(high) or math.isnan(low):
            return False
        return low <= -LARGEST_PLAUSIBLE or (self.scores and high - low > _OUT_OF_REACH)

    def follow(self, calibration: Calibration) -> None:
        """Leave it to `calibration` when a forward pass counts."""
        self._calibration = calibration

    def drop_unfinished(self) -> None:
        """Forget what a pass that did not end has shown."""
        self._observer = copy.copy(self._accepted)
        self._masked = self._accepted_masked
        self._shared = self._accepted_shared

    def accept(self) -> None:
        """Count what the pass that has ended has shown."""
        self._accepted = copy.copy(self._observer)
        self._accepted_masked = self._masked
        self._accepted_shared = self._shared

    @property
    def figures(self) -> tuple[tuple[str, float], ...]:
        """What the report says of the grid, where the range of a few spoils it for the others."""
        point = self.path.rpartition(".")[2]
        return () if self.why_float else self._accepted_shared.figures(point)

    @property
    def why_float(self) -> str | None:
        """Why the value is to have no grid, if so. One that spans a mask would leave nothing of the rest."""
        if self._accepted_masked:
            return "float, as it holds a mask"
        empty = self._was_empty and self._accepted.statistics.is_empty
        return "float, as it is empty" if empty else None

    @property
    def lacks_data(self) -> bool:
        """Whether no data were seen."""
        return self._accepted.statistics.is_empty and self.why_float is None

    @property
    def params(self) -> AffineParams:
        """The grid that the data seen determine.

        Raises:
            CalibrationError: no data were seen.
        """
        if not isinstance(self._accepted, Observer):
            raise TypeError(type(self._accepted).__name__)
        # A copy, as an observer whose grid was asked for takes no more data.
        return copy.copy(self._accepted).params

    def extra_repr(self) -> str:
        """Return path and spec."""
        return f"{self.path}, {self.spec}"


class Follower(nn.Module):
    """Stands where a value has the grid that the watch called `leader` finds."""

    def __init__(self, leader: str) -> None:
        super().__init__()
        self.leader = leader

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x


class _Watches(Recorder):
    def __init__(self, watches: Iterable[Watch]) -> None:
        self._watches = tuple(watches)

    def drop_unfinished(self) -> None:
        for watch in self._watches:
            watch.drop_unfinished()

    def accept(self) -> None:
        for watch in self._watches:
            watch.accept()


class GraphCalibration(Calibration):
    """What the values of a graph show, and what is to become of its weights."""

    def __init__(
        self, watches: Iterable[Watch], weights: dict[WeightSite, QuantSpec], lines: tuple[LayerReport, ...]
    ) -> None:
        self.watches = tuple(watches)
        self.weights = weights
        self.lines = lines
        super().__init__(_Watches(self.watches))
        self.tokens = RealTokens(by_shape_alone=True)
        for watch in self.watches:
            watch.follow(self)


def require_data(watches: Iterable[Watch]) -> None:
    """Refuse to find grids where no data were seen.

    Raises:
        CalibrationError: with every such point.
    """
    remedy = "run data through the prepared model, or give the point no_quant() by an override"
    missing = [
        Problem(
            module=watch.path,
            value=Found("none"),
            expected="calibration data",
            remedy=remedy,
            sentence="no calibration data reached it",
        )
        for watch in watches
        if watch.lacks_data
    ]
    if missing:
        raise CalibrationError(*missing)
