"""The grids of cached keys and values, as compressed-tensors has them: one for the keys of a layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from torch import Tensor, nn

from tico_config import FP8, DType, Found, NumberFormat, PerTensor, Problem, QuantSpec
from tico_export.compressed_tensors._scheme import Codes, loads_as_floats
from tico_export.program import steps_in
from tico_export.source import Source
from tico_modules import LayerCache, find_cache, named_modules

_NAME: Final = "compressed-tensors"
_LEGAL: Final[tuple[NumberFormat, ...]] = (DType.int(8), FP8("e4m3"))
_PARTS: Final = ("key", "value")
_REMEDY: Final = (
    "use KVCacheConfig(key=spec, value=spec, static=True, residual_length=0), where spec is"
    " affine(DType.int(8), granularity=PerTensor())"
)


def cache_scheme(source: Source) -> Mapping[str, object] | None:
    """Return ``kv_cache_scheme``: the library's `QuantizationArgs` of keys and values; None without codes."""
    held = [each for each in _layers(source) if each is not None]
    if not held:
        return None
    dtype = held[0].key.dtype
    elements = None if isinstance(dtype, DType) else FP8("e4m3")
    return Codes(bits=dtype.bits, symmetric=True, strategy="tensor", elements=elements).to_json()


def cache_tensors(source: Source) -> Iterator[tuple[str, Tensor]]:
    """Yield the scales of keys and values, float32 (1,), by their names in a checkpoint."""
    paths = _attention_paths(source.model)
    for number, layer in enumerate(_layers(source)):
        if layer is None:
            continue
        for name, scale in (("k_scale", layer.k_scale), ("v_scale", layer.v_scale)):
            if scale is not None:
                yield f"{paths[number]}.{name}", scale.reshape(1)


def cache_bound(source: Source) -> float:
    """Return the decibels that codes of keys and values leave, infinity where there are none.

    The library divides by a scale where this one multiplies by its reciprocal, so that a value moves by a
    step at most. Each layer has two tensors of them, and each adds its own.
    """
    held = [each for each in _layers(source) if each is not None]
    if not held:
        return math.inf
    return 20 * math.log10(min(steps_in(each.key.dtype) for each in held)) - 10 * math.log10(2 * len(held))


def cache_problems(source: Source) -> Iterator[Problem]:
    """Yield what of the cache the library has no place for: it has one scheme for all layers."""
    layers, paths = _layers(source), _attention_paths(source.model)
    for number, layer in enumerate(layers):
        path = paths.get(number)
        if path is None:
            expected = "attention with k_proj and v_proj in each layer"
            yield _problem(f"layer {number}", "module", "none", expected, "leave the cache in float")
        elif layer is None:
            expected, remedy = "keys and values of all layers as codes", "leave no layer out, or all of them"
            yield _problem(path, "kv_cache", "floats", expected, remedy)
        else:
            yield from _of_layer(path, layer)
    formats = {str(each.key.dtype) for each in layers if each is not None}
    if len(formats) > 1:
        yield _problem("kv_cache", "key", ", ".join(sorted(formats)), "one format for all layers", _REMEDY)
    if layers and loads_as_floats(source):
        expected = "codes beside weights that transformers does not have to load as floats"
        yield _problem("kv_cache", "kv_cache", "other weights", expected, "leave the cache in float")


def _of_layer(path: str, layer: LayerCache) -> Iterator[Problem]:
    for name, spec in zip(_PARTS, (layer.key, layer.value), strict=True):
        if not _is_legal(spec) or spec.dtype != layer.key.dtype:
            found = f"{spec}" if spec.is_quantized else "floats"
            expected = (
                "one fixed symmetric grid of int8 or fp8_e4m3 for the keys of a layer, and one for values"
            )
            yield _problem(path, name, found, expected, _REMEDY)
    if layer.config.residual_length:
        found = f"the last {layer.config.residual_length} tokens"
        yield _problem(path, "residual_length", found, "no tokens in float", "set residual_length=0")


def _is_legal(spec: QuantSpec) -> bool:
    if not (spec.is_quantized and spec.is_symmetric and isinstance(spec.granularity, PerTensor)):
        return False
    return spec.dtype in _LEGAL


def _layers(source: Source) -> Sequence[LayerCache | None]:
    cache = find_cache(source.model)
    return () if cache is None else cache.layers


def _attention_paths(model: nn.Module) -> Mapping[int, str]:
    """Return the path of the attention of each layer, by number: what the library looks for too."""
    paths: dict[int, str] = {}
    for path, module in named_modules(model):
        number: object = vars(module).get("layer_idx")
        if isinstance(number, int) and {"k_proj", "v_proj"} <= module._modules.keys():
            paths[number] = path
    return paths


def _problem(path: str, field: str, found: str, expected: str, remedy: str) -> Problem:
    return Problem(
        module=path,
        field=field,
        value=Found(found),
        expected=expected,
        sentence=f"{_NAME} takes {expected}, and this one has {found}",
        remedy=remedy,
    )
