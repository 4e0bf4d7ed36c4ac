"""Which layers of a language model have a cache that can hold codes, and where they are."""

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
from tico_modules import named_modules, reasons_against_codes


@attrs.frozen
class CachedLayers:
    """What holds for each layer of a model.

    Attributes:
        paths: the path of the attention module of each layer, by number.
        configs: the config of each layer whose cache gets codes.
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
        ConfigError: an override matches no attention module.
    """
    against = reasons_against_codes(model)
    paths = _attention_paths(model, len(against))
    problems = unmatched_overrides(config.overrides, list(paths.values()))
    if problems:
        raise ConfigError(*problems)
    reasons: dict[int, str] = {}
    configs: dict[int, KVCacheConfig] = {}
    for number, why in enumerate(against):
        reason = why or _not_causal(model, paths[number]) or config.reason_to_leave(paths[number])
        if reason is None:
            configs[number] = config.resolve(paths[number]).spec
        else:
            reasons[number] = reason
    if not configs:
        why = "; ".join(dict.fromkeys(reasons.values())) or "it has none"
        sentence = f"no layer of the model has a cache that can hold codes: {why}"
        raise UnsupportedError(
            Problem(
                field="model", value=Found(why), expected="a model with full attention", sentence=sentence
            )
        )
    return CachedLayers(paths, configs, reasons)


def _not_causal(model: nn.Module, path: str) -> str | None:
    """Return that the attention at `path` keeps nothing for later tokens, as it sees all of them at once."""
    found = dict(named_modules(model)).get(path)
    sees_all = found is not None and vars(found).get("is_causal") is False
    return "its attention sees all tokens at once, and keeps none" if sees_all else None


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
