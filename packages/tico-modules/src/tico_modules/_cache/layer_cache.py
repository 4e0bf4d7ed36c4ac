"""How one attention layer keeps keys and values, as a module that holds its fixed scales."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from tico_config import (
    FP8,
    ConfigError,
    Found,
    KVCacheConfig,
    NumericsError,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    Problem,
    QuantSpec,
    to_json,
)
from tico_modules._cache.cache_grid import CacheGrid, cache_format
from tico_modules._cache.token_store import TokenStore
from tico_modules._storage.exact_module import ExactModule
from tico_observers import AffineParams

_TENSORS: Final = 3
_CHANNELS: Final = -1


class LayerCache(ExactModule):
    """The format of the keys and values of one layer.

    Fixed grids are in the buffers `key_scale` and `value_scale` (float32), `key_zero_point` and
    `value_zero_point` (int32), of shape (1, 1, 1) for the layer, (heads, 1, 1) for each head, or
    (heads, 1, channels) for each channel. Where grids come from the data, or there is none, the
    buffers are None. FP8 has the zero point 0. `k_scale` and `v_scale` are the scales as runtimes want them.

    Args:
        config: what is asked for, without overrides.
        key: the fixed grid of keys, of the shapes above; only for static grids.
        value: that of values.

    Raises:
        ConfigError: a fixed grid is missing, or there is one too many.
        NumericsError: a fixed grid has another shape.
    """

    key_scale: Tensor | None
    key_zero_point: Tensor | None
    value_scale: Tensor | None
    value_zero_point: Tensor | None

    def __init__(
        self, config: KVCacheConfig, key: AffineParams | None = None, value: AffineParams | None = None
    ) -> None:
        super().__init__()
        self.config = config
        for name, spec, params in (("key", self.key, key), ("value", self.value, value)):
            _require_grid(name, params, needed=config.static and spec.is_quantized)
            self.register_buffer(f"{name}_scale", None if params is None else params.scale)
            self.register_buffer(f"{name}_zero_point", None if params is None else params.zero_point)

    @property
    def key(self) -> QuantSpec:
        """Format and granularity of keys."""
        return self.config.key_spec()

    @property
    def value(self) -> QuantSpec:
        """Format and granularity of values."""
        return self.config.value_spec()

    @property
    def k_scale(self) -> Tensor | None:
        """The fixed scales of keys, float32: (), (heads,) or (heads, channels); None without fixed ones."""
        return _plain(self.key_scale, self.key)

    @property
    def v_scale(self) -> Tensor | None:
        """The fixed scales of values, as `k_scale`."""
        return _plain(self.value_scale, self.value)

    def stores(self, max_length: int | None = None) -> tuple[TokenStore, TokenStore]:
        """Return empty stores of keys and of values, for `max_length` tokens or any number."""
        length = self.config.residual_length
        key = _grid(self.key, self.key_scale, self.key_zero_point)
        value = _grid(self.value, self.value_scale, self.value_zero_point)
        return TokenStore(key, length, max_length), TokenStore(value, length, max_length)

    def meaning(self) -> Mapping[str, object]:
        """Return the format, as JSON values."""
        values: dict[str, object] = json.loads(to_json(self.config))
        return values

    def describe(self) -> str:
        """Return a short description.

        >>> LayerCache(KVCacheConfig()).describe().partition(";")[0]
        'keys uint4 asymmetric, each channel of 32 tokens'
        """
        return (
            f"keys {_described(self.key)}; values {_described(self.value)};"
            f" the last {self.config.residual_length} tokens float"
        )


def _grid(spec: QuantSpec, scale: Tensor | None, zero_point: Tensor | None) -> CacheGrid | None:
    if not spec.is_quantized:
        return None
    granularity = spec.granularity if isinstance(spec.granularity, PerToken | PerGroup) else None
    return CacheGrid(
        dtype=cache_format(spec.dtype),
        symmetric=spec.is_symmetric,
        granularity=granularity,
        scale=scale,
        zero_point=zero_point,
    )


def _require_grid(name: str, params: AffineParams | None, *, needed: bool) -> None:
    if (params is not None) != needed:
        expected = "a grid, as grids are static" if needed else "None, as grids are not static"
        raise ConfigError(Problem(field=name, value=Found(str(params)), expected=expected))
    if params is not None and params.scale.ndim != _TENSORS:
        found = Found(f"scales of shape {tuple(params.scale.shape)}")
        raise NumericsError(Problem(field=name, value=found, expected="(heads or 1, 1, channels or 1)"))


def _plain(scale: Tensor | None, spec: QuantSpec) -> Tensor | None:
    if scale is None:
        return None
    match spec.granularity:
        case PerTensor():
            return scale.reshape(())
        case PerChannel(axis=axis) if axis == _CHANNELS:
            return scale.squeeze(1)
        case _:
            return scale.reshape(-1)


def _described(spec: QuantSpec) -> str:
    if not spec.is_quantized:
        return "float"
    if isinstance(spec.dtype, FP8):
        return f"{spec.dtype}, {_unit(spec)}"
    scheme = "symmetric" if spec.is_symmetric else "asymmetric"
    return f"{spec.dtype} {scheme}, {_unit(spec)}"


def _unit(spec: QuantSpec) -> str:
    match spec.granularity:
        case PerToken():
            return "each token of each head"
        case PerGroup(axis=axis, size=size) if axis == _CHANNELS:
            return f"{size} channels of each token"
        case PerGroup(size=size):
            return f"each channel of {size} tokens"
        case PerChannel(axis=axis) if axis == _CHANNELS:
            return "static for each channel"
        case PerChannel():
            return "static for each head"
        case _:
            return "static for the layer"


def grid_shape(spec: QuantSpec, heads: int, channels: int) -> tuple[int, int, int]:
    """Return the shape of the fixed scales of a layer with so many heads and channels of each.

    >>> from tico_config import INT8, affine
    >>> grid_shape(affine(INT8, granularity=PerChannel(axis=-1)), 2, 64)
    (2, 1, 64)
    """
    match spec.granularity:
        case PerChannel(axis=axis) if axis == _CHANNELS:
            return heads, 1, channels
        case PerChannel():
            return heads, 1, 1
        case _:
            return 1, 1, 1


def over_units(extremes: Tensor, spec: QuantSpec, *, largest: bool) -> Tensor:
    """Return the largest or smallest of `extremes` (heads, channels) of each grid, of `grid_shape`."""
    wanted = grid_shape(spec, *extremes.shape)
    axes = [axis for axis, size in ((0, wanted[0]), (1, wanted[2])) if size == 1]
    if axes:
        extremes = torch.amax(extremes, axes) if largest else torch.amin(extremes, axes)
    return extremes.reshape(wanted)
