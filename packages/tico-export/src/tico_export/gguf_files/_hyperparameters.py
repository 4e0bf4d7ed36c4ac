"""What the config of a model becomes in a file of GGUF."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

from tico_config import Found, Problem
from tico_export.gguf_files._architectures import Architecture
from tico_export.gguf_files._container import Value

_COUNTS: Final = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "vocab_size": "vocab_size",
}
_SILU: Final = ("silu", "swish")
_ROPE_TYPES: Final = ("default", "linear", "llama3", "yarn")
_YARN: Final = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
_YARN_KNOWN: Final = {"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", *_YARN}


def hyperparameters(config: object, architecture: Architecture) -> dict[str, Value]:
    """Return the keys that say how a model of `architecture` computes."""
    found: dict[str, Value] = {key: count_of(config, field) for key, field in _COUNTS.items()}
    size = head_size(config)
    found |= {
        "attention.layer_norm_rms_epsilon": _number(getattr(config, "rms_norm_eps", None)),
        "attention.key_length": size,
        "attention.value_length": size,
        "rope.dimension_count": size,
        "rope.freq_base": _number(_base(config)),
        **_scaling(config),
    }
    return {f"{architecture.name}.{key}": value for key, value in found.items()}


def config_problems(config: object) -> Iterator[Problem]:
    """Yield what a config of transformers lacks, and what it asks for that llama.cpp would not compute."""
    for field in sorted({*_COUNTS.values()}):
        if count_of(config, field) < 1:
            yield _problem(field, getattr(config, field, None), "an integer of at least 1")
    act, epsilon = (getattr(config, field, None) for field in ("hidden_act", "rms_norm_eps"))
    if math.isnan(_number(epsilon)):
        yield _problem("rms_norm_eps", epsilon, "a number")
    if act not in _SILU:
        yield _problem("hidden_act", act, "silu, which is what llama.cpp computes")
    if _has_window(config):
        remedy = "set it to None where texts are no longer than that"
        window = getattr(config, "sliding_window", None)
        yield _problem("sliding_window", window, "None: llama.cpp attends to all tokens", remedy)
    yield from _rope_problems(config)


def _rope_problems(config: object) -> Iterator[Problem]:
    rope, kind = _rope(config), _rope_type(config)
    if math.isnan(_number(_base(config))):
        yield _problem("rope_theta", _base(config), "a number")
    if kind not in _ROPE_TYPES:
        yield _problem("rope_parameters", kind, f"one of {', '.join(_ROPE_TYPES)}")
    if kind == "yarn" and (more := sorted(rope.keys() - _YARN_KNOWN)):
        yield _problem("rope_parameters", ", ".join(more), "left out, since llama.cpp has its own")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield _problem("partial_rotary_factor", rope["partial_rotary_factor"], "1: whole heads are rotated")


def rope_factors(config: object) -> Tensor | None:
    """Return what the frequencies of "llama3" are divided by, float32 (head size / 2); None for other kinds.

    Wavelengths up to ``original / high`` stay, those from ``original / low`` on are stretched by `factor`,
    and between the two the inverse of the divisor goes linearly with the frequency (Llama 3.1, section 3.2).
    """
    if _rope_type(config) != "llama3":
        return None
    rope, size = _rope(config), head_size(config)
    low, high, factor, original = (
        _number(rope[name])
        for name in ("low_freq_factor", "high_freq_factor", "factor", "original_max_position_embeddings")
    )
    places = torch.arange(0, size, 2, dtype=torch.float64) / size
    lengths = 2 * math.pi * _number(_base(config)) ** places
    smooth = ((original / lengths - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).to(torch.float32)


def head_size(config: object) -> int:
    """Return the values of a head."""
    size: object = getattr(config, "head_dim", None)
    if isinstance(size, int):
        return size
    return count_of(config, "hidden_size") // count_of(config, "num_attention_heads")


def count_of(config: object, field: str) -> int:
    """Return a field that is a count."""
    value: object = getattr(config, field, None)
    return value if isinstance(value, int) else 0


def _scaling(config: object) -> dict[str, Value]:
    rope, kind = _rope(config), _rope_type(config)
    if kind not in ("linear", "yarn"):
        return {}
    found: dict[str, Value] = {
        "rope.scaling.type": str(kind),
        "rope.scaling.factor": _number(rope["factor"]),
    }
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings")
        longest = count_of(config, "max_position_embeddings")
        found["rope.scaling.original_context_length"] = original if isinstance(original, int) else longest
        found |= {f"rope.scaling.{key}": _number(rope[name]) for name, key in _YARN.items() if name in rope}
    return found


def _rope(config: object) -> Mapping[str, object]:
    """Return the parameters of the rotation, which earlier versions of transformers had in two fields."""
    found: object = getattr(config, "rope_parameters", None)
    if isinstance(found, Mapping):
        return {str(name): value for name, value in found.items() if value is not None}
    scaling: object = getattr(config, "rope_scaling", None)
    named = {str(name): value for name, value in scaling.items()} if isinstance(scaling, Mapping) else {}
    return {"rope_theta": getattr(config, "rope_theta", 10000.0), **named}


def _base(config: object) -> object:
    return _rope(config).get("rope_theta")


def _rope_type(config: object) -> object:
    rope = _rope(config)
    return rope.get("rope_type", rope.get("type", "default"))


def _has_window(config: object) -> bool:
    kinds: object = getattr(config, "layer_types", None)
    if isinstance(kinds, list | tuple):
        return "sliding_attention" in kinds
    return getattr(config, "use_sliding_window", True) is True and isinstance(
        getattr(config, "sliding_window", None), int
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _problem(field: str, value: object, expected: str, remedy: str | None = None) -> Problem:
    found = Found(value) if isinstance(value, str) else value
    return Problem(field=f"config.{field}", value=found, expected=expected, remedy=remedy)
