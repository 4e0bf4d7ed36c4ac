"""What a model takes and returns when it is exported: caches, keywords, sizes that are fixed after all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tico.quantization import PT2EConfig, convert, prepare
from tico.quantization.config import UnsupportedError
from tico_quantizers.testing import unchanged
from tiny_models import TOKENS, logits, tiny_llama, values


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def _gpt2() -> nn.Module:
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config)


def _bart() -> nn.Module:
    config = BartConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
    )
    return BartForConditionalGeneration(config)


CACHING: dict[str, Callable[[], nn.Module]] = {
    "llama": tiny_llama,
    "gpt2": _gpt2,
    "bart": _bart,
}


def _graph(model: nn.Module, **inputs: object) -> nn.Module:
    graph = prepare(model, PT2EConfig(), kwargs=inputs, inplace=False)
    graph(**inputs)
    return convert(graph)


@pytest.mark.parametrize("family", CACHING)
def test_model_that_returns_its_cache_is_told_the_way(family: str) -> None:
    """The class that no graph can return is named; `test_a_language_model_is_quantized` takes the way."""
    model = _seeded(CACHING[family])
    inputs: dict[str, object] = {"input_ids": TOKENS}
    if family == "bart":
        inputs["decoder_input_ids"] = TOKENS
    with unchanged(model), pytest.raises(UnsupportedError) as caught:
        prepare(model, PT2EConfig(), kwargs=inputs, inplace=False)
    assert "Cache, a kind of value that no graph can return; pass use_cache=False" in str(caught.value)
    assert len(str(caught.value)) < 200


class _Odd:
    """A class of outputs that nothing is known of."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


class _OddModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> _Odd:
        return _Odd(self.fc(x))


def test_other_output_that_no_graph_can_return_is_named() -> None:
    """The remedy is another one where there is no cache."""
    with pytest.raises(UnsupportedError, match=r"it returns _Odd, .*; return tensors, or tuples and dicts"):
        prepare(_OddModel().eval(), PT2EConfig(), args=(values(0, 4, 4),), inplace=False)


@dataclasses.dataclass
class _Result:
    """A result as a dataclass."""

    x: Tensor


class _ResultModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> _Result:
        return _Result(self.fc(x))


def test_a_dataclass_is_returned_once_it_is_registered() -> None:
    """The error before names the call; the graph then returns what the model does."""
    model, x = _ResultModel().eval(), values(0, 4, 4)
    with pytest.raises(
        UnsupportedError, match=r"or call torch\.export\.register_dataclass\(_Result\) before"
    ):
        prepare(model, PT2EConfig(), args=(x,), inplace=False)
    torch.export.register_dataclass(_Result)
    prepared = prepare(model, PT2EConfig(), args=(x,), inplace=False)
    result: object = prepared(x)
    assert isinstance(result, _Result)
    assert torch.equal(result.x, model(x).x)


class _Taking(nn.Module):
    """A layer that takes whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, first: Tensor, *others: Tensor, factor: float = 1.0, **named: Tensor) -> Tensor:
        output: Tensor = self.fc(first) * factor
        for other in (*others, *named.values()):
            output = output + other
        return output


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("names", [(), ("y",), ("y", "z")])
def test_arguments_of_any_number_are_exported(count: int, names: tuple[str, ...]) -> None:
    """By position and by keyword, with a batch that is free; what is no tensor stays what it was."""
    model = _Taking().eval()

    def inputs(rows: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        args = tuple(values(seed, rows, 4) for seed in range(1 + count))
        return args, {name: values(9, rows, 4) for name in names}

    args, named = inputs(4)
    graph = prepare(model, PT2EConfig(), args=args, kwargs={"factor": 2.0, **named}, inplace=False)
    args, named = inputs(3)
    assert torch.equal(graph(*args, factor=2.0, **named), model(*args, factor=2.0, **named))
    with pytest.raises(UnsupportedError, match=r"factor must be 2\.0, got 3\.0"):
        graph(*args, factor=3.0, **named)


def test_options_of_transformers_hold_for_every_call() -> None:
    """The graph returns what they ask for, and another value is refused by name."""
    model = tiny_llama()
    options = {"use_cache": False, "return_dict": False, "output_hidden_states": True}
    graph = prepare(model, PT2EConfig(), kwargs={"input_ids": TOKENS, **options}, inplace=False)
    (found, states), (expected, others) = graph(TOKENS, **options), model(TOKENS, **options)
    for one, other in zip((found, *states), (expected, *others), strict=True):
        # Attention is computed in another order: some steps of float32, of the largest value.
        assert (one - other).abs().max() <= 64 * 2**-23 * other.abs().max()
    for name, value in options.items():
        with pytest.raises(UnsupportedError, match=f"{name} must be {value}, got {not value}"):
            graph(TOKENS, **{**options, name: not value})


class _Wrapped(nn.Module):
    """A language model that returns its logits alone, and takes whatever it is given by keyword."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.lm = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return logits_of(self.lm, **inputs)


def logits_of(model: nn.Module, **inputs: Tensor) -> Tensor:
    """Return the logits that a language model gives for inputs by keyword."""
    output: Tensor = model(**inputs).logits
    return output


def test_cache_that_stays_inside_is_no_obstacle() -> None:
    """A cache that is filled and dropped in one call begins empty, and what is empty needs no grid."""
    model = tiny_llama()
    graph = _graph(_Wrapped(model), input_ids=TOKENS)
    found, expected = graph(input_ids=TOKENS), logits(model)
    assert (found - expected).abs().max() < 0.2 * expected.abs().max()


def test_keywords_that_a_model_hands_on_are_exported() -> None:
    """Their batch is free as that of any other input, and the model has its own forward afterwards."""
    wrapped = _Wrapped(tiny_llama())
    graph = _graph(wrapped, input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS))
    assert "forward" not in vars(wrapped)
    tokens = TOKENS.repeat(2, 1)
    assert graph(input_ids=tokens, attention_mask=torch.ones_like(tokens)).shape == (4, 12, 40)


def _llava() -> nn.Module:
    text = LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        projection_dim=16,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=50, image_seq_length=4)
    return LlavaForConditionalGeneration(config)


def _images(count: int) -> dict[str, object]:
    tokens = torch.arange(8).repeat(count, 1) + 1
    tokens[:, 1:5] = 50
    return {"input_ids": tokens, "pixel_values": values(0, count, 3, 8, 8), "use_cache": False}


def test_batch_that_the_exporter_has_fixed_is_checked() -> None:
    """It left the axis free at first, and found in the model that it has the example's size."""
    graph = _graph(_seeded(_llava), **_images(2))
    assert graph(**_images(2)).logits.shape == (2, 8, 60)
    for count in (1, 3):
        with pytest.raises(
            UnsupportedError, match=r"pixel_values must be a tensor of sizes \(2, 3, 8, 8\), got"
        ):
            graph(**_images(count))


class _FixedInside(nn.Module):
    """A model that asks for the batch as a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc(x)
        return output.reshape(int(x.shape[0]) // 2, 2, 4)


@pytest.mark.parametrize("rows", [2, 3, 8])
def test_no_size_passes_the_check_that_the_graph_cannot_take(rows: int) -> None:
    """Either the size is free, and the result right, or the input is refused by name."""
    model = _FixedInside().eval()
    graph = prepare(model, PT2EConfig(), args=(values(0, 4, 4),), inplace=False)
    graph(values(0, 4, 4))
    graph = convert(graph)
    try:
        found = graph(values(1, rows, 4))
    except UnsupportedError as error:
        assert error.field == "x"  # noqa: PT017  # which of the two it is depends on the exporter
    else:
        assert found.shape == model(values(1, rows, 4)).shape
