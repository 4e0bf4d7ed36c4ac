"""What a quantized cache learns from data: for static grids, the ranges of keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from torch import nn

from tico_modules import caching_is_on, given_arguments, with_cache
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
        self._made: object = None
        self._asked = True

    def watch(self) -> None:
        """Give the model a cache that records, from its next call on."""
        (model,) = self.model
        if self.recorder is not None:
            self.handles += [changed_call(model, self._give), after_call(model, self._take_back, self)]

    def begin(
        self, modal: list[tuple[str, nn.Module]], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """Start to learn from a pass; the cache that was made for it is none of its data."""
        made = self._made
        if made is not None:
            args = tuple(None if each is made else each for each in args)
            kwargs = {name: each for name, each in kwargs.items() if each is not made}
        super().begin(modal, args, kwargs)
        if self.recorder is not None:
            (model,) = self.model
            self.recorder.begin(given_arguments(model, args, kwargs))

    def _give(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Arguments | None:
        """Return the arguments of a call with a cache that records."""
        from tico_quantizers.algorithms.kv_cache._recording_cache import record_in, recording_cache

        (model,) = self.model
        if self.recorder is None or not self.watching:
            return None
        config: object = getattr(model, "config", None)
        given = given_arguments(model, args, kwargs)
        cache, self._made = given.get("past_key_values"), None
        if cache is not None:
            record_in(cache, self.recorder, config)
            return None
        self._asked = caching_is_on(model, given)
        self._made = recording_cache(self.recorder, config)
        return with_cache(model, args, kwargs, self._made)

    def _take_back(self, args: object, kwargs: object, output: object) -> object:
        """Return the output of a call without the cache that it would not have made."""
        made, self._made = self._made, None
        if made is None or self._asked:
            return None
        if isinstance(output, tuple):
            return tuple(each for each in output if each is not made)
        if isinstance(output, Mapping):
            return type(output)(**{name: each for name, each in output.items() if each is not made})
        return None
