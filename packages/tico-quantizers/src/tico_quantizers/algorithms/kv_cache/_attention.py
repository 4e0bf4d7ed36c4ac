"""Which layers of a language model have a cache that can hold integers, and where they are."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch import nn

from tico_config import (
    ConfigError,
    Found,
    KVCacheConfig,
    Problem,
    UnsupportedError,
    unmatched_overrides,
)
from tico_modules import KV_CACHE, find_cache, named_modules, reasons_against_codes, takes_cache, text_config


@attrs.frozen
class CachedLayers:
    """What holds for each layer of a model.

    Attributes:
        paths: the path of the attention module of each layer, by number.
        configs: the config of each layer whose cache gets integers.
        reasons: why the caches of the others stay float.
    """

    paths: Mapping[int, str]
    configs: Mapping[int, KVCacheConfig]
    reasons: Mapping[int, str]


def cached_layers(model: nn.Module, config: KVCacheConfig) -> CachedLayers:
    """Return what `config` says of each layer of `model`.

    Raises:
        UnsupportedError: `model` is no language model with a cache that grows with the text.
        MissingExtraError: transformers is not installed.
        ConfigError: an override matches no attention module, or all are left out.
    """
    _require_language_model(model)
    against = reasons_against_codes(model)
    paths = _attention_paths(model, len(against))
    problems = unmatched_overrides(config.overrides, list(paths.values()))
    if problems:
        raise ConfigError(*problems)
    reasons: dict[int, str] = {}
    configs: dict[int, KVCacheConfig] = {}
    for number, why in enumerate(against):
        reason = why or config.reason_to_leave(paths[number])
        if reason is None:
            configs[number] = config.resolve(paths[number]).spec
        else:
            reasons[number] = reason
    if not configs:
        why = "; ".join(dict.fromkeys(reasons.values())) or "it has none"
        sentence = f"no layer of the model has a cache that can hold integers: {why}"
        raise UnsupportedError(
            Problem(
                field="model", value=Found(why), expected="a model with full attention", sentence=sentence
            )
        )
    return CachedLayers(paths, configs, reasons)


def _require_language_model(model: nn.Module) -> None:
    kind, language = type(model).__name__, text_config(model)
    if language is None or not takes_cache(model):
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


def _attention_paths(model: nn.Module, count: int) -> dict[int, str]:
    """Return the path of the innermost module that says by `layer_idx` which layer it is of."""
    paths = {number: f"layer {number}" for number in range(count)}
    for path, module in named_modules(model):
        number: object = vars(module).get("layer_idx")
        if type(number) is int and number in paths:
            # An inner module comes after the one that holds it; one beside it counts nothing.
            known = paths[number]
            if known == f"layer {number}" or path.startswith(f"{known}."):
                paths[number] = path
    return paths
