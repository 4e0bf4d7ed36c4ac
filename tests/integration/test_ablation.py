"""ablate and ablation: parts of a quantized model in float, whatever made it, and what each part costs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from cache_models import two_heads
from fused_models import fused_model, token_ids
from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    KVCacheConfig,
    PT2EConfig,
    PTQConfig,
    Selection,
    SmoothQuantConfig,
    ablate,
    ablation,
    calibrate,
    compare,
    convert,
    prepare,
    set_backend,
)
from tico.quantization.config import BaseConfig, DType, affine, no_quant
from tico_config import ConfigError, LifecycleError, TicoError, UnsupportedError
from tico_modules import own_tensor
from tico_quantizers.evaluation import QuantizedPart, logits_of
from tico_quantizers.testing import seeded
from tiny_models import TOKENS, tiny_llama

W2: Final = GPTQConfig(bits=2, show_progress=False)
A4: Final = PTQConfig(activation=affine(DType.int(4)), weight=affine(DType.int(3)), strict_wrap=False)
STEPWISE: Final = attrs.evolve(A4, variant="stepwise")
STEPS: Final = attrs.evolve(A4, steps="auto")


class Attentive(nn.Module):
    """Attention as torch has it, with its stacked projections, and a parameter that it multiplies itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the class says."""
        attended: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return torch.tanh(attended) @ self.mix


def gpt2() -> nn.Module:
    """Return a random GPT-2, whose linear layers have transposed weights."""
    sizes = GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    model: nn.Module = GPT2LMHeadModel(sizes)
    return model


def convolutions() -> nn.Module:
    """Return convolutions of both directions, in groups."""
    return nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3, groups=2))


Case = tuple[Callable[[], nn.Module], BaseConfig, Tensor]
VECTORS: Final = torch.linspace(-1, 1, 4 * 6 * 8).view(4, 6, 8)
CASES: Final[dict[str, Case]] = {
    "gptq": (tiny_llama, W2, TOKENS),
    "tied": (lambda: tiny_llama(tied=True), A4, TOKENS),
    "ptq": (tiny_llama, A4, TOKENS),
    "stepwise": (tiny_llama, STEPWISE, TOKENS),
    "transposed": (gpt2, A4, TOKENS),
    "convolutions": (convolutions, A4, torch.linspace(-1, 1, 2 * 4 * 49).view(2, 4, 7, 7)),
    "experts": (lambda: fused_model("mixtral"), W2, token_ids()),
    "steps and attention": (Attentive, STEPS, VECTORS),
}


def float_of(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a random model, always the same one, in evaluation mode."""
    return seeded(make).eval()


def quantized_of(model: nn.Module, config: BaseConfig, x: Tensor) -> nn.Module:
    """Return a copy of `model` that was calibrated on `x` and converted."""
    prepared = prepare(model, config, inplace=False)
    return convert(calibrate(prepared, [x], show_progress=False))


def output(model: nn.Module, x: Tensor) -> Tensor:
    """Return the output of `model`, without gradients."""
    with torch.no_grad():
        found: object = model(x)
    return logits_of(found, "model")


@pytest.mark.parametrize("name", CASES)
def test_a_model_with_everything_off_is_the_float_model(name: str) -> None:
    """All weights and points in float give the float model; afterwards the quantized one is what it was."""
    make, config, x = CASES[name]
    model = float_of(make)
    quantized = quantized_of(model, config, x)
    before, state = (
        output(quantized, x),
        {key: value.clone() for key, value in quantized.state_dict().items()},
    )
    expected = output(model, x)
    with ablate(quantized, float_model=model) as parts:
        found = output(quantized, x)
    # Wrappers round in another order: some 100 times by 6e-8 of values of the size of the output.
    torch.testing.assert_close(found, expected, rtol=0, atol=6e-6 * float(expected.abs().max()))
    assert float((before - expected).abs().max()) > 1e-3
    assert {part.kind for part in parts} == ({"weights"} if config == W2 else {"weights", "activations"})
    assert torch.equal(output(quantized, x), before)
    after = quantized.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(value, after[key]) for key, value in state.items())


def test_weights_and_activations_are_switched_apart() -> None:
    """With the points off there are the weights alone, as in a model that has no points at all."""
    model = tiny_llama()
    both = quantized_of(model, A4, TOKENS)
    weights = quantized_of(model, attrs.evolve(A4, activation=no_quant()), TOKENS)
    with ablate(both, Selection(kind="activations")):
        found = output(both, TOKENS)
    torch.testing.assert_close(found, output(weights, TOKENS), rtol=1e-4, atol=1e-5)  # sums in another order
    with ablate(both, Selection(kind="weights"), keep=True):
        assert torch.equal(output(both, TOKENS), found)


def test_a_selection_is_by_path_role_and_block() -> None:
    """What all of it holds for is switched off, and with `keep` all the rest."""
    model = tiny_llama()
    quantized = quantized_of(model, A4, TOKENS)
    select = Selection("model.layers.1", roles=["self_attn.q_*", "mlp.down_proj"], kind="weights")
    with ablate(quantized, select, float_model=model) as parts:
        paths = [part.path for part in parts]
    assert paths == ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    with ablate(quantized, Selection(blocks=range(1)), float_model=model) as parts:
        assert {part.block for part in parts} == {"model.layers.0"}
    with ablate(quantized, Selection(blocks=range(1)), float_model=model, keep=True) as parts:
        assert {part.block for part in parts} == {"", "model.layers.1"}
    with ablate(quantized, ["*.softmax", "lm_head.act_out"]) as parts:
        assert {part.role for part in parts} == {"self_attn.softmax", "lm_head.act_out"}


def test_roles_are_those_of_a_part_in_its_block() -> None:
    """Numbers of experts and layers are alike; what is in no block has its own path."""
    quantized = quantized_of(tiny_llama(), W2, TOKENS)
    with ablate(quantized, float_model=tiny_llama()) as parts:
        assert parts[0] == QuantizedPart(
            path="model.layers.0.self_attn.q_proj",
            kind="weights",
            block="model.layers.0",
            role="self_attn.q_proj",
        )
        assert len({part.role for part in parts}) == 7


def test_everything_is_restored_after_an_exception() -> None:
    """Whatever is raised inside goes on, and the model is what it was."""
    model = tiny_llama()
    quantized = quantized_of(model, A4, TOKENS)
    before = output(quantized, TOKENS)
    with pytest.raises(KeyboardInterrupt), ablate(quantized, float_model=model):
        raise KeyboardInterrupt
    assert torch.equal(output(quantized, TOKENS), before)


def test_contexts_can_be_nested() -> None:
    """The inner one switches off more, and its end leaves what the outer one has switched off."""
    model = tiny_llama()
    quantized = quantized_of(model, W2, TOKENS)
    with ablate(quantized, "*.layers.0", float_model=model):
        outer = output(quantized, TOKENS)
        with ablate(quantized, float_model=model):
            assert torch.equal(output(quantized, TOKENS), output(model, TOKENS))
        assert torch.equal(output(quantized, TOKENS), outer)


def test_native_kernels_do_not_read_the_codes_of_what_is_off() -> None:
    """The layer computes by the reference meanwhile, and by its kernel afterwards."""
    model = tiny_llama()
    quantized = quantized_of(model, GPTQConfig(bits=8, show_progress=False), TOKENS)
    set_backend(quantized, "native")
    before = output(quantized, TOKENS)
    with ablate(quantized, float_model=model):
        assert torch.equal(output(quantized, TOKENS), output(model, TOKENS))
    assert torch.equal(output(quantized, TOKENS), before)


def test_the_cache_of_keys_and_values_has_switches() -> None:
    """With all layers of the cache in float, the model computes with keys and values as they are."""
    model = two_heads()
    config = KVCacheConfig(residual_length=0)
    quantized = quantized_of(model, config, TOKENS)
    with ablate(quantized, Selection(kind="cache")) as parts:
        found = quantized(TOKENS, use_cache=True).logits
    assert [part.block for part in parts] == ["model.layers.0", "model.layers.1"]
    torch.testing.assert_close(found, model(TOKENS).logits)


def test_codes_without_a_float_model_are_refused() -> None:
    """The message says what to pass; points alone need none."""
    quantized = quantized_of(tiny_llama(), A4, TOKENS)
    with pytest.raises(UnsupportedError, match="pass float_model=, the model before convert"):
        ablate(quantized).__enter__()
    with ablate(quantized, Selection(kind="activations")):
        pass


def own_of(model: nn.Module, path: str, name: str) -> Tensor:
    """Return a tensor of the module at `path`."""
    found = own_tensor(model.get_submodule(path), name)
    assert found is not None
    return found


def _changed(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        own_of(other, "model.norm", "weight").mul_(2.0)
    return other


def _wider(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    other.get_submodule("model.layers.0.self_attn")._modules["q_proj"] = nn.Linear(16, 8, bias=False)
    return other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_changed, "model.norm.weight: it differs from that of the model"),
        (_wider, "model.layers.0.self_attn.q_proj: float_model must be a float weight of shape"),
        (lambda model: nn.Linear(2, 2), "14 problems"),
    ],
)
def test_a_float_model_of_something_else_is_refused(
    change: Callable[[nn.Module], nn.Module], message: str
) -> None:
    """What was not converted is told by its other tensors, or by shapes."""
    model = tiny_llama()
    quantized = quantized_of(model, W2, TOKENS)
    with pytest.raises(UnsupportedError, match=message):
        ablate(quantized, float_model=change(model)).__enter__()


@pytest.mark.parametrize("config", [AWQConfig(group_size=8, show_progress=False), SmoothQuantConfig()])
def test_weights_whose_scales_were_moved_need_the_model_after_that(config: BaseConfig) -> None:
    """The model before has other weights; the one between the two stages has those that were rounded."""
    model = tiny_llama()
    if isinstance(config, AWQConfig):
        with pytest.raises(UnsupportedError, match="AWQConfig has moved scales between layers since"):
            ablate(quantized_of(model, config, TOKENS), float_model=model).__enter__()
        config = attrs.evolve(config, round_weights=False)
    between = quantized_of(model, config, TOKENS)
    quantized = quantized_of(between, W2, TOKENS)
    with pytest.raises(UnsupportedError, match="has moved scales between layers since"):
        ablate(quantized, float_model=model).__enter__()
    with ablate(quantized, float_model=between):
        assert torch.equal(output(quantized, TOKENS), output(between, TOKENS))


def test_a_norm_that_was_folded_into_a_layer_is_refused() -> None:
    """The weight of the layer is another one since; the points can be switched off."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).eval()
    x = torch.linspace(-1, 1, 100).view(2, 2, 5, 5)
    quantized = quantized_of(model, PTQConfig(), x)
    with pytest.raises(UnsupportedError, match="1: it was folded into the layer before it"):
        ablate(quantized, float_model=model).__enter__()
    with ablate(quantized, Selection(kind="activations")) as parts:
        assert parts


def test_graphs_are_refused_by_name() -> None:
    """The grids of a graph are operators."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    x = torch.linspace(-1, 1, 8).view(2, 4)
    prepared = prepare(model, PT2EConfig(), args=(x,), inplace=False)
    prepared(x)
    quantized = convert(prepared, inplace=False)
    with pytest.raises(UnsupportedError, match="graph, in which grids are operators"):
        ablate(quantized).__enter__()


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("*.q_prj", "the nearest paths are"),
        (Selection(roles="self_attn.q_prj"), "roles has 'self_attn.q_prj'"),
        (Selection("lm_head", blocks=range(2)), "the model has 2 blocks"),
        ([], "one pattern or more|several"),
        (3, "a path, a pattern or a Selection, or several, got 3"),
    ],
)
def test_a_selection_that_means_nothing_is_refused(select: str | Selection, message: str) -> None:
    """Nearest names are told, and nothing is switched."""
    model = tiny_llama()
    quantized = quantized_of(model, A4, TOKENS)
    with pytest.raises(ConfigError, match=message):
        ablate(quantized, select, float_model=model).__enter__()


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"kind": "norms"}, "kind"),
        ({"blocks": 3}, "blocks"),
        ({"paths": ()}, "paths"),
        ({"roles": 3}, "roles"),
    ],
)
def test_a_selection_refuses_fields_that_say_nothing(values: dict[str, object], field: str) -> None:
    """The field is named."""
    with pytest.raises(ConfigError) as caught:
        Selection(**values)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(2, 2)).eval(), nn.ReLU().eval()])
def test_a_float_model_has_nothing_to_switch_off(model: nn.Module) -> None:
    """It is refused, with what to pass."""
    with pytest.raises(UnsupportedError, match="convert it first"):
        ablate(model).__enter__()


def test_a_prepared_model_is_refused() -> None:
    """It would learn from what it is called with."""
    prepared = prepare(tiny_llama(), W2, inplace=False)
    with pytest.raises(LifecycleError):
        ablate(prepared).__enter__()


def test_ablation_is_what_ablate_and_compare_say() -> None:
    """Each figure is the divergence that `compare` finds with the same parts in float."""
    model = tiny_llama()
    quantized = quantized_of(model, A4, TOKENS)
    found = ablation(model, quantized, [TOKENS], show_progress=False)
    assert found.kl == compare(model, quantized, [TOKENS]).kl
    for by, select in (("kind", Selection(kind="weights")), ("block", Selection(blocks=range(1, 2)))):
        line = [line for line in found.lines if line.by == by][0 if by == "kind" else 1]
        with ablate(quantized, select, float_model=model):
            assert line.without == compare(model, quantized, [TOKENS]).kl
        with ablate(quantized, select, float_model=model, keep=True):
            assert line.alone == compare(model, quantized, [TOKENS]).kl
    assert found.rest < 1e-9 < found.kl
    roles = [line for line in found.lines if line.by == "role"]
    assert sum(line.parts for line in roles) == sum(line.parts for line in found.lines if line.by == "kind")


def test_ablation_of_a_selection_has_lines_of_it_alone() -> None:
    """What is not selected stays quantized where parts are left out, and is float where they are alone."""
    model = tiny_llama()
    quantized = quantized_of(model, A4, TOKENS)
    found = ablation(model, quantized, [TOKENS], select=Selection(kind="weights"), show_progress=False)
    assert {line.kind for line in found.lines if line.by == "role"} == {"weights"}
    assert not [line for line in found.lines if line.by == "kind"]


def test_ablation_is_told_as_json_and_as_tables() -> None:
    """Both have every line."""
    model = tiny_llama()
    found = ablation(model, quantized_of(model, W2, TOKENS), [TOKENS], show_progress=False)
    values = json.loads(found.to_json())
    assert values["kl"] == found.kl
    assert [line["name"] for line in values["lines"]] == [line.name for line in found.lines]
    assert all(line.name in str(found) for line in found.lines)


def test_ablation_finds_a_layer_that_was_damaged() -> None:
    """The block and the role that lose most are those of the layer whose scales are wrong."""
    model = tiny_llama()
    quantized = quantized_of(model, GPTQConfig(bits=8, show_progress=False), TOKENS)
    own_of(quantized, "model.layers.1.mlp.up_proj.packed", "scale").mul_(3.0)
    found = ablation(model, quantized, [TOKENS], show_progress=False)
    assert found.worst("block").name == "model.layers.1"
    assert found.worst("role").name == "mlp.up_proj"
    alone = max((line for line in found.lines if line.by == "role"), key=lambda line: line.alone)
    assert alone.name == "mlp.up_proj"


def test_ablation_refuses_what_is_no_model() -> None:
    """By the name of the argument."""
    with pytest.raises(TicoError, match="quantized"):
        ablation(tiny_llama(), "model", [TOKENS])  # type: ignore[arg-type]
