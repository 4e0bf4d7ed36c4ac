"""Laws of keys and values that are kept as integers."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cache_definition import group_of, kept
from tico_config import (
    FP8,
    DType,
    FloatFormat,
    Granularity,
    KVCacheConfig,
    LifecycleError,
    PerGroup,
    PerToken,
    QuantSpec,
    affine,
)
from tico_modules import LayerCache
from tico_modules._cache.token_store import TokenStore

HEADS, CHANNELS = 2, 6
GRANULARITIES: tuple[Granularity, ...] = (PerToken(), PerGroup(-1, 4), PerGroup(-2, 3), PerGroup(-2, 1))


FORMATS: tuple[DType | FP8, ...] = (
    *(DType(bits, signed) for bits in (2, 3, 4, 8) for signed in (True, False)),
    *(FP8("e4m3"), FP8("e5m2")),
)


@attrs.frozen
class Drawn:
    """A format, and keys (2, 2, tokens, 6) in the parts in which they come."""

    layer: LayerCache
    keys: Tensor
    parts: tuple[Tensor, ...]

    def store(self) -> TokenStore:
        """Return a store of the keys, given part by part."""
        store, _ = self.layer.stores()
        for part in self.parts:
            store.append(part)
        return store

    def kept(self) -> Tensor:
        """Return the slow definition of what it reads."""
        return kept(self.keys, self.layer, "key")


@st.composite
def specs(draw: st.DrawFn) -> QuantSpec:
    """Draw a format whose grids come from the data."""
    return affine(draw(st.sampled_from(FORMATS)), granularity=draw(st.sampled_from(GRANULARITIES)))


@st.composite
def drawn_keys(draw: st.DrawFn) -> Drawn:
    """Draw a format and keys."""
    config = KVCacheConfig(key=draw(specs()), residual_length=draw(st.integers(0, 9)))
    counts = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    scale = 10.0 ** draw(st.integers(-3, 3))
    keys = torch.randn(2, HEADS, sum(counts), CHANNELS, generator=generator) * scale
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    keys = keys.to(dtype)
    return Drawn(LayerCache(config), keys, torch.split(keys, counts, dim=-2))


@given(drawn_keys())
def test_what_is_read_is_its_definition(drawn: Drawn) -> None:
    """However the tokens come, attention reads the bits of the slow definition over all of them."""
    assert torch.equal(drawn.store().read(), drawn.kept())


@given(drawn_keys())
def test_the_most_recent_tokens_are_the_floats(drawn: Drawn) -> None:
    """The last `residual_length` tokens, or all if there are fewer, are read as they came, bit for bit."""
    length = min(drawn.layer.config.residual_length, drawn.keys.shape[-2])
    start = drawn.keys.shape[-2] - length
    assert torch.equal(drawn.store().read()[..., start:, :], drawn.keys[..., start:, :])


@given(drawn_keys())
def test_a_value_is_at_most_half_a_step_away(drawn: Drawn) -> None:
    """|x - read(x)| <= step / 2, up to the rounding of the arithmetic.

    The step of integers is the scale; with M bits of mantissa it is ``2**-M`` of a value in magnitude, or
    that of subnormal elements. Values are at most 2^8 steps of integers and come from two roundings, the
    reciprocal and the product, of 2^-24 each; the product that gives the value back is rounded once more: in
    all less than 2^-14 of a step, and elements, of fewer steps, need no more. The result is rounded to the
    dtype of the keys: its 8 bits, or 24, give 2^-8 of the value, or 2^-24.
    """
    store = drawn.store()
    codes = store.codes
    if codes is None or codes.scale is None:
        return
    tokens, channels = group_of(drawn.layer.key)
    scale = codes.scale.float().repeat_interleave(tokens, -2)
    scale = scale.repeat_interleave(min(channels, CHANNELS), -1)[..., :CHANNELS]
    floats, read = (each[..., : store.coded, :].float() for each in (drawn.keys, store.read()))
    rounding = read.abs() * (2**-8 if drawn.keys.dtype == torch.bfloat16 else 2**-24)
    half = step_of(drawn.layer.key, floats, scale) * (0.5 + 2**-14)
    assert bool(((floats - read).abs() <= half + rounding).all())


def step_of(spec: QuantSpec, x: Tensor, scale: Tensor) -> Tensor:
    """Return how far apart values of the grid around `x` are, or more."""
    if not isinstance(spec.dtype, FloatFormat):
        return scale
    element = spec.dtype.encoding
    return torch.maximum(x.abs() * 2.0**-element.mantissa_bits, scale * element.smallest)


@given(drawn_keys(), st.data())
def test_cropping_keeps_what_was_read(drawn: Drawn, data: st.DataObject) -> None:
    """Reading the first n tokens of a cropped store gives the bits that were read of them before."""
    store = drawn.store()
    before = store.read()
    count = data.draw(st.integers(0, before.shape[-2]))
    store.crop(count)
    assert store.count == count
    assert torch.equal(store.read(), before[..., :count, :])
    store.append(drawn.keys[..., :1, :])
    assert store.count == count + 1


@given(drawn_keys(), st.lists(st.integers(0, 1), min_size=1, max_size=4))
def test_samples_are_chosen_as_in_a_float_cache(drawn: Drawn, order: list[int]) -> None:
    """Choosing samples of the codes is choosing samples of what is read."""
    store = drawn.store()
    before = store.read()
    store.change(lambda each: each[torch.tensor(order)])
    assert torch.equal(store.read(), before[torch.tensor(order)])


@given(drawn_keys(), st.integers(0, 5), st.data())
def test_a_store_of_fixed_length_reads_the_same(drawn: Drawn, more: int, data: st.DataObject) -> None:
    """Bit for bit what a store that grows reads, also after a crop, in the memory of the first tokens."""
    grown = drawn.store()
    fixed, _ = drawn.layer.stores(max_length=grown.count + more)
    sizes = []
    for part in drawn.parts:
        fixed.append(part)
        sizes.append(fixed.nbytes)
    assert torch.equal(fixed.read(), grown.read())
    count = data.draw(st.integers(0, grown.count))
    for store in (fixed, grown):
        store.crop(count)
        store.append(drawn.keys[..., count:, :])
    assert torch.equal(fixed.read(), grown.read())
    assert {*sizes, fixed.nbytes} == {sizes[0]}
    with pytest.raises(LifecycleError, match=f"max_length={grown.count + more + 1}"):
        fixed.append(drawn.keys[..., :1, :].repeat_interleave(more + 1, -2))
    assert torch.equal(fixed.read(), grown.read())


@given(drawn_keys())
def test_codes_take_their_bits(drawn: Drawn) -> None:
    """A row takes ceil(6 bits / 8) bytes, a grid 2 bytes, and a zero point 1; the rest is float."""
    store, spec = drawn.store(), drawn.layer.key
    tokens, channels = group_of(spec)
    rows = 2 * HEADS * store.coded
    grids = rows // tokens * -(-CHANNELS // channels)
    floats = (drawn.keys.shape[-2] - store.coded) * 2 * HEADS * CHANNELS * drawn.keys.element_size()
    row = -(-CHANNELS * spec.dtype.bits // 8)
    assert store.nbytes == rows * row + grids * (2 if spec.is_symmetric else 3) + floats
