"""`GGUF()`: what stands in the file, as the package gguf reads it, and what is refused."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import export_gguf
from export_models import converted
from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico.quantization.config import (
    FP8,
    MXFP4,
    MXFP8,
    NVFP4,
    DType,
    PerGroup,
    SuperBlock,
    affine,
    no_quant,
    profiles,
)
from tico_config import ConfigError, FloatFormat, UnsupportedError
from tico_export import GGUF, ExportResult, export
from tico_export.gguf_files import Contents
from tico_export.source import Source
from tico_modules import FloatWeight, QuantizedLinear, QuantizedModule

WIKI: Final = Path(__file__).parents[2] / "examples" / "wiki_llama"
TOKENS: Final = torch.arange(48).view(2, 24) * 7 % 61 + 1
_SIZES: Final = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
YARN: Final = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}


def llama(**settings: object) -> nn.Module:
    """Return a small LLaMA, the same every time; norms and biases are not what they are at first."""
    return _filled(lambda: LlamaForCausalLM(LlamaConfig.from_dict({**_SIZES, **settings})))


def qwen(**settings: object) -> nn.Module:
    """Return a small Qwen3, the same every time."""
    return _filled(lambda: Qwen3ForCausalLM(Qwen3Config.from_dict({**_SIZES, "head_dim": 32, **settings})))


def _filled(make: object) -> nn.Module:
    assert callable(make)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model: nn.Module = make().eval()
        for each in model.parameters():
            if each.ndim == 1:
                each.add_(torch.randn(each.shape) / 10)
    return model


def quantized(
    model: nn.Module, *, bits: int = 4, group: int | None = 32, symmetric: bool = True
) -> nn.Module:
    """Put integer layers in the place of the linear layers of `model`, its head aside."""
    for path, each in list(model.named_modules()):
        if isinstance(each, nn.Linear) and path != "lm_head":
            dtype = DType(bits, signed=symmetric)
            layer = QuantizedLinear.from_float(each, dtype, symmetric=symmetric, group_size=group)
            model.set_submodule(path, layer)
    return model


def rounded(model: nn.Module, dtype: FloatFormat) -> nn.Module:
    """Round all weights of `model` to elements."""
    config = PTQConfig(activation=no_quant(), weight=affine(dtype))
    return convert(prepare(model, config, args=(TOKENS,)))


def with_short_scales(model: nn.Module, bits: int) -> nn.Module:
    """Round the scales of integer weights to so many bits, float16's ones at 11."""
    for each in model.modules():
        if isinstance(each, QuantizedModule):
            mantissa, exponent = torch.frexp(each.packed.scale)
            each.packed.scale.copy_(torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent))
    return model


def reader() -> ModuleType:
    """Return the package gguf."""
    return importlib.import_module("gguf")


def read(path: Path) -> dict[str, tuple[str, Tensor]]:
    """Return type and values of each tensor of a file."""
    gguf = reader()
    return {
        each.name: (
            each.tensor_type.name,
            torch.from_numpy(gguf.quants.dequantize(each.data, each.tensor_type).copy()),
        )
        for each in gguf.GGUFReader(path).tensors
    }


def fields(path: Path) -> dict[str, object]:
    """Return the metadata of a file."""
    return {name: each.contents() for name, each in reader().GGUFReader(path).fields.items()}


def written(model: nn.Module, path: Path, target: GGUF | None = None) -> ExportResult:
    """Export a model without running it."""
    return export(model, path, target or GGUF(scales="exact"), verify=False)


def neighbours(rows: Tensor, heads: int) -> Tensor:
    """Reorder rows as llama.cpp rotates them: of each head, one of the first half and one of the second."""
    size = len(rows) // heads
    places = [place + half for place in range(size // 2) for half in (0, size // 2)]
    return rows[[head * size + place for head in range(heads) for place in places]]


@pytest.mark.parametrize(
    ("bits", "group", "symmetric", "short", "kind"),
    [
        (4, 32, True, 11, "Q4_0"),
        (3, 64, True, 11, "Q4_0"),
        (4, None, True, 11, "Q4_0"),
        (4, 32, False, 7, "Q4_1"),
        (5, 32, True, 11, "Q5_0"),
        (5, 32, False, 6, "Q5_1"),
        (8, 32, True, 11, "Q8_0"),
        (8, None, True, 11, "Q8_0"),
        (6, 32, True, 11, "Q8_0"),
    ],
)
def test_the_file_holds_the_values_of_the_model(
    bits: int, group: int | None, symmetric: bool, short: int, kind: str, tmp_path: Path
) -> None:
    """Each weight is read back bit for bit, in the smallest type that holds it."""
    model = with_short_scales(
        quantized(llama(intermediate_size=64), bits=bits, group=group, symmetric=symmetric), short
    )
    written(model, tmp_path / "m.gguf")
    found, source = read(tmp_path / "m.gguf"), Source.read(model)
    for part, name in (
        ("mlp.down_proj", "ffn_down"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.q_proj", "attn_q"),
    ):
        meant = source.weights[f"model.layers.1.{part}"].dequantize()
        meant = neighbours(meant, 4) if name == "attn_q" else meant
        assert found[f"blk.1.{name}.weight"][0] == kind
        assert torch.equal(found[f"blk.1.{name}.weight"][1], meant)


def test_mxfp4_is_the_type_of_that_name(tmp_path: Path) -> None:
    """Each weight and the embedding are read back bit for bit, subnormal elements and the least scale too."""
    model = rounded(llama(intermediate_size=64), MXFP4())
    packed = model.get_submodule("model.layers.1.mlp.down_proj").get_submodule("packed")
    assert isinstance(packed, FloatWeight)
    packed.codes.copy_(torch.arange(64 * 32).view(64, 32) * 37 % 256)  # every pair of codes
    packed.stored_scale[:2] = torch.tensor([[1, 2], [127, 246]], dtype=torch.uint8)
    written(model, tmp_path / "m.gguf")
    found, source = read(tmp_path / "m.gguf"), Source.read(model)
    for path, name in (
        ("model.layers.1.mlp.down_proj", "blk.1.ffn_down"),
        ("model.layers.1.self_attn.q_proj", "blk.1.attn_q"),
        ("model.embed_tokens", "token_embd"),
    ):
        meant = source.weights[path].dequantize()
        meant = neighbours(meant, 4) if path.endswith("q_proj") else meant
        assert found[f"{name}.weight"][0] == "MXFP4"
        assert torch.equal(found[f"{name}.weight"][1], meant)
    assert fields(tmp_path / "m.gguf")["general.file_type"] == reader().LlamaFileType.MOSTLY_MXFP4_MOE


@pytest.mark.parametrize("dtype", [FP8(), MXFP8(), NVFP4()], ids=str)
def test_other_elements_are_refused(dtype: FloatFormat, tmp_path: Path) -> None:
    """By the layer's path, and so are columns that are no whole blocks."""
    with pytest.raises(UnsupportedError, match=rf"packed: its codes are {dtype}, and gguf has no place"):
        written(rounded(llama(), dtype), tmp_path / "m.gguf")
    with pytest.raises(UnsupportedError, match=r"down_proj: it has 80 columns; leave it in float"):
        written(rounded(llama(intermediate_size=80), MXFP4()), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_asymmetric_codes_whose_minima_are_no_float16_take_a_bit_more(tmp_path: Path) -> None:
    """Codes of 4 bits less their zero points are 5 bits with a sign, which Q5_0 holds."""
    model = with_short_scales(quantized(llama(), symmetric=False), 11)
    written(model, tmp_path / "m.gguf")
    kind, values = read(tmp_path / "m.gguf")["blk.0.ffn_up.weight"]
    assert kind == "Q5_0"
    assert torch.equal(values, Source.read(model).weights["model.layers.0.mlp.up_proj"].dequantize())


@pytest.mark.parametrize(
    ("bits", "symmetric", "kind"), [(4, True, "Q4_0"), (4, False, "Q4_1"), (8, True, "Q8_0")]
)
def test_scales_are_rounded_where_that_is_asked_for(
    bits: int, symmetric: bool, kind: str, tmp_path: Path
) -> None:
    """Values move by half a unit of float16's eleventh bit, once for the scale and once for the minimum."""
    model = quantized(llama(), bits=bits, symmetric=symmetric)
    result = written(model, tmp_path / "m.gguf", GGUF())
    weight = Source.read(model).weights["model.layers.0.mlp.up_proj"]
    found, values = read(tmp_path / "m.gguf")["blk.0.ffn_up.weight"]
    assert found == kind
    reach = weight.packed.spread_groups(weight.scale) * (2**bits - 1)
    assert ((values - weight.dequantize()).abs() <= 2 * 2.0**-12 * 1.01 * reach).all()
    assert not torch.equal(values, weight.dequantize())
    [note] = [each for each in result.notes if "scales are rounded to float16: 14 weights" in each]
    assert "dB from the model's" in note


def test_scales_beyond_float16_are_no_scales(tmp_path: Path) -> None:
    """A block whose scale is too small for it is 0, which costs nothing; one that is too large is refused."""
    model = quantized(llama())
    packed = Source.read(model).weights["model.layers.0.mlp.up_proj"].packed
    packed.scale[0] = 1e-9
    written(model, tmp_path / "m.gguf", GGUF())
    assert (read(tmp_path / "m.gguf")["blk.0.ffn_up.weight"][1][0] == 0).all()
    packed.scale[0] = 1e5
    with pytest.raises(UnsupportedError, match="up_proj: its scales are beyond float16's range"):
        written(model, tmp_path / "n.gguf", GGUF())


def test_scales_that_are_no_float16_are_refused(tmp_path: Path) -> None:
    """Every such weight is named, with what to do."""
    with pytest.raises(UnsupportedError, match=r'no float16.*GGUF\(scales="nearest"\)') as caught:
        written(quantized(llama()), tmp_path / "m.gguf")
    assert len(caught.value.problems) == 14
    assert list(tmp_path.iterdir()) == []


def test_rows_of_queries_and_keys_are_reordered_with_their_biases(tmp_path: Path) -> None:
    """llama.cpp rotates neighbours in a LLaMA; other layers and Qwen3 keep the order of their rows."""
    model = with_short_scales(quantized(llama(attention_bias=True)), 11)
    written(model, tmp_path / "m.gguf")
    found = read(tmp_path / "m.gguf")
    for part, heads in (("q", 4), ("k", 2), ("v", None)):
        bias = Source.read(model).weights[f"model.layers.0.self_attn.{part}_proj"].bias
        assert bias is not None
        assert torch.equal(found[f"blk.0.attn_{part}.bias"][1], neighbours(bias, heads) if heads else bias)
    other = with_short_scales(quantized(qwen()), 11)
    written(other, tmp_path / "q.gguf")
    meant = Source.read(other).weights["model.layers.0.self_attn.q_proj"].dequantize()
    assert torch.equal(read(tmp_path / "q.gguf")["blk.0.attn_q.weight"][1], meant)


def test_what_is_left_in_float_keeps_its_format(tmp_path: Path) -> None:
    """Norms are float32 whatever they were, matrices what they were or what is asked for."""
    model = with_short_scales(quantized(llama().bfloat16()), 11)
    written(model, tmp_path / "m.gguf")
    found, state = read(tmp_path / "m.gguf"), Source.read(model).floats
    assert found["blk.0.attn_norm.weight"][0] == found["output_norm.weight"][0] == "F32"
    assert torch.equal(found["output_norm.weight"][1], state["model.norm.weight"].float())
    assert found["token_embd.weight"][0] == "BF16"
    assert torch.equal(found["token_embd.weight"][1], state["model.embed_tokens.weight"].float())
    result = written(model, tmp_path / "h.gguf", GGUF(floats="float16"))
    kind, values = read(tmp_path / "h.gguf")["output.weight"]
    assert kind == "F16"
    assert torch.equal(values, state["lm_head.weight"].half().float())
    assert any("matrices are rounded to float16: 2 weights" in each for each in result.notes)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("integer", [True, False])
def test_a_tied_head_stands_in_the_file_once(tied: bool, integer: bool, tmp_path: Path) -> None:
    """llama.cpp takes the embedding where there is no head, be it integer or float."""
    model = llama(tie_word_embeddings=tied)
    weight = affine(DType.int(8), granularity=PerGroup(1, 32))
    config = PTQConfig(activation=no_quant(), weight=weight)
    made = quantized(model) if not integer else convert(_run(prepare(model, config)))
    written(made, tmp_path / "m.gguf", GGUF())
    found = {name: kind for name, (kind, _) in read(tmp_path / "m.gguf").items() if "blk" not in name}
    kind = "Q8_0" if integer else "F32"
    head = {} if tied else {"output.weight": kind}
    assert found == {"token_embd.weight": kind, "output_norm.weight": "F32", **head}


def _run(prepared: nn.Module) -> nn.Module:
    with torch.no_grad():
        prepared(TOKENS)
    return prepared


def test_the_config_is_what_llama_cpp_computes_by(tmp_path: Path) -> None:
    """Sizes, the rotation and the name of the model are in the metadata."""
    model = with_short_scales(quantized(qwen()), 11)
    written(model, tmp_path / "m.gguf", GGUF(name="small one"))
    found = fields(tmp_path / "m.gguf")
    assert found["general.architecture"] == "qwen3"
    assert found["general.name"] == "small one"
    assert found["qwen3.block_count"] == 2
    assert found["qwen3.attention.head_count_kv"] == 2
    assert found["qwen3.attention.key_length"] == found["qwen3.rope.dimension_count"] == 32
    assert found["qwen3.rope.freq_base"] == 10000.0
    assert found["tokenizer.ggml.model"] == "no_vocab"


@pytest.mark.parametrize("base", [1e4, 5e5])
def test_frequencies_of_llama3_are_divided_as_transformers_does(base: float, tmp_path: Path) -> None:
    """The factors in the file are those between the plain frequencies and the ones of transformers."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": base,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = with_short_scales(quantized(llama(rope_parameters=rope, head_dim=32)), 11)
    written(model, tmp_path / "m.gguf")
    config: PreTrainedConfig = Source.read(model).config  # type: ignore[assignment]  # a LLaMA's
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = base ** -(torch.arange(0, 32, 2) / 32)
    torch.testing.assert_close(read(tmp_path / "m.gguf")["rope_freqs.weight"][1], plain / frequencies)


def test_other_rotations_have_their_factors(tmp_path: Path) -> None:
    """Linear scaling and YaRN are named with their factor and the length that they stretch."""
    written(with_short_scales(quantized(llama(rope_parameters=YARN)), 11), tmp_path / "m.gguf")
    found = fields(tmp_path / "m.gguf")
    assert found["llama.rope.scaling.type"] == "yarn"
    assert found["llama.rope.scaling.factor"] == 4.0
    assert found["llama.rope.scaling.original_context_length"] == 16


def test_the_tokenizer_is_in_the_file(tmp_path: Path) -> None:
    """Tokens, merges, what they are and what begins a text come from the files of the tokenizer."""
    model = with_short_scales(quantized(llama(vocab_size=1030)), 11)
    written(model, tmp_path / "m.gguf", GGUF(tokenizer=WIKI))
    found = fields(tmp_path / "m.gguf")
    saved = json.loads((WIKI / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = found["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert {token: tokens.index(token) for token in tokens[:1024]} == saved["model"]["vocab"]
    assert tokens[1024:] == [f"[PAD{number}]" for number in range(1024, 1030)]
    assert found["tokenizer.ggml.token_type"] == [3, *[1] * 1023, *[5] * 6]
    assert found["tokenizer.ggml.merges"] == [" ".join(pair) for pair in saved["model"]["merges"]]
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert found["tokenizer.ggml.eos_token_id"] == 0
    assert found["tokenizer.ggml.add_bos_token"] is False


def _tokenizer(
    folder: Path, changes: Mapping[str, object], settings: Mapping[str, object] | None = None
) -> Path:
    """Write the files of a tokenizer that differs in some parts."""
    saved = json.loads((WIKI / "tokenizer.json").read_text(encoding="utf-8"))
    saved["model"]["ignore_merges"] = changes.get("ignore_merges", False)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({**saved, **changes}), encoding="utf-8")
    known = json.loads((WIKI / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**known, **(settings or {})}), encoding="utf-8")
    return folder


_BYTES: Final = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_QWEN2: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> dict[str, object]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [step, _BYTES]}


@pytest.mark.parametrize(
    ("pre_tokenizer", "whole", "name"),
    [
        (_split(_QWEN2), False, "qwen2"),
        (_split(_QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), True, "llama-bpe"),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {**_BYTES, "use_regex": True},
                ],
            },
            False,
            "smollm",
        ),
    ],
)
def test_llama_cpp_splits_text_by_a_name(
    pre_tokenizer: Mapping[str, object], whole: bool, name: str, tmp_path: Path
) -> None:
    """The regular expressions of a tokenizer have names there."""
    folder = _tokenizer(tmp_path / "t", {"pre_tokenizer": pre_tokenizer, "ignore_merges": whole})
    model = with_short_scales(quantized(llama(vocab_size=1024)), 11)
    written(model, tmp_path / "m.gguf", GGUF(tokenizer=folder))
    assert fields(tmp_path / "m.gguf")["tokenizer.ggml.pre"] == name


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pre_tokenizer": _split(r"\p{L}+")}, "text split by Split and ByteLevel"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "text split by Metaspace"),
        ({"normalizer": {"type": "Lowercase"}}, "the normalizer Lowercase"),
        ({"ignore_merges": True}, "ignore_merges=True"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(
    changes: Mapping[str, object], match: str, tmp_path: Path
) -> None:
    """It would split text otherwise without a word; left out, the file takes tokens by number."""
    model = with_short_scales(quantized(llama(vocab_size=1024)), 11)
    folder = _tokenizer(tmp_path / "t", changes)
    with pytest.raises(UnsupportedError, match=rf"{match}.*tokenizer=False"):
        written(model, tmp_path / "m.gguf", GGUF(tokenizer=folder))
    result = written(model, tmp_path / "m.gguf", GGUF(tokenizer=False))
    assert "there is no tokenizer in the file: llama.cpp takes tokens by number" in result.notes


def test_what_begins_a_text_is_taken_from_the_template(tmp_path: Path) -> None:
    """A token that the tokenizer puts before a text is put there by llama.cpp too; chats keep their form."""
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
    }
    folder = _tokenizer(tmp_path / "t", {"post_processor": template}, {"chat_template": "{{ messages }}"})
    model = with_short_scales(quantized(llama(vocab_size=1024)), 11)
    written(model, tmp_path / "m.gguf", GGUF(tokenizer=folder))
    found = fields(tmp_path / "m.gguf")
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (True, False)
    assert found["tokenizer.chat_template"] == "{{ messages }}"


def _pieces(folder: Path, merges: list[list[str]], changes: Mapping[str, object] | None = None) -> Path:
    """Write a tokenizer of the kind of SentencePiece, with the letters a, b and c."""
    letters = ["\u2581", "a", "b", "c"]
    merged = sorted({"".join(each) for each in merges})
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(16)), *letters, *merged]
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "byte_fallback": True,
        "vocab": {text: number for number, text in enumerate(tokens)},
        "merges": merges,
    }
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    added = [{"id": number, "content": text, "special": True} for number, text in enumerate(tokens[:2])]
    saved = {"model": model, "normalizer": None, "pre_tokenizer": space, "added_tokens": added}
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({**saved, **(changes or {})}), encoding="utf-8")
    return folder


def test_pieces_of_sentences_have_scores(tmp_path: Path) -> None:
    """llama.cpp merges into the token that scores most, which is the one whose merges come first."""
    folder = _pieces(tmp_path / "t", [["b", "c"], ["a", "bc"]])
    result = written(quantized(llama()), tmp_path / "m.gguf", GGUF(tokenizer=folder))
    found = fields(tmp_path / "m.gguf")
    tokens, scores = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.scores"]
    assert isinstance(tokens, list)
    assert isinstance(scores, list)
    assert [scores[tokens.index(each)] for each in ("bc", "abc", "a")] == [0, -1, -1e9]
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.add_space_prefix"] is True
    assert found["tokenizer.ggml.token_type"] == [2, 3, *[6] * 16, *[1] * 6, *[5] * 40]
    assert any("a space after every special token" in each for each in result.notes)


@pytest.mark.parametrize(
    ("merges", "changes", "match"),
    [
        ([["a", "b"], ["b", "c"], ["ab", "c"]], {}, "no merge of 'a' and 'bc'"),
        ([["a", "b"], ["b", "c"], ["ab", "c"], ["b", "a"], ["a", "bc"]], {}, "not of one rank"),
        ([["a", "b"]], {"normalizer": {"type": "NFKC"}}, "prepared by NFKC and Metaspace"),
    ],
)
def test_pieces_that_would_be_merged_otherwise_are_refused(
    merges: list[list[str]], changes: Mapping[str, object], match: str, tmp_path: Path
) -> None:
    """Scores say which token is first, and not by which of its halves."""
    folder = _pieces(tmp_path / "t", merges, changes)
    with pytest.raises(UnsupportedError, match=rf"{match}.*tokenizer=False"):
        written(quantized(llama()), tmp_path / "m.gguf", GGUF(tokenizer=folder))


def test_a_token_before_texts_that_is_not_the_first_one_is_refused(tmp_path: Path) -> None:
    """llama.cpp puts one of two tokens around a text, and no other."""
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<unk>", "type_id": 0}}]}
    folder = _pieces(tmp_path / "t", [["a", "b"]], {"post_processor": template})
    with pytest.raises(UnsupportedError, match="<unk> around every text"):
        written(quantized(llama()), tmp_path / "m.gguf", GGUF(tokenizer=folder))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    """It belongs to another model."""
    with pytest.raises(UnsupportedError, match="token 1023"):
        written(with_short_scales(quantized(llama()), 11), tmp_path / "m.gguf", GGUF(tokenizer=WIKI))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"hidden_act": "gelu"}, "config.hidden_act must be silu"),
        ({"rope_parameters": {**YARN, "attention_factor": 2.0}}, "attention_factor"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    settings: Mapping[str, object], match: str, tmp_path: Path
) -> None:
    """A config that asks for something else than llama.cpp does is named by its field."""
    with pytest.raises(UnsupportedError, match=match):
        written(with_short_scales(quantized(llama(**settings)), 11), tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("num_key_value_heads", 0, "num_key_value_heads must be an integer"),
        ("rope_parameters", {"rope_type": "default"}, "rope_theta must be a number"),
    ],
)
def test_a_config_that_says_too_little_is_refused(
    field: str, value: object, told: str, tmp_path: Path
) -> None:
    """Nothing else is written in its place."""
    model = quantized(llama())
    vars(Source.read(model).config)[field] = value
    with pytest.raises(UnsupportedError, match=rf"config.{told}"):
        written(model, tmp_path / "m.gguf", GGUF())


def test_a_window_is_refused_where_it_is_used(tmp_path: Path) -> None:
    """llama.cpp's LLaMA attends to all tokens."""
    settings = {**_SIZES, "sliding_window": 16}
    model = quantized(_filled(lambda: MistralForCausalLM(MistralConfig.from_dict(settings))))
    with pytest.raises(UnsupportedError, match=r"config.sliding_window must be None.*set it to None"):
        written(model, tmp_path / "m.gguf", GGUF())


def test_grids_of_activations_are_refused(tmp_path: Path) -> None:
    """The format has no place for them, and each is named."""
    with pytest.raises(UnsupportedError, match=r"q_proj: GGUF holds no grids of activations.*weights only"):
        written(converted("LLaMA", "W8A8"), tmp_path / "m.gguf", GGUF())


def test_layers_that_are_no_blocks_are_refused(tmp_path: Path) -> None:
    """Columns that 32 does not divide, groups that are no blocks, and codes that are too wide: at once."""
    model = quantized(llama(intermediate_size=80), bits=8, group=16, symmetric=False)
    with pytest.raises(UnsupportedError) as caught:
        written(model, tmp_path / "m.gguf", GGUF())
    told = "\n".join(map(str, caught.value.problems))
    assert "down_proj: it has 80 columns" in told
    assert "up_proj: its groups are of 16 columns" in told
    wide = quantized(llama(), bits=8, symmetric=False)
    with pytest.raises(UnsupportedError, match=r"less their zero points go from .*symmetric codes"):
        written(wide, tmp_path / "m.gguf", GGUF())


def test_columns_in_the_order_of_their_activations_are_refused(tmp_path: Path) -> None:
    """Their groups are no runs of columns."""
    model = llama(num_hidden_layers=1)
    config = GPTQConfig(bits=4, group_size=32, static_groups=False, symmetric=True, show_progress=False)
    model = convert(_run(prepare(model, config)))
    with pytest.raises(UnsupportedError, match=r"no runs of 32.*act_order=False"):
        written(model, tmp_path / "m.gguf", GGUF())


def test_floats_of_other_formats_are_refused(tmp_path: Path) -> None:
    """float64 is named by the tensor, with what there is."""
    model = quantized(llama())
    model.get_submodule("model.norm").double()
    with pytest.raises(UnsupportedError, match=r"model.norm.weight: dtype must be torch.float32, .*float64"):
        written(model, tmp_path / "m.gguf", GGUF())


def test_tensors_that_llama_cpp_does_not_know_are_refused(tmp_path: Path) -> None:
    """Its Qwen3 has no biases."""
    with pytest.raises(UnsupportedError, match=r"q_proj.bias: llama.cpp's qwen3 has no such tensor"):
        written(quantized(qwen(attention_bias=True)), tmp_path / "m.gguf", GGUF())


def test_other_models_are_refused(tmp_path: Path) -> None:
    """The architectures that there are stand in the message."""
    with pytest.raises(UnsupportedError, match="llama, mistral, qwen2, qwen3"):
        written(converted("linear stack", "W4 g32 sym"), tmp_path / "m.gguf")


def test_the_file_has_the_bytes_of_its_codes(tmp_path: Path) -> None:
    """Q4_0 takes 4.5 bits a weight."""
    model = quantized(llama())
    written(model, tmp_path / "m.gguf", GGUF())
    contents = Contents.of(Source.read(model))
    assert contents is not None
    for each in contents.tensors(nearest=True, floats=None):
        if each.type.name == "Q4_0":
            rows, columns = each.shape
            assert each.bytes == len(each.content()) == rows * columns * 9 // 16


def test_options_are_checked() -> None:
    """Other values are refused when the target is made."""
    with pytest.raises(ConfigError, match="scales"):
        GGUF(scales="rounded")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="floats"):
        GGUF(floats="int8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tokenizer"):
        GGUF(tokenizer=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name"):
        GGUF(name=3)  # type: ignore[arg-type]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """The file that is missing is named."""
    with pytest.raises(ConfigError, match=r"a folder with a tokenizer.json"):
        written(quantized(llama()), tmp_path / "m.gguf", GGUF(tokenizer=tmp_path))


def test_the_example_runs(tmp_path: Path) -> None:
    """Its file has the model's name and its tokenizer."""
    result = export_gguf.write(tmp_path)
    found = fields(result.path)
    assert found["general.name"] == "wiki LLaMA"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert "tensors: 12 of F32, 35 of Q4_0" in result.notes


_WITH_OFFSETS: Final = SuperBlock(offset_bits=6)
_K_QUANTS: Final[Mapping[str, tuple[Mapping[str, object], int]]] = {
    "Q4_K": ({"bits": 4, "group_size": 32, "super_block": _WITH_OFFSETS}, 144),
    "Q5_K": ({"bits": 5, "group_size": 32, "super_block": _WITH_OFFSETS}, 176),
    "Q6_K": ({"bits": 6, "group_size": 16, "super_block": SuperBlock(scale_bits=7)}, 210),
}
"""Fields of configs, and the bytes of a super-block."""


def _k_quant(kind: str, overrides: Mapping[str, Mapping[str, object]] | None = None) -> GPTQConfig:
    """Return the config of a type that the profile gives, with exceptions."""
    asked, _ = _K_QUANTS[kind]
    given = profiles.LLAMA_CPP.configs(GPTQConfig)
    [config] = [each for each in given if asked.items() <= attrs.asdict(each, recurse=False).items()]
    return attrs.evolve(config, show_progress=False, overrides=overrides or {})


def _in_super_blocks(kind: str = "Q6_K", **settings: object) -> nn.Module:
    """Return a model by GPTQ with scales under super-blocks."""
    model = llama(hidden_size=256, intermediate_size=256, num_hidden_layers=1, **settings)
    return convert(_run(prepare(model, _k_quant(kind))))


@pytest.mark.parametrize("kind", _K_QUANTS)
def test_super_blocks_hold_the_values_of_the_model(kind: str, tmp_path: Path) -> None:
    """Both levels of scales and offsets are found again: the file holds each weight bit for bit."""
    model = _in_super_blocks(kind)
    result = written(model, tmp_path / "m.gguf")
    found, source = read(tmp_path / "m.gguf"), Source.read(model)
    assert any(f"7 of {kind}" in each for each in result.notes)
    assert any("each block of 256 values" in each for each in result.notes)
    for part, name in (("mlp.down_proj", "ffn_down"), ("self_attn.q_proj", "attn_q")):
        meant = source.weights[f"model.layers.0.{part}"].dequantize()
        meant = neighbours(meant, 4) if name == "attn_q" else meant
        assert found[f"blk.0.{name}.weight"][0] == kind
        assert torch.equal(found[f"blk.0.{name}.weight"][1], meant)
    contents = Contents.of(source)
    assert contents is not None
    for each in contents.tensors(nearest=False, floats=None):
        if each.type.name == kind:
            rows, columns = each.shape
            assert each.bytes == len(each.content()) == rows * columns // 256 * _K_QUANTS[kind][1]


@pytest.mark.parametrize(
    ("kind", "part", "legal"),
    [
        ("Q6_K", "scale", "scales of 7 bits"),
        ("Q4_K", "scale", "scales of 6 bits and offsets of 6 bits"),
        ("Q5_K", "offset", "scales of 6 bits and offsets of 6 bits"),
    ],
)
def test_numbers_that_share_nothing_are_no_super_blocks(
    kind: str, part: str, legal: str, tmp_path: Path
) -> None:
    """A number that was changed afterwards is no product any more, and is not rounded."""
    model = _in_super_blocks(kind)
    weight = Source.read(model).weights["model.layers.0.mlp.up_proj"]
    getattr(weight.packed, part)[3, 5] *= 1.0001
    with pytest.raises(UnsupportedError, match=rf"up_proj: .*no such products as {legal} under super-blocks"):
        written(model, tmp_path / "m.gguf", GGUF())


def test_every_type_of_super_block_has_a_place_in_one_file(tmp_path: Path) -> None:
    """Beside blocks of 32 where 256 does not divide the columns."""
    kinds = {
        "*.down_proj": {"super_block": None, "bits": 5},
        "*.q_proj": _K_QUANTS["Q5_K"][0],
        "*.o_proj": {**_K_QUANTS["Q6_K"][0], "symmetric": True},
    }
    config = _k_quant("Q4_K", kinds)
    model = llama(hidden_size=256, intermediate_size=320, num_hidden_layers=1)
    result = written(convert(_run(prepare(model, config))), tmp_path / "m.gguf", GGUF())
    assert any("1 of Q5_1, 4 of Q4_K, 1 of Q5_K, 1 of Q6_K" in each for each in result.notes)


@pytest.mark.parametrize("bits", [2, 3])
def test_fewer_bits_with_offsets_take_the_smallest_super_blocks(bits: int, tmp_path: Path) -> None:
    """Groups of 64 are two blocks each, and codes of fewer bits are codes of 4."""
    shared = SuperBlock(scale_bits=5, offset_bits=4)
    config = GPTQConfig(bits=bits, group_size=64, super_block=shared, show_progress=False)
    model = llama(hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    done = convert(_run(prepare(model, config)))
    written(done, tmp_path / "m.gguf")
    kind, found = read(tmp_path / "m.gguf")["blk.0.ffn_up.weight"]
    assert kind == "Q4_K"
    assert torch.equal(found, Source.read(done).weights["model.layers.0.mlp.up_proj"].dequantize())


@pytest.mark.parametrize("shared", [SuperBlock(offset_bits=7), SuperBlock(columns=128, offset_bits=6)])
def test_other_super_blocks_with_offsets_are_refused(shared: SuperBlock, tmp_path: Path) -> None:
    """Blocks of 32 would drop the offsets, so that they are no way out."""
    config = GPTQConfig(group_size=32, super_block=shared, show_progress=False)
    model = llama(hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    with pytest.raises(UnsupportedError, match=r"q_proj: it has uint4 .*offsets of 6 bits under .* of 256"):
        written(convert(_run(prepare(model, config))), tmp_path / "m.gguf", GGUF())


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_columns_that_are_no_super_blocks_are_refused(kind: str, tmp_path: Path) -> None:
    """By `prepare`, with the profile; without it by the exporter, with the ways out."""
    settings = {"hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 1}
    config = _k_quant(kind)
    with pytest.raises(ConfigError, match=r"down_proj.*columns in multiples of 256.* 256 times 320"):
        prepare(llama(**settings), config)
    bare = attrs.evolve(config, target=None, ragged_groups=True)
    model = convert(_run(prepare(llama(**settings), bare)))
    with pytest.raises(UnsupportedError, match=r"down_proj: it has 320 columns.*super_block=None"):
        written(model, tmp_path / "m.gguf", GGUF())
    beside = {"bits": 8, "group_size": 32, "symmetric": True, "super_block": None}
    mixed = attrs.evolve(config, overrides={"*.down_proj": beside})
    result = written(convert(_run(prepare(llama(**settings), mixed))), tmp_path / "m.gguf", GGUF())
    assert any(f"1 of Q8_0, 6 of {kind}" in each for each in result.notes)


@pytest.mark.parametrize(("scales", "kind"), [("nearest", "Q4_0"), ("exact", "Q6_K")])
def test_super_blocks_of_fewer_bits_take_the_smallest_type(scales: str, kind: str, tmp_path: Path) -> None:
    """Rounded scales fit into blocks of 32; their very values need the levels of Q6_K."""
    config = GPTQConfig(group_size=32, symmetric=True, super_block=SuperBlock(), show_progress=False)
    model = llama(hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    target = GGUF(scales=scales)  # type: ignore[arg-type]  # one of the two
    result = written(convert(_run(prepare(model, config))), tmp_path / "m.gguf", target)
    assert any(f"7 of {kind}" in each for each in result.notes)
