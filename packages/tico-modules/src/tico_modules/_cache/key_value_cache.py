"""The module that gives a language model a cache of codes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, final

from torch import Tensor, nn

from tico_config import (
    Found,
    KVCacheConfig,
    MissingExtraError,
    Problem,
    UnsupportedError,
    from_json,
    to_json,
)
from tico_config.validation import check_integer, refuse
from tico_modules._cache.layer_cache import LayerCache
from tico_modules._layers.restorable import RestorableModule
from tico_modules._storage.layout import Layout, require_tensor, select_below
from tico_modules._tree.edit import Edit
from tico_modules._tree.module_tree import children
from tico_observers import AffineParams

if TYPE_CHECKING:
    from tico_modules._cache._transformers import QuantizedCache, QuantizedStaticCache

KV_CACHE: Final = "kv_cache"
"""The name of the child of a language model that says how its keys and values are kept."""

CACHE_ARGUMENT: Final = "past_key_values"


@final
class KeyValueCache(RestorableModule):
    """How the layers of a language model keep keys and values: a `LayerCache` each, or floats.

    It is the child ``kv_cache`` of the model. Before each call of the model in which caching is on, and in
    which no cache is given, it gives an empty `QuantizedCache`. An empty `DynamicCache` or `StaticCache`
    that is given, as `generate` does, gets layers that hold codes. Any other cache stays as it is.

    Args:
        layers: for each layer, its format, or None where the cache of the layer stays float.
    """

    kind: ClassVar[str] = "modules.kv_cache"
    stands_beside: ClassVar[bool] = True
    has_own_line: ClassVar[bool] = True

    def __init__(self, layers: Sequence[LayerCache | None]) -> None:
        super().__init__()
        self.count = len(layers)
        for number, layer in enumerate(layers):
            if layer is not None:
                self.add_module(str(number), layer)

    @property
    def layers(self) -> tuple[LayerCache | None, ...]:
        """The format of each layer; None where it is float."""
        found = children(self)
        known = (found.get(str(number)) for number in range(self.count))
        return tuple(each if isinstance(each, LayerCache) else None for each in known)

    def forward(self, x: object) -> object:
        """Return `x`: where a model goes through all that it holds, the formats do nothing."""
        return x

    def layout(self) -> Mapping[str, object]:
        """Return the config of each layer, for JSON."""
        texts = {
            str(number): to_json(each.config) for number, each in enumerate(self.layers) if each is not None
        }
        return {"count": self.count, "configs": texts}

    @classmethod
    def restore(cls, original: nn.Module, layout: Layout, tensors: Mapping[str, Tensor]) -> KeyValueCache:
        """Return the module that `layout` describes, with `tensors` by name.

        Raises:
            ArtifactError: a value or a tensor is missing, or they do not fit each other.
        """
        configs = layout.child("configs")
        names = [str(number) for number in range(layout.integer("count"))]
        if configs.values.keys() - set(names):
            raise layout.make_error("configs", f"configs of at most {len(names)} layers")
        return cls(
            [
                _restored(configs, name, select_below(tensors, name)) if name in configs.values else None
                for name in names
            ]
        )

    def join(self, served: nn.Module, edit: Edit) -> None:
        """Become the child ``kv_cache`` of the language model `served`, and give it caches."""
        modules: dict[str, nn.Module | None] = served._modules
        if find_cache(served) is None:
            handle = served.register_forward_pre_hook(_give_cache, with_kwargs=True)
            edit.on_undo(handle.remove)
        edit.put(modules, KV_CACHE, self)


def _restored(configs: Layout, name: str, tensors: Mapping[str, Tensor]) -> LayerCache:
    with configs.locate_errors():
        config = from_json(configs.text(name))
        if not isinstance(config, KVCacheConfig):
            raise configs.make_error(name, "the JSON of a KVCacheConfig")
        grids = [
            AffineParams(
                scale=require_tensor(tensors, configs, f"{part}_scale"),
                zero_point=require_tensor(tensors, configs, f"{part}_zero_point"),
                dtype=spec.dtype,
            )
            if config.static and spec.is_quantized
            else None
            for part, spec in (("key", config.key), ("value", config.value))
        ]
        return LayerCache(config, *grids)


def find_cache(model: nn.Module) -> KeyValueCache | None:
    """Return what says how `model` keeps keys and values, or None.

    >>> find_cache(nn.Linear(2, 2)) is None
    True
    """
    found = children(model).get(KV_CACHE)
    return found if isinstance(found, KeyValueCache) else None


def quantized_cache(
    model: nn.Module, *, max_length: int | None = None
) -> QuantizedCache | QuantizedStaticCache:
    """Return an empty cache of codes for `model`, which `KVCacheConfig` has converted.

    It is a cache of transformers' own kind, to be passed to `model` or ``model.generate`` as
    ``past_key_values``. Its property ``nbytes`` says how many bytes it takes.

    Args:
        model: the language model.
        max_length: how many tokens the cache can hold: memory for them is taken with the first ones, and
            never again; one token more raises `LifecycleError`. None lets it grow with the text.

    Raises:
        ConfigError: `max_length` is not positive.
        UnsupportedError: `model` has no quantized cache.
        MissingExtraError: transformers is not installed.
    """
    formats = find_cache(model)
    if formats is None:
        raise UnsupportedError(
            Problem(
                field="model",
                value=Found(f"a {type(model).__name__} without a quantized cache"),
                expected="a model that KVCacheConfig has converted",
                remedy="call prepare(model, KVCacheConfig()) and convert first",
            )
        )
    require_transformers()
    from tico_modules._cache._transformers import QuantizedCache, QuantizedStaticCache

    config: object = getattr(model, "config", None)
    if max_length is None:
        return QuantizedCache(formats, config)
    refuse(check_integer("max_length", max_length, 1))
    return QuantizedStaticCache(formats, config, max_length)


def require_transformers() -> None:
    """Refuse to go on without transformers.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import transformers as _transformers  # noqa: F401
    except ImportError:
        remedy = "pip install 'tico-modules[transformers]'"
        expected, found = "the package transformers to be installed", Found("no such package")
        raise MissingExtraError(Problem(expected=expected, value=found, remedy=remedy)) from None


def _give_cache(
    model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]] | None:
    """Give `model` an empty cache of codes where it would make one of floats; a hook before its calls."""
    formats = find_cache(model)
    if formats is None:
        return None
    given = given_arguments(model, args, kwargs)
    cache = given.get(CACHE_ARGUMENT)
    if cache is not None:
        from tico_modules._cache._transformers import quantize_empty

        quantize_empty(cache, formats, getattr(model, "config", None))
        return None
    if not caching_is_on(model, given):
        return None
    return with_cache(model, args, kwargs, quantized_cache(model))


def given_arguments(
    model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> dict[str, object]:
    """Return the arguments of a call of `model` by name."""
    return {**dict(zip(_names(model), args, strict=False)), **kwargs}


def with_cache(
    model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], cache: object
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the arguments of a call of `model` with `cache` in them."""
    names = _names(model)
    place = names.index(CACHE_ARGUMENT) if CACHE_ARGUMENT in names else len(args)
    if place < len(args):
        return (*args[:place], cache, *args[place + 1 :]), kwargs
    return args, {**kwargs, CACHE_ARGUMENT: cache}


def caching_is_on(model: nn.Module, given: Mapping[str, object]) -> bool:
    """Tell whether `model`, called with the arguments `given`, would make a cache."""
    asked = given.get("use_cache")
    if asked is None:
        asked = getattr(text_config(model), "use_cache", False)
    return bool(asked) and not (model.training and getattr(model, "is_gradient_checkpointing", False))


def text_config(model: nn.Module) -> object:
    """Return the config of the language model in the transformers model `model`, or None."""
    config: object = getattr(model, "config", None)
    get = getattr(config, "get_text_config", None)
    found: object = get(decoder=True) if callable(get) else None
    return found


def reasons_against_codes(model: nn.Module) -> list[str | None]:
    """Return, for each layer of a language model, why its cache stays float; None where it need not.

    Raises:
        UnsupportedError: `model` is no decoder of transformers that is given a cache.
        MissingExtraError: transformers is not installed.
    """
    _require_language_model(model)
    require_transformers()
    from tico_modules._cache._transformers import reasons_against

    return reasons_against(getattr(model, "config", None))


def _require_language_model(model: nn.Module) -> None:
    kind, language = type(model).__name__, text_config(model)
    if language is None or CACHE_ARGUMENT not in _names(model):
        raise _no_language_model(f"a {kind}, which takes no past_key_values")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise _no_language_model(f"a {kind}, which has an encoder, whose keys are in another cache")
    taken = hasattr(model, KV_CACHE) and find_cache(model) is None
    if taken:
        expected = f"no attribute {KV_CACHE} of its own"
        found = Found(f"a {kind} with one")
        raise UnsupportedError(Problem(field="model", value=found, expected=expected))


def _no_language_model(found: str) -> UnsupportedError:
    return UnsupportedError(
        Problem(
            field="model",
            value=Found(found),
            expected="a decoder of transformers that keeps keys and values, such as LlamaForCausalLM",
            remedy="prepare the language model itself, with the module that is called",
        )
    )


def cache_bytes(cache: object) -> int:
    """Return the bytes of the keys and values in a cache of transformers, of floats or of codes."""
    layers: list[object] = getattr(cache, "layers", [])
    return sum(map(_layer_bytes, layers))


def _layer_bytes(layer: object) -> int:
    own = getattr(layer, "nbytes", None)
    if isinstance(own, int):
        return own
    states = (getattr(layer, name, None) for name in ("keys", "values"))
    return sum(each.untyped_storage().nbytes() for each in states if isinstance(each, Tensor))


def _names(model: nn.Module) -> list[str]:
    return list(inspect.signature(model.forward).parameters)
