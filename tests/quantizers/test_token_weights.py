"""How much each token counts in GPTQ's Hessian: what the weights are, and what they change."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from tico.quantization import GPTQConfig, convert, prepare
from tico_config import TokenWeights
from tico_quantizers import LayerReport, report
from tico_quantizers.calibration._calls import Autocast
from tico_quantizers.calibration._input_grams import InputGrams
from tico_quantizers.calibration._signs import signs_of
from tico_quantizers.calibration._stand_ins import StandIn
from tico_quantizers.calibration._token_weights import power_of_four, watch_sensitivity
from tico_quantizers.layers._matrix import as_layer
from tico_quantizers.testing import TorchCalls, calls_of, same_tensors, sampled, tensors_of, unchanged
from tiny_models import TOKENS, tiny_llama, values

CONFIG = GPTQConfig(show_progress=False)


class Sink(nn.Module):
    """A block in which every token reads the value of the first."""

    def __init__(self) -> None:
        """Make the projections."""
        super().__init__()
        self.value, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the next hidden state, which `mask` does not change."""
        hidden: Tensor = x + self.value(x)[:, :1]
        output: Tensor = hidden + 0.5 * self.down(hidden)
        return output


class Plain(nn.Module):
    """A block whose tokens do not read each other."""

    def __init__(self) -> None:
        """Make the layer."""
        super().__init__()
        self.one = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state."""
        output: Tensor = x + self.one(x)
        return output


def stack(kind: type[nn.Module]) -> nn.Sequential:
    """Return two blocks of small whole weights, always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(kind(), kind()).eval()
    for parameter in model.parameters():
        parameter.data.copy_((parameter.data * 8).round())
    return model


def quantized(model: nn.Module, *batches: Tensor, token_weights: TokenWeights) -> nn.Module:
    """Return a converted copy of `model`, calibrated with `batches`."""
    prepared = prepare(model, attrs.evolve(CONFIG, token_weights=token_weights), inplace=False)
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    return convert(prepared)


def weights_in(block: nn.Module, *args: Tensor, is_short: bool = False) -> Mapping[str, Tensor | None]:
    """Return what one call of `block` says of the tokens that each of its layers reads."""
    layers = {
        path: layer for path, module in block.named_modules() if (layer := as_layer(module)) is not None
    }
    grams = InputGrams(layers, dict.fromkeys(layers, "auto"))
    handles = [
        layer.register_forward_pre_hook(lambda layer, args, path=path: grams.note(path, layer, args[0]))
        for path, layer in layers.items()
    ]
    handles += watch_sensitivity(block, grams, is_short=is_short) + grams.tokens.watch(block)
    with torch.no_grad(), Autocast.now().again():
        block(*args)
    for handle in handles:
        handle.remove()
    return {path: grams.latest[path].weights for path in layers}


def lines_of(model: nn.Module) -> dict[str, LayerReport]:
    """Return the report's lines by path."""
    return {line.path: line for line in report(model).layers}


def test_a_token_that_all_others_read_outweighs_them() -> None:
    """Its value moves the outputs of all 64, theirs move nothing; other layers count all alike."""
    weights = weights_in(stack(Sink)[0], values(0, 2, 64, 8))
    value, down = weights["value"], weights["down"]
    assert value is not None
    assert down is not None
    assert bool((value[:, 0] > 64 / 4).all())
    assert not bool(value[:, 1:].any())
    assert len(set(down.flatten().tolist())) == 1


def test_weights_are_the_squares_of_the_derivative() -> None:
    """For signs s and the derivative J of the block's output by the layer's: the mean of (Jᵀs)².

    In J the layer behind it is what stands in for it.
    """
    block, x = stack(Sink)[0], values(1, 1, 6, 8)
    value = block.get_submodule("value")
    stand_in = StandIn(linear(block, "down"), 1)

    def after(given: Tensor) -> Tensor:
        hidden = x + given[:, :1]
        output: Tensor = hidden + 0.5 * stand_in.given(hidden, 8)
        return output

    given = value(x).detach()
    derivative: Tensor = jacobian(after, given)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    drawn = signs_of((6, 8), x.device)
    pulled = torch.einsum("o,otc->tc", drawn.reshape(-1), derivative.view(48, 6, 8))
    expected = power_of_four(pulled.square().mean(1, keepdim=True).T)
    assert expected is not None
    found = weights_in(block, x)["value"]
    assert found is not None
    assert torch.equal(found, expected)


def linear(block: nn.Module, name: str) -> nn.Linear:
    """Return the linear layer of a block that has `name`."""
    layer = block.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


@pytest.mark.parametrize(("rows", "columns"), [(3, 8), (8, 8), (8, 3)])
def test_a_stand_in_is_as_large_as_its_layer_column_by_column(rows: int, columns: int) -> None:
    """Sᵀ has one element in each row, and over all layers' numbers the mean of (Sᵀg)² is |w|² |g|² / rows.

    Of 2¹⁰ numbers the mean is within five deviations of that; one square deviates by at most its maximum.
    """
    layer, slope = nn.Linear(columns, rows), values(5, 1, rows)
    found = torch.stack([StandIn(layer, number).pulled(slope) for number in range(2**10)]).square().mean(0)
    sizes = layer.weight.detach().square().sum(0)
    bound = 5 * sizes * slope.square().max() / 2**5
    assert bool(((found - sizes * slope.square().mean()).abs() <= bound).all())
    matrix = StandIn(layer, 7).pulled(torch.eye(rows))
    assert bool((matrix.count_nonzero(0) == 1).all())


def test_what_a_stand_in_gives_is_the_transpose_of_what_it_pulls() -> None:
    """⟨g, S x⟩ = ⟨Sᵀ g, x⟩, up to a rounding of each of the terms."""
    for rows, columns in ((3, 8), (8, 8), (8, 3)):
        stand_in = StandIn(nn.Linear(columns, rows), 2)
        slope, x = values(6, 4, rows), values(7, 4, columns)
        one, other = (slope * stand_in.given(x, rows)).sum(-1), (stand_in.pulled(slope) * x).sum(-1)
        assert torch.allclose(
            one, other, rtol=0, atol=32 * 2**-23 * float(slope.abs().max() * x.abs().max()) * 8
        )


def test_the_last_layer_of_a_block_is_not_multiplied() -> None:
    """It sees one row, and where its output is but added to something, no weight has other bits."""
    block, x, seen = stack(Sink)[0], values(0, 2, 64, 8), []
    whole = weights_in(block, x)
    handle = block.get_submodule("down").register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    short = weights_in(block, x, is_short=True)
    handle.remove()
    assert seen == [(1, 8)]
    assert same_tensors(given_only(whole), given_only(short))


def given_only(weights: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Return the weights of layers that have any."""
    return {path: each for path, each in weights.items() if each is not None}


def test_the_batches_do_not_matter() -> None:
    """The weights of a sample are the same bits in any batch and any place of it."""
    block, x = stack(Sink)[0], values(8, 3, 16, 8)
    whole, turned = given_only(weights_in(block, x)), given_only(weights_in(block, x.flip(0)))
    assert same_tensors({path: each.flip(0) for path, each in turned.items()}, whole)
    for sample in range(3):
        alone = given_only(weights_in(block, x[sample : sample + 1]))
        assert same_tensors(alone, {path: each[sample : sample + 1] for path, each in whole.items()})


def test_signs_are_even_and_unrelated() -> None:
    """Over 2¹⁴ places their mean, and that of products with neighbours, is within five deviations of 0."""
    drawn = signs_of((128, 128), torch.device("cpu"))
    bound = 5 / math.sqrt(drawn.numel())
    assert set(drawn.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(drawn.mean())) < bound
    for axis in (0, 1):
        assert abs(float((drawn * drawn.roll(1, axis)).mean())) < bound


def test_signs_depend_on_the_place_alone() -> None:
    """Longer samples do not change those of a place, so texts may be padded."""
    few, many = (signs_of((size, 7), torch.device("cpu")) for size in (5, 11))
    assert torch.equal(few, many[:5])


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_padding_counts_nothing(kind: torch.dtype) -> None:
    """A token that the mask lets no query see has weight 0 in every layer."""
    seen = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    causal = torch.ones(6, 6, dtype=torch.bool).tril() & seen[:, None, None, :]
    lowest = torch.finfo(torch.float32).min
    mask = causal if kind == torch.bool else torch.zeros(causal.shape).masked_fill(~causal, lowest)
    weights = weights_in(stack(Sink)[0], values(2, 2, 6, 8), mask)["down"]
    assert weights is not None
    assert torch.equal(weights > 0, seen)


def test_what_stands_in_padded_places_does_not_matter() -> None:
    """A masked batch of a LLaMA gives the same bits for any padding."""
    mask = torch.ones_like(TOKENS)
    mask[1, -4:] = 0
    found = []
    for filler in (0, 7):
        prepared = prepare(tiny_llama(), CONFIG)
        tokens = torch.where(mask.bool(), TOKENS, filler)
        with torch.no_grad():
            prepared(tokens, attention_mask=mask)
        found.append(tensors_of(convert(prepared).get_submodule("model.layers")))
    assert same_tensors(*found)


def test_the_first_token_of_a_causal_model_weighs_more_than_the_last() -> None:
    """All others may attend to it, so that its value counts more; only the report tells that it does."""
    found = lines_of(quantized(tiny_llama(), TOKENS, token_weights="auto"))
    figures = dict(found["model.layers.0.self_attn.v_proj"].figures)
    assert figures["tokens"] == TOKENS.numel()
    assert figures["effective tokens"] < 0.9 * TOKENS.numel()


def test_numbers_weigh_the_first_tokens_of_every_sequence() -> None:
    """Weight 4 is reading the token four times."""
    x = torch.randint(-3, 4, (3, 10, 8), generator=torch.Generator().manual_seed(0)).float()
    weighted = quantized(stack(Plain), x, token_weights=(4.0, 0.0))
    repeated = torch.cat([x[:, :1]] * 4 + [x[:, 2:]], dim=1)
    expected = quantized(stack(Plain), repeated, token_weights="uniform")
    assert same_tensors(tensors_of(weighted), tensors_of(expected))
    assert dict(lines_of(weighted)["0.one"].figures)["tokens"] == 30


def test_equal_weights_change_nothing() -> None:
    """Where tokens do not read each other, and for the weight 1, the bits are those of uniform weights."""
    x = torch.randint(-3, 4, (3, 10, 8), generator=torch.Generator().manual_seed(1)).float()
    uniform, given = (quantized(stack(Plain), x, token_weights=kind) for kind in ("uniform", (1.0,)))
    assert same_tensors(tensors_of(given), tensors_of(uniform))
    auto = lines_of(quantized(stack(Plain), x, token_weights="auto"))["1.one"]
    assert dict(auto.figures)["effective tokens"] == 30


def test_a_model_without_blocks_counts_all_tokens_alike() -> None:
    """It is calibrated by the user's own passes, which have no derivative."""
    lone = nn.Linear(8, 3).eval()
    figures = dict(report(quantized(lone, values(3, 2, 5, 8), token_weights="auto")).layers[0].figures)
    assert figures["effective tokens"] == figures["tokens"] == 10


def test_gradients_are_nobody_elses_business() -> None:
    """Parameters get no gradient, and gradients stay as they were switched."""
    model = prepare(tiny_llama(), CONFIG)
    with torch.no_grad():
        model(TOKENS)
    kept = dict(model.named_parameters())
    convert(model)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in kept.values())


class Severed(Plain):
    """A block whose forward pass works without gradients only."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state."""
        hidden: Tensor = self.one(x)
        return x + torch.tensor(hidden.numpy())


class InPlace(Plain):
    """A block that writes to what derivatives need."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state."""
        hidden: Tensor = self.one(x).sigmoid()
        hidden *= 2
        return x + hidden.sigmoid().mul_(hidden)


class Normed(Sink):
    """A block with a norm between its layers."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the next hidden state."""
        hidden: Tensor = x + self.value(x)[:, :1]
        output: Tensor = hidden + self.down(self.norm(hidden))
        return output


def inference_stack() -> nn.Module:
    """Return blocks made in inference mode, whose norms take no part in derivatives."""
    with torch.inference_mode():
        return stack(Normed)


@pytest.mark.parametrize("make", [lambda: stack(Severed), lambda: stack(InPlace), inference_stack])
@pytest.mark.parametrize("fields", [{}, {"true_sequential": True}, {"asymmetric": 0.5}])
def test_a_block_without_derivatives_weighs_all_tokens_alike(
    make: Callable[[], nn.Module], fields: dict[str, object]
) -> None:
    """The bits are those of uniform weights, and the report says so of each layer of the block."""
    x = values(4, 2, 5, 8)
    config = GPTQConfig(show_progress=False, **fields)  # type: ignore[arg-type]  # each is one of its fields
    found, uniform = [
        converted(make(), x, attrs.evolve(config, token_weights=weights)) for weights in ("auto", "uniform")
    ]
    assert same_tensors(tensors_of(found), tensors_of(uniform))
    lines = [line for line in report(found).layers if line.bits is not None]
    assert lines
    assert all("token_weights='auto'" in line.reason for line in lines)


def converted(model: nn.Module, x: Tensor, config: GPTQConfig) -> nn.Module:
    """Return the quantized model, calibrated with one batch."""
    prepared = prepare(model, config)
    with torch.no_grad():
        prepared(x)
    return convert(prepared)


def test_an_error_that_does_not_come_again_is_raised() -> None:
    """A lack of memory is no reason to weigh tokens otherwise."""
    prepared = prepare(stack(Plain), CONFIG)
    with torch.no_grad():
        prepared(values(4, 2, 5, 8))
    count = calls_of(lambda: convert(prepared, inplace=False)) - calls_of(lambda: copy.deepcopy(prepared))
    for number in sampled(count, 25):
        with unchanged(prepared), pytest.raises(RuntimeError, match="injected"), TorchCalls(number):
            convert(prepared)
