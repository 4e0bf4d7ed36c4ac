"""What wrappers of the LLaMA family ask for is what the float modules ask for."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from llama_families import FAMILIES, TOKENS, tiny
from tico.quantization import PTQConfig, convert, prepare
from tico.quantization.config import UnsupportedError
from tico_quantizers.testing import refused

STATES = ("prepared", "converted", "converted again")
HIDDEN = torch.linspace(-1, 1, 2 * 5 * 16).view(2, 5, 16)
ROTATION = (torch.ones(1, 5, 8) * 0.8, torch.ones(1, 5, 8) * 0.6)
MASK = torch.zeros(2, 1, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), torch.finfo(torch.float32).min)
LAYER: Mapping[str, object] = {"position_embeddings": ROTATION, "attention_mask": MASK}


def _in_state(state: str, family: str) -> nn.Module:
    model = prepare(tiny(family), PTQConfig())
    if state != "prepared":
        model(TOKENS)
        convert(model)
    if state == "converted again":
        convert(_calibrated(prepare(model, PTQConfig())))
    return model


def _calibrated(model: nn.Module) -> nn.Module:
    model(TOKENS)
    return model


def _raises(module: nn.Module, **kwargs: object) -> bool:
    try:
        module(HIDDEN, **kwargs)
    except TypeError:
        return True
    return False


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["model.layers.0", "model.layers.1", "model.layers.0.self_attn"])
def test_what_the_float_module_needs_is_needed(family: str, part: str, state: str) -> None:
    """Without an argument, the wrapper raises where the float module does, and only there."""
    floating, wrapped = tiny(family).get_submodule(part), _in_state(state, family).get_submodule(part)
    for missing in LAYER:
        given = {name: value for name, value in LAYER.items() if name != missing}
        assert _raises(wrapped, **given) == _raises(floating, **given), missing
    assert not _raises(wrapped, **LAYER)


@pytest.mark.parametrize("name", ["position_embeddings", "attention_mask"])
def test_missing_argument_is_named(name: str) -> None:
    """With the module that lacks it."""
    model = _in_state("converted", "Mistral")
    attention = model.get_submodule("model.layers.0.self_attn")
    given = {key: value for key, value in LAYER.items() if key != name}
    with refused(model, UnsupportedError, module="model.layers.0.self_attn", field=name):
        attention(HIDDEN, **given)


def test_a_mask_of_none_is_given() -> None:
    """None says that everything is attended to, as in the float module."""
    floating = tiny("Mistral").get_submodule("model.layers.0.self_attn")
    wrapped = _in_state("prepared", "Mistral").get_submodule("model.layers.0.self_attn")
    given = {"position_embeddings": ROTATION, "attention_mask": None}
    assert torch.equal(wrapped(HIDDEN, **given)[0], floating(HIDDEN, **given)[0])


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_by_position_are_those_by_name(family: str, state: str) -> None:
    """Every argument that the float layer takes by position reaches its place, the last one too."""
    float_layer = tiny(family).get_submodule("model.layers.0")
    layer = _in_state(state, family).get_submodule("model.layers.0")
    _, _, *others = inspect.signature(type(float_layer).forward).parameters.values()
    names = [each.name for each in others if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert "position_embeddings" in names
    by_position: Tensor = layer(HIDDEN, *(LAYER.get(name) for name in names))
    assert torch.equal(by_position, layer(HIDDEN, **LAYER))
    if state == "prepared":
        assert torch.equal(by_position, float_layer(HIDDEN, **LAYER))
    with refused(copy.deepcopy(layer), UnsupportedError, module="model.layers.0"):
        layer(HIDDEN, *[None] * 9)
