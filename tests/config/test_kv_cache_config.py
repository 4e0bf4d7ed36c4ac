"""What can be asked of a cache, and what a granularity that is left out stands for."""

from __future__ import annotations

import pytest

from tico_config import (
    FP8,
    INT8,
    INT16,
    MXFP8,
    UINT4,
    ConfigError,
    Granularity,
    KVCacheConfig,
    MSESpec,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QScheme,
    QuantSpec,
    affine,
    from_json,
    no_quant,
    to_json,
)


def test_granularities_that_are_left_out() -> None:
    """Keys have grids per channel, values per token, or per head where grids are static."""
    dynamic, static = KVCacheConfig(group_size=16), KVCacheConfig(static=True)
    assert dynamic.key_spec().granularity == PerGroup(axis=-2, size=16)
    assert dynamic.value_spec().granularity == PerGroup(axis=-1, size=16)
    assert static.key_spec().granularity == PerChannel(axis=-1)
    assert static.value_spec().granularity == PerChannel(axis=-3)


def test_fp8_has_one_scale_for_many_channels() -> None:
    """Without a granularity it is one for each token, or a static one for the layer: what runtimes have."""
    dynamic, static = (KVCacheConfig(key=affine(FP8()), static=each) for each in (False, True))
    assert dynamic.key_spec() == affine(FP8(), granularity=PerToken(), qscheme=QScheme.PER_TENSOR_SYMM)
    assert static.key_spec().granularity == PerTensor()
    assert from_json(to_json(static)) == static


@pytest.mark.parametrize(
    ("granularity", "static", "counted_from_the_end"),
    [
        (PerGroup(2, 8), False, PerGroup(-2, 8)),
        (PerGroup(3, 8), False, PerGroup(-1, 8)),
        (PerToken(), False, PerToken()),
        (PerTensor(), True, PerTensor()),
        (PerChannel(1), True, PerChannel(-3)),
        (PerChannel(3), True, PerChannel(-1)),
    ],
)
def test_granularities(granularity: Granularity, static: bool, counted_from_the_end: Granularity) -> None:
    """Axes are those of (batch, heads, tokens, channels), from either end; a scheme goes along."""
    for scheme in (None, QScheme.PER_CHANNEL_SYMM, QScheme.PER_TENSOR_SYMM):
        fits = scheme is None or scheme.is_per_channel == isinstance(granularity, PerChannel | PerGroup)
        if fits:
            for dtype in (INT8, FP8()):
                spec = affine(dtype, scheme, granularity=granularity)
                config = KVCacheConfig(key=spec, value=no_quant(), static=static)
                assert config.key_spec().granularity == counted_from_the_end
                assert config.key_spec().is_symmetric
                assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("key", "static", "message"),
    [
        (
            affine(MXFP8()),
            False,
            "integers or FP8, and key asks for mxfp8_e4m3; give key=affine",
        ),
        (affine(INT16), False, "key.dtype must be of 2 to 8 bits, got int16"),
        (affine(INT8, observer=MSESpec()), True, r"key.observer must be MinMaxSpec\(\)"),
        (affine(INT8, on_nonfinite="ignore"), False, "key.on_nonfinite must be 'error'"),
        (affine(INT8, granularity=PerTensor()), False, "as grids are dynamic"),
        (affine(INT8, granularity=PerChannel(-1)), False, "as grids are dynamic"),
        (affine(INT8, granularity=PerToken()), True, "as grids are static"),
        (affine(INT8, granularity=PerGroup(-2, 4)), True, "as grids are static"),
        (affine(INT8, granularity=PerChannel(0)), True, "as grids are static"),
        (affine(INT8, granularity=PerGroup(1, 4)), False, "as grids are dynamic"),
    ],
)
def test_what_no_cache_holds_is_refused(key: QuantSpec, static: bool, message: str) -> None:
    """By one sentence that names the field."""
    with pytest.raises(ConfigError, match=message):
        KVCacheConfig(key=key, static=static)


def test_numbers_out_of_range_are_refused_together() -> None:
    """So is a cache that would be float."""
    with pytest.raises(ConfigError, match="3 problems") as caught:
        KVCacheConfig(key=no_quant(), value=no_quant(), group_size=0, residual_length=-1)
    assert [each.field for each in caught.value.problems] == ["value", "group_size", "residual_length"]
    with pytest.raises(ConfigError, match="residual_length"):
        KVCacheConfig(overrides={"*.0": {"residual_length": -1}})
    assert KVCacheConfig(overrides={"*.0": {"key": affine(UINT4)}}).resolve("a.0").spec.key == affine(UINT4)
