"""`GGUF()`: language models in llama.cpp's own files, run by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import nn

from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico.quantization.config import MXFP4, affine, no_quant
from tico_config import DType, SuperBlock, profiles
from tico_export import GGUF, ExportResult, export
from tico_modules import QuantizedEmbedding, QuantizedLinear

pytest.importorskip("cyllama", reason="nox -s 'runtimes(llama_cpp)' installs it")
transformers = pytest.importorskip("transformers", reason="nox -s 'runtimes(llama_cpp)' installs it")

WIKI: Final = Path(__file__).parents[2] / "examples" / "wiki_llama"
TOKENS: Final = torch.arange(48).view(2, 24) * 7 % 61 + 1
_SIZES: Final = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_LLAMA3: Final = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN: Final = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS: Final[Mapping[str, Mapping[str, object]]] = {
    "Llama": {},
    "Llama with biases": {"attention_bias": True, "mlp_bias": True},
    "Llama tied": {"tie_word_embeddings": True},
    "Llama linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "Llama llama3": {"rope_parameters": _LLAMA3},
    "Llama yarn": {"rope_parameters": _YARN},
    "Mistral": {"head_dim": 64, "sliding_window": None},
    "Qwen2": {},
    "Qwen3": {"head_dim": 64},
}


def _model(name: str, large: float = 2.0) -> nn.Module:
    """Return a small float model, whose norms and biases are not what they are at first."""
    family = name.partition(" ")[0]
    config = getattr(transformers, f"{family}Config").from_dict({**_SIZES, **MODELS[name]})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        for path, each in model.named_parameters():
            if each.ndim == 1:
                each.add_(torch.randn(each.shape) / 10)
            elif "q_proj" in path or "k_proj" in path:
                each.mul_(3 * large)  # so that attention depends on what it attends to, and where that is
            else:
                each.mul_(large)
    return model


def _quantize(
    model: nn.Module, taken: Callable[[str], bool], *, bits: int, symmetric: bool, group: int
) -> None:
    """Put integer layers in the place of those linear layers whose paths are taken."""
    for path, each in list(model.named_modules()):
        if isinstance(each, nn.Linear) and taken(path):
            dtype = DType(bits, signed=symmetric)
            layer = QuantizedLinear.from_float(each, dtype, symmetric=symmetric, group_size=group)
            model.set_submodule(path, layer)


def _verified(model: nn.Module, path: Path, target: GGUF) -> ExportResult:
    result = export(model, path, target, args=(TOKENS,), kwargs={"use_cache": False}, verify="require")
    print(result, f"KL {result.kl:.2g}")  # noqa: T201  # for the record
    return result


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_is_computed_as_transformers_does(name: str, tmp_path: Path) -> None:
    """With one integer layer and all others in float32, only that layer's kernel makes a difference."""
    model = _model(name)
    _quantize(model, lambda path: path.endswith("layers.1.mlp.down_proj"), bits=8, symmetric=True, group=32)
    result = _verified(model, tmp_path / "m.gguf", GGUF())
    # Its own bound, since rounding its inputs to 8 bits is the only noise, of a part of the sum that is read.
    assert result.sqnr > 37


@pytest.mark.parametrize(
    ("bits", "symmetric", "kind"),
    [(4, True, "Q4_0"), (4, False, "Q4_1"), (5, True, "Q5_0"), (5, False, "Q5_1"), (8, True, "Q8_0")],
)
def test_every_type_is_multiplied_by(bits: int, symmetric: bool, kind: str, tmp_path: Path) -> None:
    """All layers have weights of one type, and the head too."""
    model = _model("Llama", 1.0)
    _quantize(model, lambda path: True, bits=bits, symmetric=symmetric, group=64)
    result = _verified(model, tmp_path / "m.gguf", GGUF())
    assert any(f"15 of {kind}" in each for each in result.notes)


def test_elements_of_mxfp4_are_multiplied_by(tmp_path: Path) -> None:
    """All layers and the embedding have them."""
    config = PTQConfig(activation=no_quant(), weight=affine(MXFP4()))
    model = convert(prepare(_model("Llama", 1.0), config, args=(TOKENS,)))
    result = _verified(model, tmp_path / "m.gguf", GGUF())
    assert any("16 of MXFP4" in each for each in result.notes)


@pytest.mark.parametrize("floats", ["kept", "float16", "bfloat16"])
def test_floats_are_multiplied_by(floats: str, tmp_path: Path) -> None:
    """Matrices that are left in float have any of three formats."""
    model = _model("Llama", 1.0)
    _quantize(model, lambda path: path.endswith("up_proj"), bits=8, symmetric=True, group=32)
    target = GGUF(floats=floats)  # type: ignore[arg-type]  # one of the three
    assert _verified(model, tmp_path / "m.gguf", target).verified


def test_an_integer_embedding_is_read(tmp_path: Path) -> None:
    """Its rows are dequantized where they are looked up."""
    model = _model("Llama", 1.0)
    _quantize(model, lambda path: True, bits=8, symmetric=True, group=32)
    linear = nn.Linear(128, 64, bias=False)
    linear.weight = model.get_submodule("model.embed_tokens").weight  # type: ignore[assignment]  # a matrix
    packed = QuantizedLinear.from_float(linear, DType.int(8), symmetric=True, group_size=32).parts
    model.set_submodule("model.embed_tokens", QuantizedEmbedding(packed))
    assert _verified(model, tmp_path / "m.gguf", GGUF()).verified


_TEXT: Final = (
    "Hello, world! It's 2026: 3.14159 isn't \u03c0.\n\n\tTabs  and   spaces   \n"
    "\u0391\u03b8\u03ae\u03bd\u03b1, \u6771\u4eac, \U0001f600 don't\r\n<|endoftext|>x"
)
_BYTES: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_QWEN2: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> Mapping[str, object]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [step, {**_BYTES, "use_regex": False}]}


@pytest.mark.parametrize(
    ("pre_tokenizer", "whole"),
    [
        ({**_BYTES, "use_regex": True}, False),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {**_BYTES, "use_regex": True},
                ],
            },
            False,
        ),
        (_split(_QWEN2), False),
        (_split(_QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), True),
        (_split(_TEKKEN), True),
    ],
    ids=["gpt-2", "smollm", "qwen2", "llama-bpe", "tekken"],
)
def test_text_becomes_the_same_tokens(
    pre_tokenizer: Mapping[str, object], whole: bool, tmp_path: Path
) -> None:
    """llama.cpp reads the tokenizer out of the file, and splits text as it does."""
    saved = json.loads((WIKI / "tokenizer.json").read_text(encoding="utf-8"))
    saved["pre_tokenizer"], saved["model"]["ignore_merges"] = pre_tokenizer, whole
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_bytes((WIKI / "tokenizer_config.json").read_bytes())
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    model = transformers.LlamaForCausalLM.from_pretrained(WIKI).eval()
    _quantize(model, lambda path: "layers" in path, bits=4, symmetric=True, group=32)
    result = _verified(model, tmp_path / "m.gguf", GGUF(tokenizer=tokenizer))
    assert result.kl is not None
    assert result.kl < 1e-2
    assert _tokens_by_llama_cpp(tmp_path / "m.gguf") == tokenizer(_TEXT).input_ids


def _tokens_by_llama_cpp(path: Path) -> list[int]:
    runtime = pytest.importorskip("cyllama.llama.llama_cpp")
    loaded = runtime.LlamaModel(str(path), runtime.LlamaModelParams())
    found: list[int] = loaded.get_vocab().tokenize(_TEXT, True, True)
    return found


_REPLACED: Final = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
_PREPENDED: Final = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, _REPLACED]}
_METASPACE: Final = {"type": "Metaspace", "replacement": "\u2581", "split": False}


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer"),
    [
        (_PREPENDED, None),
        (_REPLACED, None),
        (None, {**_METASPACE, "prepend_scheme": "always"}),
        (None, {**_METASPACE, "prepend_scheme": "never"}),
    ],
    ids=["prepended", "replaced", "always", "never"],
)
def test_pieces_of_sentences_become_the_same_tokens(
    normalizer: Mapping[str, object] | None, pre_tokenizer: Mapping[str, object] | None, tmp_path: Path
) -> None:
    """Tokenizers that come from SentencePiece merge by scores there, and unknown letters become bytes."""
    saved = _sentence_pieces() | {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    saved["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved), encoding="utf-8")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    model = transformers.LlamaForCausalLM.from_pretrained(WIKI).eval()
    _quantize(model, lambda path: "layers" in path, bits=4, symmetric=True, group=32)
    assert _verified(model, tmp_path / "m.gguf", GGUF(tokenizer=tmp_path)).verified
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert _tokens_by_llama_cpp(tmp_path / "m.gguf") == tokenizer(_TEXT).input_ids


def _sentence_pieces() -> dict[str, object]:
    """Return a tokenizer made of a text, with a merge for each two halves of a token."""
    tokenizers = pytest.importorskip("tokenizers")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
    made.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("\u2581?[^\u2581]+"), "isolated")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=800, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False
    )
    made.train([str(WIKI / "calibration.txt")], trainer)
    saved: dict[str, object] = json.loads(made.to_str())
    model, special = saved["model"], ("<unk>", "<s>", "</s>")
    assert isinstance(model, dict)
    tokens = ["".join(pair) for pair in model["merges"]]
    known = {text for text in model["vocab"] if text not in (*special, *byte_tokens)}
    splits = [[text[:end], text[end:]] for text in tokens for end in range(1, len(text))]
    model["merges"] = [pair for pair in splits if known.issuperset(pair)]
    saved["added_tokens"] = [each for each in saved["added_tokens"] if each["content"] in special]  # type: ignore[attr-defined]
    return saved


@pytest.mark.parametrize("given", [0.5, 3.0])
@pytest.mark.parametrize(("bits", "group", "kind"), [(4, 32, "Q4_K"), (5, 32, "Q5_K"), (6, 16, "Q6_K")])
def test_super_blocks_are_multiplied_by(
    bits: int, group: int, kind: str, given: float, tmp_path: Path
) -> None:
    """GPTQ under super-blocks, and llama.cpp's own kernels for them, at outputs of two sizes."""
    sizes = {**_SIZES, "hidden_size": 256, "intermediate_size": 512}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
        for each in model.parameters():
            each.mul_(given)
    shared = {4: SuperBlock(offset_bits=6), 5: SuperBlock(offset_bits=6), 6: SuperBlock(scale_bits=7)}[bits]
    config = GPTQConfig(
        bits=bits,
        group_size=group,
        symmetric=bits == 6,
        super_block=shared,
        show_progress=False,
        target=profiles.LLAMA_CPP,
    )
    prepared = prepare(model, config)
    with torch.no_grad():
        prepared(TOKENS)
    result = _verified(convert(prepared), tmp_path / "m.gguf", GGUF())
    assert any(f"14 of {kind}" in each for each in result.notes)
