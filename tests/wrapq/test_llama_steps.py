"""The variant ``"stepwise"``: the same function, with a point for every step of norms, SiLU and softmax."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn

from exported_programs import foreign_operators, grids_on_activations
from llama_families import FAMILIES, TOKENS, LogitsOf, calls, converted, grid_count, padded, tiny
from tico.quantization import PTQConfig, convert, load_quantized, prepare, report, save_quantized
from tico.quantization.config import DType, affine, no_quant
from tico_config import PerToken
from tico_quantizers import QuantizedModule
from tico_wrapq import QuantizedNorm, QuantModuleBase, QuantSteppedAttention, QuantSteppedNorm
from tiny_models import logits

STEPWISE = PTQConfig(variant="stepwise")
PER_TOKEN = PTQConfig(variant="stepwise", activation=affine(DType.uint(8), granularity=PerToken()))
SOFTMAX = ("shifted", "exponential", "sum", "inverse_sum")
every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prepared_model_has_the_logits_of_eager_attention(family: str, dtype: torch.dtype) -> None:
    """Bit for bit, for whole and padded batches."""
    model = tiny(family, dtype=dtype)
    expected = {name: model(**call).logits for name, call in calls().items()}
    prepared = prepare(model, STEPWISE)
    for name, call in calls().items():
        assert torch.equal(prepared(**call).logits, expected[name]), name


def test_every_step_is_on_a_grid() -> None:
    """Five more points for a norm, one for SiLU, four for the softmax: all see data."""
    more = grid_count(converted("Llama", STEPWISE)) - grid_count(converted("Llama"))
    # The weight of a norm is no activation, and is not counted.
    assert more == 5 * 4 + 2 * (1 + 4)
    points = [
        point
        for module in converted("Llama", STEPWISE).modules()
        if isinstance(module, QuantModuleBase)
        for _, point in module.named_points()
    ]
    assert all(point.fixed is not None for point in points)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_finer_steps_come_nearer_to_the_whole(attention: str) -> None:
    """The finer the grids of the steps, the nearer what they make of them is to torch's own functions."""
    expected = converted("Llama", PTQConfig(activation=affine(DType.uint(16))), attention)
    configs = [
        # Weights of norms stay float: their 8 bits would outweigh the steps.
        attrs.evolve(STEPWISE, activation=affine(DType.uint(bits)), overrides={"*norm.weight": no_quant()})
        for bits in (8, 12)
    ]
    for name, call in calls().items():
        want: Tensor = expected(**call).logits
        real = call.get("attention_mask", torch.ones_like(call["input_ids"])).bool()  # padding counts nothing
        coarse, fine = (
            (converted("Llama", config, attention)(**call).logits - want)[real].abs().max()
            for config in configs
        )
        # Four more bits make each rounding error 16 times smaller; half of that is left to chance.
        assert fine < coarse / 8, name


@pytest.mark.parametrize("config", [STEPWISE, PER_TOKEN], ids=["static", "per token"])
def test_padding_does_not_reach_the_text(config: PTQConfig) -> None:
    """What is masked has a weight of exactly 0, and rows of padding alone stay finite."""
    model, call = converted("Llama", config), padded("left")
    found: Tensor = model(**call).logits
    again: Tensor = model(
        **(call | {"input_ids": call["input_ids"] + 5 * (call["attention_mask"] == 0)})
    ).logits
    assert bool(found.isfinite().all())
    assert torch.equal(found[0, 4:], again[0, 4:])


@pytest.mark.parametrize("config", [STEPWISE, PER_TOKEN], ids=["static", "per token"])
def test_exported_program_has_a_pair_of_nodes_for_each_fixed_grid(config: PTQConfig) -> None:
    """Exactly one, no operator of ours, and the bits of the module."""
    model = converted("Llama", config, "sdpa")
    program = torch.export.export(LogitsOf(model), (TOKENS,))
    assert grids_on_activations(program) == grid_count(model, fixed_only=True)
    assert foreign_operators(program) == []
    assert torch.equal(program.module()(TOKENS), logits(model, TOKENS))


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_saved_model_comes_back(family: str, tmp_path: Path) -> None:
    """From its folder alone, bit for bit, with the same report."""
    model = converted(family, STEPWISE)
    save_quantized(model, tmp_path)
    loaded = load_quantized(tmp_path)
    assert torch.equal(logits(loaded, TOKENS), logits(model, TOKENS))
    assert report(loaded) == report(model).without_times()


def test_weight_of_a_norm_is_integer_and_kept() -> None:
    """The report says so, and quantizing again keeps the codes."""
    model = converted("Llama", STEPWISE)
    norm = model.get_submodule("model.norm")
    assert isinstance(norm, QuantSteppedNorm)
    assert isinstance(norm.module, QuantizedNorm)
    line = next(line for line in report(model).layers if line.path == "model.norm")
    assert line.weight.startswith("uint8")
    codes = norm.module.packed.codes.clone()
    prepared = prepare(model, STEPWISE)
    prepared(TOKENS)
    again = [module for module in convert(prepared).modules() if isinstance(module, QuantizedModule)]
    assert any(
        torch.equal(module.packed.codes, codes) for module in again if isinstance(module, QuantizedNorm)
    )


@pytest.mark.parametrize("name", SOFTMAX)
def test_each_step_of_the_softmax_can_be_left_in_float(name: str) -> None:
    """An override leaves out that one point."""
    model = converted("Llama", PTQConfig(variant="stepwise", overrides={f"*.self_attn.{name}": no_quant()}))
    assert grid_count(model) == grid_count(converted("Llama", STEPWISE)) - 2


def test_float_steps_are_torchs_functions() -> None:
    """With none of the steps on a grid the model is that of the default variant, bit for bit."""
    steps = {f"*.{name}": no_quant() for name in (*SOFTMAX, "sigmoid", "square", "mean", "inverse_root")}
    float_steps = steps | {"*.normalized": no_quant(), "*norm.weight": no_quant()}
    model = converted("Llama", PTQConfig(variant="stepwise", overrides=float_steps))
    assert torch.equal(logits(model, TOKENS), logits(converted("Llama"), TOKENS))


def test_softmax_by_steps_sums_to_one() -> None:
    """Without grids on the steps, what they compute is the softmax up to rounding."""
    attention = prepare(tiny("Llama"), STEPWISE).get_submodule("model.layers.0.self_attn")
    assert isinstance(attention, QuantSteppedAttention)
    rows = torch.linspace(-30, 30, 24).view(1, 2, 3, 4)
    # Four terms, each rounded a few times, in float32.
    assert torch.allclose(
        attention._stepped(rows, None), nn.functional.softmax(rows, -1), rtol=1e-6, atol=1e-12
    )
