"""A float cache of transformers that shows what it is given; transformers is imported here alone."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

from tico_config import CalibrationError, Found, Problem
from tico_modules import is_quantized_layer
from tico_quantizers.algorithms.kv_cache._recorder import RangeRecorder


class RecordingLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """A float layer that shows `recorder` the keys and values of layer `number`."""

    def __init__(self, recorder: RangeRecorder, number: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder
        self.number = number

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Show the states of the next tokens, and keep them."""
        self.recorder.note(self.number, key_states, value_states)
        key, value = super().update(key_states, value_states, *args, **kwargs)
        return key, value


def recording_cache(recorder: RangeRecorder, config: object) -> DynamicCache:
    """Return an empty float cache for a model with `config`, which shows what it is given."""
    cache = _float_cache(config)
    _record(cache, recorder)
    return cache


def record_in(cache: object, recorder: RangeRecorder, config: object) -> None:
    """Let `cache`, which is given to the model, show what it is given from now on.

    Raises:
        CalibrationError: it holds tokens that were not seen, or is of another kind.
    """
    if isinstance(cache, DynamicCache):
        layers = cache.layers
        if any(isinstance(each, RecordingLayer) and each.recorder is recorder for each in layers):
            return
        if all(not getattr(each, "is_initialized", False) for each in layers):
            if not layers or any(map(is_quantized_layer, layers)):
                cache.layers = _float_cache(config).layers
                cache.layer_class_to_replicate = None
            _record(cache, recorder)
            return
    expected = "None, or an empty DynamicCache, while the model is calibrated"
    found = Found(f"a {type(cache).__name__}")
    remedy = "run the text from its first token on, without a cache of your own"
    raise CalibrationError(Problem(field="past_key_values", value=found, expected=expected, remedy=remedy))


def _record(cache: DynamicCache, recorder: RangeRecorder) -> None:
    for number, layer in enumerate(cache.layers):
        if number in recorder.paths and type(layer) is DynamicLayer:
            cache.layers[number] = RecordingLayer(recorder, number)


def _float_cache(config: object) -> DynamicCache:
    return DynamicCache(config=config if isinstance(config, PreTrainedConfig) else None)
