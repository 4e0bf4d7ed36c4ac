"""Converted models are compiled and exported as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from llama_families import TOKENS, tiny
from references import same_bits
from tico.quantization import PTQConfig, convert, prepare
from tico_wrapq import lookup
from wrapped_modules import CASES


@pytest.fixture(autouse=True)
def forgetful_compiler() -> Iterator[None]:
    """Let no test meet what another has compiled."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _quantized(family: str, attention: str = "eager", variant: str = "default") -> nn.Module:
    model = prepare(tiny(family, attention), PTQConfig(variant=variant))
    model(TOKENS)
    return convert(model).requires_grad_(False)


@pytest.mark.parametrize(
    ("family", "attention", "variant"), [("Llama", "sdpa", "default"), ("Qwen3", "eager", "stepwise")]
)
def test_language_models_are_one_graph(family: str, attention: str, variant: str) -> None:
    """No graph break, and the same bits."""
    model = _quantized(family, attention, variant)
    expected = model(TOKENS, use_cache=False).logits
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert same_bits(compiled(TOKENS, use_cache=False).logits, expected)


@pytest.mark.filterwarnings("ignore")  # of torch and transformers, about what they trace
def test_language_models_are_exported_strictly() -> None:
    """What `torch.compile` traces, strict export does too."""
    model = _quantized("Llama")
    expected = model(TOKENS, use_cache=False).logits
    program = torch.export.export(model, (TOKENS,), {"use_cache": False}, strict=True)
    assert same_bits(program.module()(TOKENS, use_cache=False).logits, expected)


KINDS = {lookup(type(case.make())): name for name, case in CASES.items()}


@pytest.mark.parametrize("name", KINDS.values())
def test_wrappers_are_one_graph(name: str) -> None:
    """A module of the table for every wrapper there is."""
    case = CASES[name]
    model = prepare(case.model(), case.config)
    model(*case.inputs)
    convert(model).requires_grad_(False)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert same_bits(compiled(*case.inputs), model(*case.inputs))
