"""The cache of codes, of the classes of transformers, which is imported here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    StaticCache,
    StaticLayer,
)

from tico_config import CalibrationError, Found, Problem, UnsupportedError
from tico_modules._cache.key_value_cache import KeyValueCache, cache_bytes
from tico_modules._cache.layer_cache import LayerCache
from tico_modules._cache.watched_call import Note

AnyLayer: TypeAlias = CacheLayerMixin | LinearAttentionCacheLayerMixin | DummyLayer


class QuantizedLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Keys and values of one layer as codes, and those of the most recent tokens as floats.

    What attention reads is the value that each code stands for, followed by the floats.

    Args:
        layer: the formats.
        max_length: how many tokens there may be, whose memory is taken once; None lets it grow.
    """

    def __init__(self, layer: LayerCache, max_length: int | None = None) -> None:
        self.max_length = max_length
        self.stores = layer.stores(max_length)
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def keys(self) -> Tensor | None:
        """What attention reads of keys (batch, heads, tokens, channels); None without any."""
        return self.stores[0].read() if self.is_initialized else None

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        _refuse_states(value)

    @property
    def values(self) -> Tensor | None:
        """What attention reads of values, as `keys`."""
        return self.stores[1].read() if self.is_initialized else None

    @values.setter
    def values(self, value: Tensor | None) -> None:
        _refuse_states(value)

    @property
    def nbytes(self) -> int:
        """The bytes of codes, scales and floats."""
        return sum(store.nbytes for store in self.stores)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the dtype and the device of what comes, and the memory for a fixed number of tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        for store, states in zip(self.stores, (key_states, value_states), strict=True):
            store.reserve(states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take in the keys and values of the next tokens; return those of all tokens, as they are kept."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        key, value = self.stores
        taken = key.encoded(key_states), value.encoded(value_states)  # both, before either changes
        for store, tokens in zip(self.stores, taken, strict=True):
            store.take(tokens)
        return key.read(), value.read()

    def get_seq_length(self) -> int:
        """Return the number of tokens."""
        return self.stores[0].count

    def get_max_length(self) -> int:
        """Return how many tokens there may be; -1 where there may be any number."""
        return -1 if self.max_length is None else self.max_length

    def reset(self) -> None:
        """Forget all tokens; memory for a fixed number of them stays."""
        for store in self.stores:
            store.clear()
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, so many as the negative `tokens_to_remove` says.

        Raises:
            UnsupportedError: it is positive.
        """
        if tokens_to_remove > 0:
            expected = "a negative number of tokens, or 0"
            problem = Problem(field="tokens_to_remove", value=tokens_to_remove, expected=expected)
            raise UnsupportedError(problem)
        for store in self.stores:
            store.crop(max(store.count + tokens_to_remove, 0))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the samples of the batch in the order `beam_idx`."""
        self._change(lambda each: each.index_select(0, beam_idx.to(each.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sample of the batch."""
        self._change(lambda each: each.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the samples `indices` of the batch."""
        self._change(lambda each: each[indices, ...])

    def offload(self) -> None:
        """Move what is kept to the processor."""
        self._change(lambda each: each.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Move what is kept to the device of the layer."""
        self._change(lambda each: each.to(self.device, non_blocking=True))

    def _change(self, action: Callable[[Tensor], Tensor]) -> None:
        for store in self.stores:
            store.change(action)


class QuantizedCache(DynamicCache):
    """A cache whose keys and values are codes, for ``past_key_values`` of a model of transformers.

    Args:
        formats: how each layer is kept.
        config: that of the model. Layers without a format have what `DynamicCache` gives them.

    Raises:
        UnsupportedError: the config is not that of a model with so many layers.
    """

    def __init__(self, formats: KeyValueCache, config: object) -> None:
        Cache.__init__(self, layers=_layers(formats, float_layers(config)))

    @property
    def nbytes(self) -> int:
        """The bytes of codes, scales and floats of all layers."""
        return cache_bytes(self)


class QuantizedStaticCache(StaticCache):
    """A cache of codes for at most `max_length` tokens, whose memory is taken once.

    It gives the bits that `QuantizedCache` gives: attention reads the tokens that there are, and not as many
    as there may be. So it has no fixed shape for `torch.compile`.

    Args:
        formats: how each layer is kept.
        config: that of the model. Layers without a format have what `StaticCache` gives them.
        max_length: the number of tokens.

    Raises:
        UnsupportedError: the config is not that of a model with so many layers.
    """

    def __init__(self, formats: KeyValueCache, config: object, max_length: int) -> None:
        known = StaticCache(config=_require_config(config), max_cache_len=max_length).layers
        Cache.__init__(self, layers=_layers(formats, known))

    @property
    def nbytes(self) -> int:
        """The bytes of codes, scales and floats of all layers."""
        return cache_bytes(self)


def quantize_empty(cache: object, formats: KeyValueCache, config: object) -> None:
    """Let the empty `DynamicCache` or `StaticCache` `cache` hold codes; leave any other as it is.

    Layers that stay float are those that it has: they may have been told to remember more than their window.
    """
    if type(cache) not in (DynamicCache, StaticCache) or not isinstance(cache, Cache):
        return
    if not any(map(_is_used, cache.layers)):
        cache.layers = _layers(formats, cache.layers or float_layers(config))
        cache.layer_class_to_replicate = None


def _is_used(layer: object) -> bool:
    if isinstance(layer, StaticLayer):
        return int(layer.get_seq_length()) > 0
    return type(layer) is QuantizedLayer or bool(getattr(layer, "is_initialized", False))


def _layers(formats: KeyValueCache, known: list[AnyLayer]) -> list[AnyLayer]:
    if len(known) != formats.count:
        found, expected = Found(f"one of {len(known)} layers"), f"one of {formats.count} layers"
        raise UnsupportedError(Problem(field="config", value=found, expected=expected))
    pairs = zip(known, formats.layers, strict=True)
    return [layer if each is None else QuantizedLayer(each, _length(layer)) for layer, each in pairs]


def _length(layer: AnyLayer) -> int | None:
    return layer.max_cache_len if isinstance(layer, StaticLayer) else None


def float_layers(config: object) -> list[AnyLayer]:
    """Return the empty layers of the float cache of a model with `config`."""
    return DynamicCache(config=_require_config(config)).layers


def _require_config(config: object) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    expected = "the config of a transformers model"
    raise UnsupportedError(Problem(field="config", value=config, expected=expected))


def reasons_against(config: object) -> list[str | None]:
    """Return, for each layer, why its cache stays float, or None where it can hold codes."""
    return [None if type(each) is DynamicLayer else _reason(each) for each in float_layers(config)]


def _reason(layer: object) -> str:
    return f"its cache is a {type(layer).__name__}, whose size does not grow with the text"


def _refuse_states(value: Tensor | None) -> None:
    if value is not None:
        sentence = "the states of a quantized cache are set by update alone"
        raise UnsupportedError(
            Problem(field="states", value=Found("a tensor"), expected="None", sentence=sentence)
        )


class RecordingLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """A float layer that tells `note` of the keys and values that it is given."""

    def __init__(self, number: int, note: Note) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number = number
        self.note = note

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Tell of the states of the next tokens, and keep them."""
        self.note(self.number, key_states, value_states)
        key, value = super().update(key_states, value_states, *args, **kwargs)
        return key, value


def recording_cache(config: object, layers: Collection[int], note: Note) -> DynamicCache:
    """Return an empty float cache for a model with `config`, which tells `note` of what it is given."""
    cache = DynamicCache()
    record_in(cache, config, layers, note)
    return cache


def record_in(cache: object, config: object, layers: Collection[int], note: Note) -> None:
    """Let `cache`, which is given to a model, tell `note` of what it is given from now on.

    Raises:
        CalibrationError: it holds tokens that were not seen, or is of another kind.
    """
    if not isinstance(cache, DynamicCache):
        raise _not_seen(cache)
    if any(isinstance(each, RecordingLayer) and each.note == note for each in cache.layers):
        return
    if any(getattr(each, "is_initialized", False) for each in cache.layers):
        raise _not_seen(cache)
    cache.layers = [
        RecordingLayer(number, note) if number in layers else each
        for number, each in enumerate(cache.layers or float_layers(config))
    ]
    cache.layer_class_to_replicate = None


def _not_seen(cache: object) -> CalibrationError:
    expected = "None, or an empty DynamicCache, while the model is calibrated"
    found = Found(f"a {type(cache).__name__}")
    remedy = "run the text from its first token on, without a cache of your own"
    return CalibrationError(Problem(field="past_key_values", value=found, expected=expected, remedy=remedy))
