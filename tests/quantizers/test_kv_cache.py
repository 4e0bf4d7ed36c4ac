"""Keys and values as integers: what the model computes, what is kept, learned, saved and refused."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM, StaticCache
from transformers.cache_utils import Cache, DynamicLayer

from cache_definition import kept
from cache_models import DefinedCache, all_at_once, half_sliding, texts, two_heads, with_encoder
from tico.quantization import (
    GPTQConfig,
    KVCacheConfig,
    PTQConfig,
    cache_bytes,
    calibrate,
    convert,
    load_quantized,
    perplexity,
    plan,
    prepare,
    quantized_cache,
    report,
    save_quantized,
)
from tico_config import (
    FP8,
    INT8,
    UINT4,
    BaseConfig,
    CalibrationError,
    ConfigError,
    DType,
    LifecycleError,
    NumericsError,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    UnsupportedError,
    affine,
    no_quant,
)
from tico_modules import KeyValueCache, find_cache
from tico_modules._cache._transformers import QuantizedLayer
from tico_modules._cache.token_store import TokenStore
from tico_quantizers.testing import same_tensors, tensors_of, unchanged

UINT2 = DType.uint(2)
DYNAMIC = KVCacheConfig(residual_length=8, group_size=4)
STATIC = KVCacheConfig(key=affine(INT8), value=affine(INT8), static=True, residual_length=0)
TWO_BITS = KVCacheConfig(key=affine(UINT2), value=affine(UINT2), residual_length=3, group_size=8)
TOKENS = KVCacheConfig(
    key=affine(INT8, granularity=PerToken()),
    value=affine(INT8, granularity=PerToken()),
    residual_length=0,
)
MIXED = KVCacheConfig(key=no_quant(), value=affine(UINT4), residual_length=2)
FP8_TOKENS = KVCacheConfig(key=affine(FP8()), value=affine(FP8("e5m2")), residual_length=4)
FP8_STATIC = KVCacheConfig(key=affine(FP8()), value=affine(FP8()), static=True, residual_length=0)
CONFIGS = (DYNAMIC, STATIC, TWO_BITS, TOKENS, MIXED, FP8_TOKENS, FP8_STATIC)
QUIET = GPTQConfig(bits=4, show_progress=False)


def converted(config: BaseConfig, model: nn.Module | None = None) -> nn.Module:
    """Return a model converted with two batches."""
    work = prepare(two_heads() if model is None else model, config)
    return convert(calibrate(work, [texts(0), texts(1)]))


def logits(model: nn.Module, tokens: Tensor, **kwargs: object) -> Tensor:
    """Return what a language model makes of `tokens`."""
    with torch.no_grad():
        found: Tensor = model(tokens, **kwargs).logits
    return found


def generated(model: nn.Module, tokens: Tensor, **kwargs: object) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the tokens that a language model goes on with, and the logits that chose them."""
    settings = {"max_new_tokens": 14, "do_sample": False, **kwargs}
    mask = torch.ones_like(tokens)
    found = model.generate(  # type: ignore[operator]
        tokens, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **settings
    )
    return found.sequences, found.logits


@pytest.mark.parametrize("config", CONFIGS)
def test_generation_is_its_slow_definition(config: KVCacheConfig) -> None:
    """Greedy and beam search give the bits that floats moved to the grids, written out, give."""
    model = converted(config)
    assert isinstance(model, LlamaForCausalLM)
    for beams in (1, 3):
        found, scores = generated(model, texts(2, tokens=11), num_beams=beams)
        expected, defined = generated(
            model, texts(2, tokens=11), num_beams=beams, past_key_values=DefinedCache(model)
        )
        assert torch.equal(found, expected)
        assert all(torch.equal(one, other) for one, other in zip(scores, defined, strict=True))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_forward_pass_reads_the_codes(config: KVCacheConfig) -> None:
    """One pass over a text attends to what the cache holds: the definition's bits, and not the float ones."""
    model, tokens = converted(config), texts(3)
    assert isinstance(model, LlamaForCausalLM)
    expected = logits(model, tokens, past_key_values=DefinedCache(model))
    assert torch.equal(logits(model, tokens), expected)
    assert not torch.equal(logits(model, tokens), logits(two_heads(), tokens))
    assert torch.equal(logits(model, tokens, use_cache=False), logits(two_heads(), tokens))


@pytest.mark.parametrize("config", [TOKENS, STATIC])
def test_without_a_window_reading_is_writing_token_by_token(config: KVCacheConfig) -> None:
    """With a grid per token, or fixed ones, and no window, a text gives the same read at once or in parts.

    Products of other shapes sum in other orders: float32 logits of size 1 differ by about 1e-6.
    """
    model, tokens = converted(config), texts(4, tokens=20)
    cache = quantized_cache(model)
    parts = [logits(model, part, past_key_values=cache) for part in torch.split(tokens, 1, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), logits(model, tokens), atol=2e-5, rtol=0)


def test_the_cache_holds_packed_codes() -> None:
    """Its bytes are those of codes and scales; what attention reads is made anew at each step."""
    model = converted(attrs.evolve(TOKENS, key=affine(UINT4, granularity=PerToken())))
    cache = model(texts(0, tokens=32), use_cache=True).past_key_values
    values = 2 * 2 * 2 * 32  # layers, samples, heads, tokens
    keys_of_a_token, values_of_a_token = 8 // 2 + 2 + 1, 8 + 2  # codes, a scale, for keys a zero point
    assert cache.nbytes == values * (keys_of_a_token + values_of_a_token)
    assert cache_bytes(two_heads()(texts(0, tokens=32), use_cache=True).past_key_values) == values * 64
    assert cache_bytes(cache) == cache.nbytes
    stored = [store.codes.packed.dtype for layer in cache.layers for store in layer.stores]
    assert stored == [torch.uint8] * 4


def test_the_cache_holds_elements_of_fp8() -> None:
    """Codes are torch's float8 of both standards, a byte for each value, and static ones have no more."""
    cache = converted(FP8_TOKENS)(texts(0), use_cache=True).past_key_values
    stored = [store.codes.packed.dtype for store in cache.layers[0].stores]
    assert stored == [torch.float8_e4m3fn, torch.float8_e5m2]
    cache = converted(FP8_STATIC)(texts(0), use_cache=True).past_key_values
    assert cache.nbytes * 4 == cache_bytes(two_heads()(texts(0), use_cache=True).past_key_values)


def test_a_cache_can_be_given() -> None:
    """A cache of one's own is used, goes on where it was, and the one that generate makes holds codes too."""
    model, tokens = converted(TWO_BITS), texts(5, tokens=12)
    cache = quantized_cache(model)
    sequences, _ = generated(model, tokens, past_key_values=cache)
    assert cache.get_seq_length() == 12 + 14 - 1
    assert torch.equal(sequences, generated(model, tokens)[0])
    empty = DynamicCache(config=two_heads().config)
    logits(model, tokens, past_key_values=empty)
    assert cache_bytes(empty) < cache_bytes(DynamicCache([(torch.ones(2, 2, 12, 8),) * 2] * 2))


def test_other_caches_stay_as_they_are() -> None:
    """A cache with tokens, or of another class, is no cache that the model has made."""
    model, tokens = converted(TWO_BITS), texts(5, tokens=12)
    float_model = two_heads()
    cache, config = DynamicCache(config=float_model.config), float_model.config
    expected = logits(float_model, tokens, past_key_values=cache)
    cache.crop(-6)
    found = logits(model, tokens[:, 6:], past_key_values=cache)
    torch.testing.assert_close(found, expected[:, 6:], atol=2e-5, rtol=0)
    static = StaticCache(config, max_cache_len=30)
    logits(float_model, tokens[:, :6], past_key_values=static)
    found = logits(model, tokens[:, 6:], past_key_values=static)
    torch.testing.assert_close(found, expected[:, 6:], atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_cache_of_fixed_length_gives_the_same_bits(config: KVCacheConfig) -> None:
    """Generation is that with a cache that grows: with one's own, used twice, and with one of generate's."""
    model, tokens = converted(config), texts(5, tokens=12)
    cache = quantized_cache(model, max_length=26)
    for beams in (1, 2):
        expected = generated(model, tokens, num_beams=beams)
        mine = generated(model, tokens, num_beams=beams, past_key_values=cache)
        theirs = generated(model, tokens, num_beams=beams, cache_implementation="static")
        for sequences, scores in (mine, theirs):
            assert torch.equal(sequences, expected[0])
            assert all(torch.equal(one, other) for one, other in zip(scores, expected[1], strict=True))
        cache.reset()  # type: ignore[no-untyped-call]  # transformers leaves it untyped


def stores_of(cache: Cache) -> list[TokenStore]:
    """Return the keys and values of all layers of a quantized cache."""
    return [store for layer in cache.layers if isinstance(layer, QuantizedLayer) for store in layer.stores]


def test_a_cache_of_fixed_length_takes_its_memory_once() -> None:
    """Codes stay where they are and take what those of a full growing one do; more tokens change nothing."""
    model, tokens = converted(TOKENS), texts(6, tokens=30)
    cache = quantized_cache(model, max_length=30)
    sizes, places = [], []
    for part in torch.split(tokens, 5, dim=1):
        logits(model, part, past_key_values=cache)
        sizes.append(cache.nbytes)
        places.append([store.codes.packed.data_ptr() for store in stores_of(cache) if store.codes])
    assert sizes == sizes[:1] * 6
    assert places == places[:1] * 6
    assert cache.nbytes == model(tokens, use_cache=True).past_key_values.nbytes
    before = [store.read() for store in stores_of(cache)]
    with pytest.raises(LifecycleError, match="has 30 of 30 tokens, and cannot take 2 more; make it by"):
        logits(model, tokens[:, :2], past_key_values=cache)
    assert all(torch.equal(store.read(), old) for store, old in zip(stores_of(cache), before, strict=True))
    with pytest.raises(ConfigError, match="max_length"):
        quantized_cache(model, max_length=0)


def test_values_that_have_no_codes_leave_a_layer_as_it_was() -> None:
    """Its keys, too: the cache can go on with other tokens."""
    cache = quantized_cache(converted(TOKENS))
    layer = next(each for each in cache.layers if isinstance(each, QuantizedLayer))
    good = torch.arange(48.0).view(1, 1, 6, 8)
    layer.update(good, good)
    before = [store.read() for store in layer.stores]
    with pytest.raises(NumericsError):
        layer.update(good, torch.full_like(good, math.nan))
    assert all(torch.equal(store.read(), old) for store, old in zip(layer.stores, before, strict=True))


def test_a_cache_of_fixed_length_can_be_filled_in_inference_mode() -> None:
    """Memory that is taken in inference mode is written outside of it as well."""
    model, tokens = converted(FP8_STATIC), texts(6, tokens=20)
    cache = quantized_cache(model, max_length=20)
    with torch.inference_mode():
        model(tokens[:, :10], past_key_values=cache)
    model(tokens[:, 10:], past_key_values=cache)
    assert cache.get_seq_length() == 20


def test_crop_and_choice_of_samples() -> None:
    """A cache that forgets tokens and samples reads what it read of the others."""
    cache = converted(TWO_BITS)(texts(6, tokens=30), use_cache=True).past_key_values
    before = [(layer.keys, layer.values) for layer in cache.layers]
    cache.crop(-9)
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 0, 1, 2]))
    cache.batch_select_indices(torch.tensor([0, 2]))
    assert cache.get_seq_length() == 21
    for layer, states in zip(cache.layers, before, strict=True):
        for found, old in zip((layer.keys, layer.values), states, strict=True):
            assert torch.equal(found, old[[1, 0]][:, :, :21])
    with pytest.raises(UnsupportedError, match="a negative number of tokens"):
        cache.crop(3)
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes) == (0, 0)


def test_static_grids_span_what_was_seen() -> None:
    """The scale of a head is that of the largest magnitude of its keys in all calibration data."""
    model = two_heads()
    seen = DynamicCache(config=model.config)
    logits(model, torch.cat([texts(0), texts(1)]), past_key_values=seen)
    config = attrs.evolve(STATIC, key=affine(INT8, granularity=PerChannel(1)))
    formats = find_cache(converted(config))
    assert formats is not None
    for layer, states in zip(formats.layers, seen.layers, strict=True):
        assert layer is not None
        assert isinstance(states, DynamicLayer)
        assert isinstance(states.keys, Tensor)
        low, high = states.keys.amin((0, 2, 3)), states.keys.amax((0, 2, 3))
        # Of a batch of two texts and one of four, products differ in the last bits.
        torch.testing.assert_close(layer.k_scale, torch.maximum(high / 127, -low / 128), rtol=1e-5, atol=0)
        assert layer.v_scale is not None
        assert layer.v_scale.shape == (2,)


def test_static_scales_of_fp8_are_those_of_runtimes() -> None:
    """Without a granularity a layer has one `k_scale`, its largest magnitude over the largest element."""
    seen = two_heads()(torch.cat([texts(0), texts(1)]), use_cache=True).past_key_values
    formats = find_cache(converted(FP8_STATIC))
    assert formats is not None
    for layer, states in zip(formats.layers, seen.layers, strict=True):
        assert layer is not None
        assert layer.v_scale is not None
        assert layer.v_scale.shape == ()
        # Of a batch of two texts and one of four, products differ in the last bits.
        torch.testing.assert_close(layer.k_scale, states.keys.abs().max() / 448, rtol=1e-5, atol=0)
        torch.testing.assert_close(layer.v_scale, states.values.abs().max() / 448, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [INT8, FP8()])
@pytest.mark.parametrize(
    ("granularity", "shape"), [(PerTensor(), ()), (PerChannel(1), (2,)), (PerChannel(-1), (2, 8))]
)
def test_static_scales_can_be_read(
    dtype: DType | FP8, granularity: PerTensor | PerChannel, shape: tuple[int, ...]
) -> None:
    """They have an axis for heads, and one for channels, as the granularity says."""
    spec = affine(dtype, granularity=granularity)
    formats = find_cache(converted(attrs.evolve(STATIC, key=spec, value=spec)))
    assert formats is not None
    layer = formats.layers[0]
    assert layer is not None
    assert layer.k_scale is not None
    assert layer.v_scale is not None
    assert (layer.k_scale.shape, layer.v_scale.shape) == (shape, shape)


def test_padding_enters_no_static_grid() -> None:
    """A padded batch gives the grids of its texts alone; products of other shapes differ in the last bits."""
    texts_alone = [texts(7, 1, 20), texts(8, 1, 9)]
    padded = torch.zeros(2, 20, dtype=torch.int64)
    mask = torch.zeros_like(padded)
    for row, text in enumerate(texts_alone):
        padded[row, 20 - text.shape[1] :] = text
        mask[row, 20 - text.shape[1] :] = 1
    alone, together = prepare(two_heads(), STATIC), prepare(two_heads(), STATIC)
    for text in texts_alone:
        positions = torch.arange(20 - text.shape[1], 20)[None]
        alone(text, position_ids=positions)
    together(padded, attention_mask=mask)
    expected, found = tensors_of(convert(alone)), tensors_of(convert(together))
    scales = [name for name in found if "kv_cache" in name]
    assert len(scales) == 8
    for name in scales:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=0)


def test_batches_and_threads_change_no_bit() -> None:
    """Grids are those of all data, however they are split, in any order; on one thread and on two."""

    def grids(*batches: Tensor) -> dict[str, Tensor]:
        return tensors_of(convert(calibrate(prepare(two_heads("eager"), STATIC), list(batches))))

    one, two, three = texts(0), texts(1), texts(2)
    expected = grids(one, two, three)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert same_tensors(grids(three, one, two, one), expected)
    finally:
        torch.set_num_threads(threads)


def test_a_prepared_model_is_the_float_one() -> None:
    """It computes and returns what it did, with a cache and without, while its keys are seen."""
    model, tokens = two_heads(), texts(0)
    prepared = prepare(two_heads(), STATIC)
    for use_cache in (True, False):
        expected, found = (each(tokens, use_cache=use_cache) for each in (model, prepared))
        assert torch.equal(expected.logits, found.logits)
        assert expected.keys() == found.keys()
    expected, found = (each(tokens, use_cache=False, return_dict=False) for each in (model, prepared))
    assert len(expected) == len(found)
    assert torch.equal(generated(model, tokens[:, :5])[0], generated(prepared, tokens[:, :5])[0])
    assert type(convert(prepared)) is LlamaForCausalLM


def test_generation_counts_as_data() -> None:
    """Each step of generate is a pass whose keys are seen: as one pass over the same text."""
    text, _ = generated(two_heads(), texts(0, 1, 8))
    by_steps, at_once = prepare(two_heads(), STATIC), prepare(two_heads(), STATIC)
    generated(by_steps, texts(0, 1, 8))
    at_once(text[:, :-1])
    expected, found = tensors_of(convert(at_once)), tensors_of(convert(by_steps))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=0)


FP8_HEADS = attrs.evolve(FP8_STATIC, value=affine(FP8(), granularity=PerChannel(1)))


@pytest.mark.parametrize("config", [STATIC, FP8_HEADS])
def test_a_layer_without_data_and_a_head_of_zeros_are_named(config: KVCacheConfig) -> None:
    """Static grids need data, and values that are not all 0; after the error calibration can go on."""
    with pytest.raises(CalibrationError, match=r"layers\.0\.self_attn: no calibration data gave keys"):
        convert(prepare(two_heads(), config))
    model = two_heads()
    attention = model.model.layers[1].self_attn
    attention.v_proj.weight.data[8:] = 0
    prepared = calibrate(prepare(model, config), [texts(0)])
    with pytest.raises(CalibrationError, match=r"layers\.1\.self_attn: the values of head 1 are 0"):
        convert(prepared)
    attention.v_proj.weight.data[8:] = 1
    assert find_cache(convert(calibrate(prepared, [texts(0)]))) is not None


def test_saved_models_give_equal_bits_elsewhere(tmp_path: Path) -> None:
    """A fresh process that knows the folder alone reads and writes the same tokens."""
    tokens = texts(9)
    expected = {}
    for number, config in enumerate(CONFIGS):
        model = converted(config)
        save_quantized(model, tmp_path / str(number))
        expected[str(number)] = logits(model, tokens)
    torch.save(tokens, tmp_path / "tokens.pt")
    script = (
        "import sys, torch; from pathlib import Path; from tico.quantization import load_quantized\n"
        "folder = Path(sys.argv[1]); tokens = torch.load(folder / 'tokens.pt')\n"
        "with torch.no_grad(): torch.save({each.name: load_quantized(each)(tokens).logits"
        " for each in folder.iterdir() if each.is_dir()}, folder / 'logits.pt')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment)
    found = torch.load(tmp_path / "logits.pt")
    assert same_tensors(found, expected)


@pytest.mark.parametrize("config", [DYNAMIC, STATIC])
def test_a_copy_has_a_cache_of_its_own(config: KVCacheConfig) -> None:
    """Copies of prepared and converted models work for themselves, and all give the same bits."""
    prepared = calibrate(prepare(two_heads(), config), [texts(0), texts(1)])
    twin = copy.deepcopy(prepared)
    model, other = convert(prepared), convert(twin)
    copied = copy.deepcopy(model)
    assert find_cache(copied) is not find_cache(model)
    for each in (other, copied):
        assert torch.equal(logits(each, texts(3)), logits(model, texts(3)))
    assert find_cache(convert(calibrate(prepare(two_heads(), config), [texts(0)]), inplace=False)) is not None


@pytest.mark.parametrize("other", [QUIET, PTQConfig(), PTQConfig(scope="linear")])
@pytest.mark.parametrize("config", [DYNAMIC, STATIC])
def test_other_algorithms_come_before_or_after(
    config: KVCacheConfig, other: BaseConfig, tmp_path: Path
) -> None:
    """Both orders keep what the first has left, in the model, its report and its files."""
    for first, second in ((config, other), (other, config)):
        model = converted(second, converted(first))
        algorithms = {line.path: line.algorithm for line in report(model).layers}
        assert algorithms["kv_cache"] == "kv_cache"
        assert algorithms["model.layers.0.self_attn.q_proj"] == other.name
        assert model(texts(3)).past_key_values.nbytes > 0
        save_quantized(model, tmp_path / "model")
        assert torch.equal(logits(load_quantized(tmp_path / "model"), texts(3)), logits(model, texts(3)))
        assert not torch.equal(logits(model, texts(3)), logits(model, texts(3), use_cache=False))


def test_a_second_config_takes_the_place_of_the_first() -> None:
    """The model is float inside, so that a cache can be asked for anew."""
    model = converted(STATIC, converted(TWO_BITS))
    assert torch.equal(logits(model, texts(3)), logits(converted(STATIC), texts(3)))
    assert len(model._forward_pre_hooks) == 1


def test_layers_can_be_left_out() -> None:
    """An override has the path of an attention module, and is refused where it matches none."""
    config = attrs.evolve(
        STATIC, overrides={"model.layers.0.self_attn": no_quant(), "*.1.self_attn": {"residual_length": 4}}
    )
    model = converted(config)
    cache = model(texts(0), use_cache=True).past_key_values
    assert [type(layer).__name__ for layer in cache.layers] == ["DynamicLayer", "QuantizedLayer"]
    assert cache.layers[1].stores[0].recent.shape[-2] == 4
    line = next(line for line in report(model).layers if line.path == "kv_cache")
    assert line.reason == "model.layers.0.self_attn: left out by the override 'model.layers.0.self_attn'"
    with pytest.raises(ConfigError, match=r"which matches no module"):
        prepare(two_heads(), attrs.evolve(DYNAMIC, overrides={"*.attn": no_quant()}))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_plan_is_the_report(config: KVCacheConfig) -> None:
    """But for the numbers of static scales, what is planned is what is done."""
    planned = next(line for line in plan(two_heads(), config).lines if line.path == "kv_cache")
    done = next(line for line in report(converted(config)).layers if line.path == "kv_cache")
    assert (planned.activation, planned.reason) == (done.activation, done.reason)
    assert bool(planned.undecided) == config.static
    assert ("largest key scale" in dict(done.figures)) == config.static


def test_models_without_such_a_cache_are_refused() -> None:
    """What has no cache of keys and values is refused at prepare, and unchanged."""
    for model, message in (
        (nn.Sequential(nn.Linear(2, 2)), "which takes no past_key_values"),
        (two_heads().model.layers[0], "which takes no past_key_values"),
        (all_at_once(), "sees all tokens at once"),
        (with_encoder(), "an encoder"),
    ):
        with unchanged(model), pytest.raises(UnsupportedError, match=message):
            prepare(model, DYNAMIC)


def test_sliding_windows_stay_float() -> None:
    """Their caches do not grow; what generate tells them holds, so that tokens can be taken back."""
    model = converted(DYNAMIC, half_sliding())
    cache = model(texts(0), use_cache=True).past_key_values
    assert [type(layer).__name__ for layer in cache.layers] == ["DynamicSlidingWindowLayer", "QuantizedLayer"]
    fixed = quantized_cache(model, max_length=40)
    assert [type(each).__name__ for each in fixed.layers] == ["StaticSlidingWindowLayer", "QuantizedLayer"]
    line = next(line for line in report(model).layers if line.path == "kv_cache")
    assert line.reason.startswith("model.layers.0.self_attn: its cache is a DynamicSlidingWindowLayer")
    text = texts(1, 1)
    looked_up, _ = generated(model, text, prompt_lookup_num_tokens=3)
    assert torch.equal(looked_up, generated(model, text)[0])


def test_perplexity_reads_the_cache() -> None:
    """A model with a quantized cache is measured with it, another one without a cache."""
    model, windows = converted(TWO_BITS), texts(3)
    losses = nn.functional.cross_entropy(
        logits(model, windows)[:, :-1].flatten(0, 1), windows[:, 1:].flatten()
    )
    assert perplexity(model, windows) == pytest.approx(float(losses.exp()), rel=1e-5)
    assert perplexity(model, windows) != pytest.approx(perplexity(two_heads(), windows), rel=1e-3)


def test_the_cache_that_a_call_brings_is_refused_in_calibration() -> None:
    """Keys that were never seen are in a cache with tokens: it is refused, and the pass counts nothing."""
    prepared = prepare(two_heads(), STATIC)
    cache = two_heads()(texts(0), use_cache=True).past_key_values
    with pytest.raises(CalibrationError, match="an empty DynamicCache"):
        prepared(texts(1), past_key_values=cache)
    with pytest.raises(CalibrationError, match="no calibration data"):
        convert(prepared)


def test_nothing_was_converted() -> None:
    """A cache is asked of a model that has none."""
    with pytest.raises(UnsupportedError, match="without a quantized cache"):
        quantized_cache(two_heads())


def test_bfloat16_models_keep_their_scales() -> None:
    """Casting a model leaves fixed scales float32, and its cache reads bfloat16."""
    model = converted(STATIC).to(torch.bfloat16)
    formats = find_cache(model)
    assert isinstance(formats, KeyValueCache)
    layer = formats.layers[0]
    assert layer is not None
    assert layer.k_scale is not None
    assert layer.k_scale.dtype == torch.float32
    cache = model(texts(0), use_cache=True).past_key_values
    assert cache.layers[0].keys.dtype == torch.bfloat16


def test_definition_moves_values() -> None:
    """The slow definition is no identity: 2 bits change almost every value."""
    layer, x = find_cache(converted(TWO_BITS)), torch.randn(1, 2, 19, 8)
    assert layer is not None
    first = layer.layers[0]
    assert first is not None
    assert torch.equal(kept(x, first, "key")[:, :, 16:], x[:, :, 16:])
    assert bool((kept(x, first, "key")[:, :, :16] != x[:, :, :16]).float().mean() > 0.5)


def test_groups_of_tokens_are_whole() -> None:
    """Tokens wait until their group is whole, so that up to size - 1 more are floats."""
    config = KVCacheConfig(key=affine(UINT4, granularity=PerGroup(-2, 16)), residual_length=4)
    cache = converted(config)(texts(0), use_cache=True).past_key_values
    key, value = cache.layers[0].stores
    assert (key.coded, value.coded) == (32, 36)
