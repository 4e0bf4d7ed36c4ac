"""What a quantized cache learns from data: for static grids, the ranges of keys and values."""

from __future__ import annotations

from typing import ClassVar, final

from torch import nn

from tico_modules import WatchedCall, given_arguments, watched_call
from tico_quantizers.algorithms.kv_cache._recorder import RangeRecorder
from tico_quantizers.calibration import Arguments, Calibration, after_call, changed_call


@final
class KVCacheCalibration(Calibration):
    """The ranges of keys and values; without a `recorder`, nothing is to be learned."""

    told_by_recorders: ClassVar[bool] = True

    def __init__(self, model: nn.Module, recorder: RangeRecorder | None) -> None:
        super().__init__(*filter(None, [recorder]))
        self.model = (model,)  # a tuple, so that the model does not hold itself
        self.recorder = recorder
        self._call: WatchedCall | None = None

    def watch(self) -> None:
        """Give the model a cache that records, from its next call on."""
        (model,) = self.model
        if self.recorder is not None:
            self.handles += [changed_call(model, self._give), after_call(model, self._take_back, self)]

    def begin(
        self, modal: list[tuple[str, nn.Module]], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """Start to learn from a pass; the cache that was made for it is none of its data."""
        call = self._call
        if call is not None:
            args = tuple(None if call.is_own(each) else each for each in args)
            kwargs = {name: each for name, each in kwargs.items() if not call.is_own(each)}
        super().begin(modal, args, kwargs)
        if self.recorder is not None:
            (model,) = self.model
            self.recorder.begin(given_arguments(model, args, kwargs))

    def _give(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Arguments | None:
        """Return the arguments of a call with a cache that records."""
        (model,) = self.model
        self._call = None
        if self.recorder is None or not self.watching:
            return None
        self._call = watched_call(model, args, kwargs, self.recorder.paths, self.recorder.note)
        return self._call.args, self._call.kwargs

    def _take_back(self, args: object, kwargs: object, output: object) -> object:
        """Return the output of a call without the cache that it would not have made."""
        call, self._call = self._call, None
        return None if call is None else call.output(output)
