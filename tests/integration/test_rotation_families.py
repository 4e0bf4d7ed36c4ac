"""Rotations of the model families of transformers: the function is kept, or the stream left alone by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from language_models import WIKI_LLAMA, load
from tico.quantization import (
    GPTQConfig,
    PTQConfig,
    RotationConfig,
    calibrate,
    convert,
    load_quantized,
    prepare,
    report,
    save_quantized,
)
from tico.quantization.config import DType, affine, no_quant
from tico_config import ConfigError
from tico_modules import QuantizedLinear, RotatedInput
from tiny_models import tiny_llama

TOKENS = torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(0))
EXACT = 1e-5
SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}


def build(family: str, **settings: object) -> nn.Module:
    """Return a random model of a family, norms and biases included, always the same one."""
    config = getattr(transformers, f"{family}Config")(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, **settings
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        for _, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.data.add_(torch.rand(parameter.shape) * 0.8 - 0.3)
    return model.eval()


def logits(model: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    """Return the logits of a model."""
    with torch.no_grad():
        output: Tensor = model(tokens).logits
    return output


def rotated(model: nn.Module, config: RotationConfig | None = None) -> nn.Module:
    """Return `model` rotated."""
    prepared = prepare(model, config or RotationConfig())
    logits(prepared)
    return convert(prepared)


def distance(found: Tensor, expected: Tensor) -> float:
    """Return how far two outputs are apart, as a share of their norm."""
    return float((found - expected).double().norm() / expected.double().norm())


def notes(model: nn.Module) -> dict[str, str]:
    """Return what the report says of each module."""
    return {line.path: line.reason for line in report(model).layers}


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: build("Llama", **GROUPED, head_dim=6),
    "llama, eager": lambda: build("Llama", **GROUPED, head_dim=6, attn_implementation="eager"),
    "biases": lambda: build("Qwen2", **GROUPED),
    "norms of queries and keys, tied": lambda: build(
        "Qwen3", **GROUPED, head_dim=6, attention_bias=True, tie_word_embeddings=True
    ),
    "layer norms, tied, positions": lambda: build(
        "OPT",
        ffn_dim=40,
        word_embed_proj_dim=24,
        **{name: size for name, size in SIZES.items() if name != "intermediate_size"},
    ),
    "scaled embeddings, 1 + weight": lambda: build("Gemma", **GROUPED, head_dim=6),
    "attention beside the mlp": lambda: build("Phi", **{**SIZES, "hidden_size": 32}),
    "factors of branches": lambda: build("Granite", **GROUPED, residual_multiplier=0.3),
}
STREAM_ONLY: dict[str, Callable[[], nn.Module]] = {
    "fused transposed layers, tied": lambda: build(
        "GPT2", vocab_size=40, n_embd=24, n_layer=2, n_head=4, n_positions=32
    ),
    "fused queries, keys and values": lambda: build("Phi3", **GROUPED),
}
HEADS_ONLY: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "norms behind the branches": (
        lambda: build("Gemma2", **GROUPED, head_dim=6),
        "added to the output of model.layers.0.post_attention_layernorm",
    ),
    "fused experts": (
        lambda: build("Mixtral", **GROUPED, num_local_experts=3),
        "model.layers.0.mlp.experts: down_proj holds weights of several experts",
    ),
}


@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)
def test_stream_and_heads_are_rotated(make: Callable[[], nn.Module]) -> None:
    """The residual stream and the heads of both layers are rotated, and the function is kept."""
    model = make()
    expected = logits(model)
    said = notes(rotated(model))
    assert distance(logits(model), expected) <= EXACT
    assert sum("output rotated: heads" in note for note in said.values()) == 2
    assert sum("output rotated: the residual stream" in note for note in said.values()) >= 5


@pytest.mark.parametrize("make", STREAM_ONLY.values(), ids=STREAM_ONLY)
def test_values_in_a_layer_with_queries_are_left_alone(make: Callable[[], nn.Module]) -> None:
    """The residual stream is rotated; the heads of a layer that gives queries and keys as well are not."""
    model = make()
    expected = logits(model)
    said = notes(rotated(model))
    assert distance(logits(model), expected) <= EXACT
    assert not any("heads" in note for note in said.values())
    assert sum("output rotated: the residual stream" in note for note in said.values()) >= 5


@pytest.mark.parametrize(("make", "reason"), HEADS_ONLY.values(), ids=HEADS_ONLY)
def test_streams_that_cannot_be_rotated_are_named(make: Callable[[], nn.Module], reason: str) -> None:
    """The heads are rotated; the report says why the residual stream is not."""
    model = make()
    expected = logits(model)
    said = notes(rotated(model))
    assert distance(logits(model), expected) <= EXACT
    assert reason in said["model.embed_tokens"]
    assert sum("output rotated: heads" in note for note in said.values()) == 2


@pytest.mark.parametrize("matrix", ["hadamard", "random"])
def test_every_matrix_keeps_the_function(matrix: str) -> None:
    """Whatever the matrix, outputs stay; other seeds give other weights."""
    expected = logits(WHOLE["llama"]())
    models = [rotated(WHOLE["llama"](), RotationConfig(matrix=matrix, seed=seed)) for seed in (0, 1)]  # type: ignore[arg-type]
    weights = [model.get_parameter("model.layers.0.self_attn.q_proj.weight") for model in models]
    assert all(distance(logits(model), expected) <= EXACT for model in models)
    assert not torch.allclose(weights[0], weights[1])


def test_embedded_model_keeps_its_function() -> None:
    """The trained model that comes with the examples computes what it did, with a head of its own."""
    model = load(WIKI_LLAMA, 128).model
    tokens = torch.arange(3, 67)[None]
    expected = logits(model, tokens)
    prepared = prepare(model, RotationConfig())
    logits(prepared, tokens)
    assert distance(logits(convert(prepared), tokens), expected) <= EXACT


def test_tied_head_is_untied_and_stays_so(tmp_path: Path) -> None:
    """The head gets a weight of its own, the config says so, and a saved model loads to the same outputs."""
    model = WHOLE["norms of queries and keys, tied"]()
    found = rotated(model)
    said = notes(found)
    assert "no longer tied to model.embed_tokens" in said["lm_head"]
    assert "no longer tied to lm_head" in said["model.embed_tokens"]
    assert found.config.tie_word_embeddings is False  # type: ignore[union-attr]  # a module to mypy
    found.save_pretrained(tmp_path)  # type: ignore[operator]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(found))


def test_tied_head_can_keep_its_weight() -> None:
    """With tied_embeddings='refuse' the stream is left alone, the heads are rotated, nothing is untied."""
    model = rotated(WHOLE["norms of queries and keys, tied"](), RotationConfig(tied_embeddings="refuse"))
    said = notes(model)
    assert "tied_embeddings='refuse'" in said["model.embed_tokens"]
    assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")
    assert sum("output rotated: heads" in note for note in said.values()) == 2


def test_gptq_takes_over() -> None:
    """A rotated model is prepared again by GPTQ, whose integers give about what the floats did."""
    model = rotated(WHOLE["llama"]())
    expected = logits(model)
    prepared = prepare(model, GPTQConfig(bits=8, show_progress=False))
    logits(prepared)
    converted = convert(prepared)
    assert distance(logits(converted), expected) < 0.05
    gptq = [line.path for line in report(converted).layers if line.bits == 8]
    assert "model.layers.0.self_attn.v_proj" in gptq


def test_short_floats_move_by_their_precision() -> None:
    """In bfloat16 the outputs stay within the root of the precision, and the dtype stays."""
    model = WHOLE["llama"]().to(torch.bfloat16)
    expected = logits(model)
    found = logits(rotated(model))
    assert found.dtype == torch.bfloat16
    assert distance(found, expected) <= torch.finfo(torch.bfloat16).eps ** 0.5


ONLINE = RotationConfig(online_inputs=True)


@pytest.mark.parametrize("make", [*WHOLE.values(), *STREAM_ONLY.values()], ids=[*WHOLE, *STREAM_ONLY])
def test_inputs_behind_activations_are_rotated_online(make: Callable[[], nn.Module]) -> None:
    """Each block has such a layer, the function is kept, and a second run of another algorithm finds it."""
    model = make()
    expected = logits(model)
    found = rotated(model, ONLINE)
    online = [path for path, each in found.named_modules() if isinstance(each, RotatedInput)]
    assert distance(logits(found), expected) <= EXACT
    assert len([path for path in online if "mlp" in path or "fc2" in path]) == 2
    assert not any(name in path for path in online for name in ("q_proj", "up_proj", "fc1", "c_attn"))


def test_points_and_codes_are_those_of_the_rotated_input(tmp_path: Path) -> None:
    """PTQ's grid has the range of the rotated input, GPTQ's codes stay, and files give the same bits."""
    model = rotated(WHOLE["llama"](), ONLINE)
    seen: list[Tensor] = []
    down = model.get_submodule("model.layers.0.mlp.down_proj")
    assert isinstance(down, RotatedInput)
    handle = down.layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits(model)
    handle.remove()
    low, high = seen[0].aminmax()
    for config in (
        GPTQConfig(bits=4, show_progress=False),
        PTQConfig(
            activation=no_quant(),
            weight=no_quant(),
            overrides={"*.down_proj.layer.act_in": affine(DType.uint(8))},
        ),
    ):
        prepared = prepare(model, config)
        logits(prepared)
        model = convert(prepared)
    layer = model.get_submodule("model.layers.0.mlp.down_proj.layer")
    assert isinstance(layer, QuantizedLinear)
    assert layer.act_in is not None
    assert layer.bits == 4
    # The block in front is rounded by then, which moves its outputs by a few percent.
    assert float(layer.act_in.scale) == pytest.approx(float(high - low) / 255, rel=0.2)
    save_quantized(model, tmp_path / "saved")
    loaded = load_quantized(tmp_path / "saved", WHOLE["llama"]())
    assert torch.equal(logits(loaded), logits(model))


def test_weights_that_are_quantized_already_are_told() -> None:
    """Where nothing can be rotated for them, with the order to go in."""
    config = GPTQConfig(bits=4, show_progress=False)
    model = convert(calibrate(prepare(tiny_llama(), config), [TOKENS]))
    with pytest.raises(ConfigError, match="quantized already: rotate the float model first"):
        convert(calibrate(prepare(model, RotationConfig()), [TOKENS]))
