"""`CompressedTensors()`: what stands in the folder, what transformers makes of it, and what is refused."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import attrs
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import export_compressed_tensors
from export_models import TOKENS, converted
from tico.quantization import GPTQConfig, KVCacheConfig, PTQConfig, convert, prepare
from tico.quantization.config import (
    FP8,
    MXFP4,
    MXFP6,
    MXFP8,
    MXINT8,
    NVFP4,
    BaseConfig,
    DType,
    PerGroup,
    PerTensor,
    PerToken,
    QuantSpec,
    affine,
    no_quant,
)
from tico_config import ConfigError, UnsupportedError
from tico_export import CompressedTensors, ExportResult, Source, export
from tico_export.checkpoints import without_progress, words_of
from tico_export.compressed_tensors import schemes_of, targets_of
from tico_modules import RotatedInput, ScaledInput
from tico_observers import read_sealed

pytest.importorskip("compressed_tensors", reason="the lowest versions are tested without the extra hf")

# transformers and the library warn of themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES: dict[str, object] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attention_bias": True,
}
Spec: TypeAlias = QuantSpec
INT8, UINT8 = affine(DType.int(8)), affine(DType.uint(8))
TOKEN = affine(DType.int(8), granularity=PerToken())
FLOAT8, FLOAT8_TOKEN = affine(FP8()), affine(FP8(), granularity=PerToken())
UINT_TOKEN = affine(DType.uint(8), granularity=PerToken())
FLOAT_ENDS = {"model.embed_tokens": no_quant(), "lm_head": no_quant()}


def ptq(
    weight: Spec = INT8, overrides: dict[str, Spec] | None = None, inputs: Spec | None = None
) -> PTQConfig:
    """Return a config of weights, and of the inputs of the layers in blocks; the ends are left in float."""
    given = {} if inputs is None else {"*_proj.act_in": inputs}
    chosen = {**FLOAT_ENDS, **given} if overrides is None else {**given, **overrides}
    return PTQConfig(activation=no_quant(), weight=weight, overrides=chosen)


def grouped(bits: int, size: int, *, signed: bool) -> Spec:
    """Return a weight in groups of columns; an unsigned one has zero points."""
    return affine(DType(bits, signed), granularity=PerGroup(axis=1, size=size))


def llama(**sizes: object) -> nn.Module:
    """Return a tiny float model with biases, the same one in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = LlamaForCausalLM(LlamaConfig.from_dict({**SIZES, **sizes}))
        for name, each in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(each, std=0.1)
    return model.eval()


def quantized(config: BaseConfig, **sizes: object) -> nn.Module:
    """Return the model quantized by `config`."""
    prepared = prepare(llama(**sizes), config, args=(TOKENS,))
    with torch.no_grad():
        prepared(TOKENS)
    return convert(prepared).eval()


def written(model: nn.Module, path: Path, target: CompressedTensors | None = None) -> ExportResult:
    """Export `model`, verified by transformers."""
    return export(model, path, target or CompressedTensors(), args=(TOKENS,), verify="require")


def config_in(folder: Path) -> dict[str, object]:
    """Return the config in a folder."""
    config: dict[str, object] = json.loads((folder / "config.json").read_text())
    return config


EXACT: dict[str, PTQConfig | GPTQConfig] = {
    "W4A16 group 32": ptq(grouped(4, 32, signed=True)),
    "W4A16 group 16": ptq(grouped(4, 16, signed=True)),
    "W4A16 a scale a row": ptq(affine(DType.int(4))),
    "W8A16 a scale a row": ptq(INT8),
    "W8A16 group 32": ptq(grouped(8, 32, signed=True)),
    "W3A16 group 32": ptq(grouped(3, 32, signed=True)),
    "W4A16 group 32, zero points": ptq(grouped(4, 32, signed=False)),
    "W8A16 a scale a row, zero points": ptq(UINT8),
    "W4A16 everywhere": ptq(affine(DType.int(4)), {}),
    "W4A16 everywhere, zero points": ptq(affine(DType.uint(4)), {}),
    "W8A8 fixed, int8": ptq(INT8, inputs=INT8),
    "W8A8 fixed, uint8": ptq(INT8, inputs=UINT8),
    "W8A8 fixed, zero points of weights": ptq(UINT8, inputs=UINT8),
    "W4A8 fixed, group 32": ptq(grouped(4, 32, signed=True), inputs=INT8),
    "GPTQ W4 group 32": GPTQConfig(bits=4, group_size=32, symmetric=True, show_progress=False),
    "FP8, a scale a row": ptq(FLOAT8),
    "FP8, one scale": ptq(affine(FP8(), granularity=PerTensor())),
    "FP8 group 32": ptq(affine(FP8(), granularity=PerGroup(axis=1, size=32))),
    "FP8 everywhere": ptq(FLOAT8, {}),
    "FP8, fixed inputs": ptq(FLOAT8, inputs=FLOAT8),
    "FP8, inputs per token": ptq(FLOAT8, inputs=FLOAT8_TOKEN),
    "FP8, fixed inputs of int8": ptq(FLOAT8, inputs=INT8),
    "W4 group 32, FP8 inputs per token": ptq(grouped(4, 32, signed=True), inputs=FLOAT8_TOKEN),
    "MXFP4": ptq(affine(MXFP4())),
    "MXFP4 everywhere": ptq(affine(MXFP4()), {}),
    "MXFP6": ptq(affine(MXFP6())),
    "MXFP8": ptq(affine(MXFP8())),
}


@pytest.mark.parametrize("scheme", EXACT)
def test_transformers_gives_the_logits_of_the_model(scheme: str, tmp_path: Path) -> None:
    """Weights and fixed grids of inputs are the same bits, and so are the logits, with biases."""
    result = written(quantized(EXACT[scheme]), tmp_path / "m")
    assert result.verified
    assert result.max_difference == 0.0
    assert result.kl is not None
    assert result.kl < 1e-12


@pytest.mark.parametrize("overrides", [None, {}], ids=["linear layers", "everywhere"])
def test_nvfp4_is_rounded_to_bfloat16(overrides: dict[str, Spec] | None, tmp_path: Path) -> None:
    """The library makes its weights in bfloat16, and the bound says so."""
    result = written(quantized(ptq(affine(NVFP4()), overrides)), tmp_path / "m")
    assert result.verified
    assert result.bound == pytest.approx(
        -20 * math.log10(2**-7) - 10 * math.log10(21 if overrides is None else 23)
    )


MIXED_ELEMENTS = ptq(
    affine(MXFP4()),
    {**FLOAT_ENDS, "*.down_proj.weight": FLOAT8, "*.q_proj.weight": affine(NVFP4()), "*.k_proj.weight": INT8},
)


def test_formats_stand_beside_each_other_in_bfloat16(tmp_path: Path) -> None:
    """Each layer says what it is; in other floats the library fails on blocks of elements, which is said."""
    model = quantized(MIXED_ELEMENTS)
    with pytest.raises(
        UnsupportedError, match=r"mxfp4 in float32; cast the model before the export: model\.to"
    ):
        export(model, tmp_path / "m", CompressedTensors(), args=(TOKENS,))
    assert written(model.to(torch.bfloat16), tmp_path / "m").verified
    assert {group["format"] for group in groups_in(tmp_path / "m")} == {
        "mxfp4-pack-quantized",
        "naive-quantized",
        "nvfp4-pack-quantized",
        "pack-quantized",
    }


@pytest.mark.parametrize("inputs", [TOKEN, UINT_TOKEN], ids=["int8", "uint8"])
def test_grids_made_for_each_token_are_the_librarys(inputs: Spec, tmp_path: Path) -> None:
    """The library makes them, symmetric ones a little wider: near, and not the same bits."""
    result = written(quantized(ptq(INT8, inputs=inputs)), tmp_path / "m")
    assert result.verified
    assert result.sqnr > 30
    [group] = groups_in(tmp_path / "m")
    assert group["input_activations"] == {
        "num_bits": 8,
        "type": "int",
        "symmetric": inputs is TOKEN,
        "strategy": "token",
        "dynamic": True,
    }


def groups_in(folder: Path) -> list[dict[str, object]]:
    """Return the groups of the config in a folder."""
    about = config_in(folder)["quantization_config"]
    assert isinstance(about, dict)
    return list(about["config_groups"].values())


MIXED = ptq(
    grouped(4, 32, signed=True),
    {
        "*_proj.act_in": no_quant(),
        "model.layers.1.mlp.down_proj.act_in": INT8,
        "*.self_attn.*_proj.weight": INT8,
        "model.layers.1.mlp.down_proj.weight": INT8,
        "model.embed_tokens.weight": UINT8,
        "lm_head": no_quant(),
        "model.layers.2.mlp.up_proj": no_quant(),
    },
)


def test_layers_of_several_schemes_are_told_apart(tmp_path: Path) -> None:
    """Patterns name the layers of each scheme and no others; what is in float is to be ignored."""
    model = quantized(MIXED)
    source, folder = Source.read(model), tmp_path / "m"
    assert written(model, folder).max_difference == 0.0
    about = config_in(folder)["quantization_config"]
    assert isinstance(about, dict)
    assert about["format"] == "mixed-precision"
    assert about["ignore"] == ["lm_head", "model.layers.2.mlp.up_proj"]
    members: dict[object, set[str]] = {}
    for path, scheme in schemes_of(source).items():
        members.setdefault(scheme, set()).add(path)
    assert len(members) == 4
    names = [name for name, _ in llama().named_modules()]
    for group, paths in zip(groups_in(folder), members.values(), strict=True):
        patterns = group["targets"]
        assert isinstance(patterns, list)
        assert {n for n in names if any(re.match(p.removeprefix("re:"), n) for p in patterns)} == paths


def test_patterns_are_the_librarys() -> None:
    """The library finds the same layers by them."""
    library = importlib.import_module("compressed_tensors.utils.match")
    schemes = schemes_of(Source.read(quantized(MIXED)))
    linear = {name for name, each in llama().named_modules() if isinstance(each, nn.Linear)}
    for scheme in set(schemes.values()):
        members = {path for path, each in schemes.items() if each == scheme}
        targets = targets_of(members, linear - members)
        assert {name for name, _ in library.match_named_modules(llama(), targets)} == members


def test_patterns_match_members_alone() -> None:
    """Also where blocks are nested, and where a name begins or ends with another one."""
    paths = [f"h.{i}.experts.{j}.{name}" for i in range(2) for j in range(11) for name in ("up", "up_proj")]
    members = [each for each in paths if each.endswith(".up") and (".0." in each or ".10." in each)]
    others = [each for each in (*paths, "x.h.0.experts.0.up", "h-0.experts.0.up") if each not in members]
    patterns = [each.removeprefix("re:") for each in targets_of(members, others)]
    assert [each for each in (*paths, *others) if any(re.match(p, each) for p in patterns)] == members


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [1, 5, 32, 45])
def test_codes_are_a_string_of_bits(bits: int, columns: int) -> None:
    """Packed words are the numbers that a row's codes make in base ``2 ** bits``, cut into 32 bits."""
    codes = torch.randint(0, 2**bits, (3, columns), generator=torch.Generator().manual_seed(bits))
    words = words_of(codes, bits)
    for row, packed in zip(codes.tolist(), words.tolist(), strict=True):
        number = sum(code << bits * place for place, code in enumerate(row))
        expected = [number >> 32 * place & (2**32 - 1) for place in range(-(-columns * bits // 32))]
        assert [each % 2**32 for each in packed] == expected
    library = importlib.import_module("compressed_tensors.compressors.pack_quantized.helpers")
    signed = (codes - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(words, library.pack_to_int32(signed, bits))


@pytest.mark.parametrize("scheme", ["W4A16 group 32", "W4A16 everywhere, zero points", "W8A8 fixed, uint8"])
def test_tensors_are_those_that_the_library_writes(scheme: str, tmp_path: Path) -> None:
    """Its own compressor gives the same tensors for the weight as floats, in the same formats."""
    config = importlib.import_module("compressed_tensors.quantization")
    registry = importlib.import_module("compressed_tensors.compressors").BaseCompressor
    model = quantized(EXACT[scheme])
    written(model, tmp_path / "m")
    tensors = read_sealed(tmp_path / "m" / "model.safetensors").tensors
    [group] = groups_in(tmp_path / "m")
    arguments = config.QuantizationScheme.model_validate(group)
    for path, weight in Source.read(model).weights.items():
        middle = 0 if weight.dtype.signed else 2 ** (weight.dtype.bits - 1)
        points = (weight.zero_point - middle).to(torch.int8)
        given = {"weight": weight.dequantize(), "weight_scale": weight.scale, "weight_zero_point": points}
        made = registry.get_value_from_registry(group["format"]).compress(given, arguments)
        for name, expected in made.items():
            assert torch.equal(tensors[f"{path}.{name}"], expected)
            assert tensors[f"{path}.{name}"].dtype == expected.dtype


ELEMENTS: dict[str, PTQConfig | GPTQConfig] = {
    **{name: EXACT[name] for name in ("FP8, one scale", "FP8, fixed inputs", "FP8 group 32")},
    **{name: EXACT[name] for name in ("MXFP4", "MXFP6", "MXFP8")},
    "NVFP4": ptq(affine(NVFP4())),
}


@pytest.mark.parametrize("scheme", ELEMENTS)
def test_elements_are_those_that_the_library_writes(scheme: str, tmp_path: Path) -> None:
    """Its own compressor gives the same bytes for the weight as floats, with the same scales."""
    config = importlib.import_module("compressed_tensors.quantization")
    registry = importlib.import_module("compressed_tensors.compressors").BaseCompressor
    model = quantized(ELEMENTS[scheme])
    written(model, tmp_path / "m")
    tensors = read_sealed(tmp_path / "m" / "model.safetensors").tensors
    [group] = groups_in(tmp_path / "m")
    arguments = config.QuantizationScheme.model_validate(group)
    for path, weight in Source.read(model).weights.items():
        given, unit = (
            {"weight": weight.dequantize(), "weight_scale": weight.scale},
            weight.elements.tensor_scale,
        )
        if unit is not None:
            # The library divides by this scale, which llm-compressor makes as 6 * 448 / amax.
            given |= {"weight_scale": weight.scale / unit, "weight_global_scale": 1 / unit.reshape(1)}
        elif arguments.weights.strategy == "tensor":
            given["weight_scale"] = weight.scale[0]
        made = registry.get_value_from_registry(group["format"]).compress(given, arguments)
        assert {name for name in tensors if name.startswith(f"{path}.weight")} == {
            f"{path}.{n}" for n in made
        }
        for name, expected in made.items():
            held = tensors[f"{path}.{name}"]
            assert (held.dtype, held.shape) == (expected.dtype, expected.shape)
            assert torch.equal(held.view(torch.uint8), expected.contiguous().view(torch.uint8))


CACHED = affine(DType.int(8), granularity=PerTensor())
CACHE = KVCacheConfig(key=CACHED, value=CACHED, static=True, residual_length=0)


def cached(model: nn.Module, config: KVCacheConfig = CACHE) -> nn.Module:
    """Return `model` with keys and values as codes."""
    prepared = prepare(model, config, args=(TOKENS,))
    with torch.no_grad():
        prepared(TOKENS)
    return convert(prepared).eval()


@pytest.mark.parametrize("weights", [None, INT8, FLOAT8], ids=["float", "int8", "fp8"])
def test_keys_and_values_have_scales(weights: Spec | None, tmp_path: Path) -> None:
    """One of each layer, and transformers rounds to them as the model does, which is another one then."""
    without = llama() if weights is None else quantized(ptq(weights))
    with torch.no_grad():
        before = without(TOKENS).logits
        model = cached(without)
        assert not torch.equal(model(TOKENS).logits, before)
    assert written(model, tmp_path / "m").max_difference == 0.0
    about, tensors = (
        config_in(tmp_path / "m")["quantization_config"],
        read_sealed(tmp_path / "m" / "model.safetensors").tensors,
    )
    assert isinstance(about, dict)
    assert about["kv_cache_scheme"] == {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "tensor",
        "dynamic": False,
    }
    for number in range(3):
        for part, name in (("key", "k_scale"), ("value", "v_scale")):
            held = model.get_buffer(f"kv_cache.{number}.{part}_scale")
            assert torch.equal(tensors[f"model.layers.{number}.self_attn.{name}"], held.reshape(1))


def test_a_tied_head_in_float_stands_once(tmp_path: Path) -> None:
    """As in any checkpoint of transformers: the config ties it."""
    written(quantized(ptq(), tie_word_embeddings=True), tmp_path / "m")
    assert "lm_head.weight" not in read_sealed(tmp_path / "m" / "model.safetensors").tensors
    assert config_in(tmp_path / "m")["tie_word_embeddings"] is True


@pytest.mark.parametrize("left_out", ["model.embed_tokens", "lm_head", None])
def test_a_tied_head_of_integers_has_codes_of_its_own(left_out: str | None, tmp_path: Path) -> None:
    """Embeddings or head or both may be integers: the config ties nothing, and the logits are the model's."""
    overrides = {} if left_out is None else {left_out: no_quant()}
    result = written(quantized(ptq(overrides=overrides), tie_word_embeddings=True), tmp_path / "m")
    assert result.max_difference == 0.0
    assert config_in(tmp_path / "m")["tie_word_embeddings"] is False


def test_what_needs_an_argument_to_load_is_said(tmp_path: Path) -> None:
    """Packed zero points load as floats only: consumer and notes name what to pass, and others do not."""
    asymmetric = written(quantized(ptq(grouped(4, 32, signed=False))), tmp_path / "a")
    assert "CompressedTensorsConfig(dequantize=True)" in asymmetric.consumer
    assert any("dequantize=True" in each for each in asymmetric.notes)
    symmetric = written(quantized(ptq()), tmp_path / "s")
    assert "dequantize" not in symmetric.consumer
    assert not any("dequantize" in each for each in symmetric.notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_narrow_floats_is_loaded_as_one(dtype: torch.dtype, tmp_path: Path) -> None:
    """Transformers rounds scales to its floats, and comes as near as these allow."""
    result = written(quantized(ptq(grouped(4, 32, signed=True))).to(dtype), tmp_path / "m")
    assert result.verified
    assert config_in(tmp_path / "m")["dtype"] == str(dtype).removeprefix("torch.")
    assert read_sealed(tmp_path / "m" / "model.safetensors").tensors["model.norm.weight"].dtype == dtype


def test_large_models_have_several_files(tmp_path: Path) -> None:
    """Each has its share of the bytes, and the index says where each tensor is."""
    model = quantized(ptq())
    result = written(model, tmp_path / "m", CompressedTensors(shard_bytes=20_000))
    assert result.max_difference == 0.0
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    held = {name: each.name for each in files for name in read_sealed(each).tensors}
    assert held == index["weight_map"]
    one = tmp_path / "one"
    written(model, one)
    assert held.keys() == read_sealed(one / "model.safetensors").tensors.keys()
    with pytest.raises(ConfigError, match="shard_bytes must be a positive integer"):
        CompressedTensors(shard_bytes=0)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder."""
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def test_nothing_global_changes(tmp_path: Path) -> None:
    """Neither random numbers nor the default dtype, nor the model."""
    model = quantized(ptq())
    tensors = {name: each.clone() for name, each in model.state_dict().items()}
    state, dtype, config = torch.get_rng_state(), torch.get_default_dtype(), str(model.config)
    written(model, tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == dtype
    after: dict[str, Tensor] = model.state_dict()
    assert all(torch.equal(after[name], each) for name, each in tensors.items())
    assert str(model.config) == config


def test_generation_settings_and_tokenizer_stand_beside(tmp_path: Path) -> None:
    """Both come along, the tokenizer from where the model was loaded."""
    origin, folder = tmp_path / "origin", tmp_path / "m"
    origin.mkdir()
    (origin / "tokenizer.json").write_text("{}")
    model = quantized(ptq())
    model.generation_config.max_new_tokens = 7  # type: ignore[union-attr]
    vars(model)["name_or_path"] = str(origin)
    written(model, folder)
    assert json.loads((folder / "generation_config.json").read_text())["max_new_tokens"] == 7
    assert (folder / "tokenizer.json").read_text() == "{}"


def test_a_log_has_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    """What libraries draw as they load is dropped where standard error is no terminal; warnings are not."""
    with without_progress():
        sys.stderr.write("\rloading 10 %")
        sys.stderr.write("\rloading 100 %")
        sys.stderr.write("\n")
        sys.stderr.write("a warning\n")
    sys.stderr.write("\rafterwards")
    assert capsys.readouterr().err == "a warning\n\rafterwards"


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is there, and the result says what would verify it."""
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    result = export(quantized(ptq()), tmp_path / "m", CompressedTensors(), args=(TOKENS,))
    assert not result.verified
    assert "tico-export[hf]" in result.consumer
    assert (tmp_path / "m" / "model.safetensors").exists()


def _smoothed() -> nn.Module:
    model = quantized(ptq())
    mlp: nn.Module = model.get_submodule("model.layers.0.mlp")
    mlp.down_proj = ScaledInput(mlp.down_proj, torch.full((96,), 0.5), axis=-1)  # type: ignore[arg-type]
    return model


def _rotated() -> nn.Module:
    model = quantized(ptq())
    mlp: nn.Module = model.get_submodule("model.layers.0.mlp")
    mlp.down_proj = RotatedInput(mlp.down_proj, torch.eye(12), torch.eye(8))  # type: ignore[arg-type]
    return model


def _gpt2() -> nn.Module:
    sizes = {"n_embd": 32, "n_head": 2, "n_layer": 1, "vocab_size": 64, "n_positions": 64}
    model: nn.Module = GPT2LMHeadModel(GPT2Config.from_dict(sizes))
    prepared = prepare(model.eval(), GPTQConfig(bits=4, show_progress=False), args=(TOKENS,))
    prepared(TOKENS)
    return convert(prepared)


def _ordered() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPTQConfig(bits=4, group_size=32, static_groups=False, show_progress=False)
        return quantized(config)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "grids everywhere": (
        lambda: quantized(PTQConfig()),
        r"layers\.0\.self_attn\.cos: compressed-tensors holds grids of the inputs.*activation=no_quant\(\)",
    ),
    "outputs": (
        lambda: quantized(ptq(overrides={**FLOAT_ENDS, "*.up_proj.act_out": INT8})),
        r"layers\.0\.mlp\.up_proj\.act_out: .*inputs of layers only, and this one is int8 static",
    ),
    "inputs of 16 bits": (
        lambda: quantized(ptq(inputs=affine(DType.int(16)))),
        r"layers\.0\.self_attn\.q_proj: .*inputs of at most 8 bits, and this one has int16",
    ),
    "weights of 16 bits": (
        lambda: quantized(ptq(affine(DType.int(16)))),
        r"q_proj: .*weights of at most 8 bits, and this one has int16",
    ),
    "elements that the library does not have": (
        lambda: quantized(ptq(affine(FP8("e5m2")))),
        r"q_proj: .*elements of fp8_e4m3, .*, and this one has fp8_e5m2; use one of these",
    ),
    "fixed-point blocks": (
        lambda: quantized(ptq(affine(MXINT8()))),
        r"q_proj\.packed: its codes are mxint8, and compressed-tensors has no place for them",
    ),
    "inputs in blocks": (
        lambda: quantized(ptq(affine(MXFP8()), inputs=affine(MXFP8()))),
        r"q_proj: .*fp8_e4m3, as it gives blocks scales by another rule, and this one has mxfp8_e4m3",
    ),
    "inputs of blocks in float32": (
        lambda: quantized(ptq(affine(MXFP4()), inputs=FLOAT8)),
        r"q_proj: .*in bfloat16 only, and this one has mxfp4 in float32",
    ),
    "grids of keys that are made as tokens come": (
        lambda: cached(llama(), KVCacheConfig(residual_length=0)),
        r"layers\.0\.self_attn: .*one fixed symmetric grid of int8 or fp8_e4m3.* has uint4",
    ),
    "tokens in float": (
        lambda: cached(llama(), attrs.evolve(CACHE, residual_length=8)),
        r"layers\.0\.self_attn: .*no tokens in float, and this one has the last 8 tokens",
    ),
    "values in float": (
        lambda: cached(llama(), attrs.evolve(CACHE, value=no_quant())),
        r"layers\.0\.self_attn: .*one for values, and this one has floats",
    ),
    "a layer without codes of keys": (
        lambda: cached(llama(), attrs.evolve(CACHE, overrides={"model.layers.1.self_attn": no_quant()})),
        r"layers\.1\.self_attn: .*keys and values of all layers as codes, and this one has floats",
    ),
    "codes of keys beside weights that are loaded as floats": (
        lambda: cached(quantized(ptq(affine(MXFP4())))),
        r"kv_cache: .*beside weights that transformers does not have to load as floats",
    ),
    "columns in another order": (_ordered, r"q_proj: .*runs of columns.*static_groups=True"),
    "uneven groups": (
        lambda: quantized(ptq(grouped(4, 40, signed=True))),
        r"q_proj: .*groups of one length, and this one has 64 columns in groups of 40",
    ),
    "a multiplication": (_smoothed, r"mlp\.down_proj: .*no place for what a ScaledInput computes"),
    "an online rotation": (_rotated, r"mlp\.down_proj: .*no place for what a RotatedInput computes"),
    "transposed layers": (_gpt2, r"c_attn: .*layers of Linear and Embedding, and this one has a Conv1D"),
    "no model of transformers": (
        lambda: converted("linear stack", "W4 per channel"),
        "a model of transformers, which reads the folder, got a Sequential",
    ),
    "zero points among other schemes": (
        lambda: quantized(ptq(affine(DType.uint(4)), {**FLOAT_ENDS, "*.down_proj.weight": INT8})),
        r"q_proj: .*zero points of fewer than 8 bits where all layers have one scheme.*symmetric=True",
    ),
    "embeddings among other schemes": (
        lambda: quantized(ptq(overrides={"model.embed_tokens.weight": affine(DType.int(4))})),
        r"embed_tokens: .*embeddings of 8 bits, or quantized as all other layers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_format_cannot_hold_is_refused(name: str, tmp_path: Path) -> None:
    """Module and reason are named with a way out, and nothing is written."""
    make, says = REFUSED[name]
    model = make()
    with pytest.raises(UnsupportedError, match=says):
        export(model, tmp_path / "m", CompressedTensors(), args=(TOKENS,))
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_a_reader_would_drop_or_make_up_are_refused(tmp_path: Path) -> None:
    """Names of the model that its class does not have, and the other way round, are told."""
    model = quantized(ptq())
    model.register_buffer("extra", torch.ones(1))
    model.get_submodule("model.norm").weight = None  # type: ignore[assignment]
    with pytest.raises(UnsupportedError) as caught:
        export(model, tmp_path / "m", CompressedTensors(), args=(TOKENS,))
    assert [each.module for each in caught.value.problems] == ["extra", "model.norm.weight"]


@pytest.mark.parametrize("name", export_compressed_tensors.SCHEMES)
def test_the_example_runs(name: str, tmp_path: Path) -> None:
    """Its folders are verified, and the tokenizer stands in them."""
    result = export_compressed_tensors.write(name, tmp_path, tokens=256)
    assert result.verified
    assert (tmp_path / name / "tokenizer.json").exists()
