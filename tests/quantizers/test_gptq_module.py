"""GPTQ on models: which layers, whose inputs, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from gptq_models import CONFIG, Block, block_of, integer_at, quantized, require_same_codes, stack
from references import same_bits
from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico_config import CalibrationError, ConfigError, NumericsError
from tico_quantizers import QuantizedLinear, QuantizedModule, report
from tico_quantizers.solvers import solve
from tico_quantizers.testing import refused, same_tensors, tensors_of, unchanged
from tiny_models import TOKENS, images, logits, net, tiny_llama, values

UNIFORM = GPTQConfig(show_progress=False, token_weights="uniform")


def whole(seed: int, rows: int) -> Tensor:
    """Return rows of small integers."""
    return torch.randint(-3, 4, (rows, 8), generator=torch.Generator().manual_seed(seed)).float()


def test_each_layer_solves_for_what_it_reads() -> None:
    """A layer is given the Gram matrix of its inputs as the layers before it, already integers, make them."""
    model, hidden = stack(), values(1, 40, 8)
    found = quantized(model, hidden, config=UNIFORM)
    for path in ("0", "1"):
        weight = block_of(model, path).one.weight
        expected = solve(weight, hidden.double().T @ hidden.double(), GPTQConfig())
        require_same_codes(integer_at(found, f"{path}.one").packed.integer_codes(), expected.codes)
        with torch.no_grad():
            hidden = block_of(found, path)(hidden)


@pytest.mark.parametrize("sizes", [[1] * 24, [7, 17], [8, 8, 8]])
def test_the_split_into_batches_does_not_matter(sizes: list[int]) -> None:
    """The same rows give the same bits, whatever batches they come in.

    The float forward of a block may itself depend on the number of rows, so the blocks here are given
    integers, and so are their weights.
    """
    model = stack()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 8).round())
    x = whole(2, 24)
    found = [quantized(model, *batches) for batches in ([x], list(torch.split(x, sizes)))]
    first = [tensors_of(integer_at(each, "0.one")) for each in found]
    assert same_tensors(*first)


def test_the_number_of_threads_does_not_matter() -> None:
    """One and two threads leave the same bits in a model of transformers."""
    found = []
    for count in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            found.append(tensors_of(quantized(tiny_llama(), TOKENS, TOKENS.flip(1))))
        finally:
            torch.set_num_threads(before)
    assert same_tensors(*found)


def test_rounding_is_less_harmful_than_to_nearest() -> None:
    """On the data it was given, GPTQ changes the output of a block less than plain rounding."""
    model, x = stack(1), values(3, 200, 8) @ values(4, 8, 8)
    found = quantized(model, x, config=GPTQConfig(bits=2, show_progress=False))
    layer, new = block_of(model, "0").one, integer_at(found, "0.one")
    nearest = QuantizedLinear.from_float(layer, new.packed.dtype)
    errors = [(each(x) - layer(x)).square().sum() for each in (new, nearest)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_lone_layer_is_replaced(inplace: bool) -> None:
    """The model may be one layer; then the replacement is returned."""
    layer = nn.Linear(8, 3).eval()
    prepared = prepare(layer, CONFIG, inplace=inplace)
    prepared(values(5, 20, 8))
    assert isinstance(convert(prepared), QuantizedLinear)


@pytest.mark.parametrize("call", ["one by one", "through the model"])
def test_layers_that_blocks_share_see_all_their_data(call: str) -> None:
    """A layer of two blocks is quantized once, for what it reads in both."""
    model = stack()
    layer = block_of(model, "0").one
    block_of(model, "1").one = layer
    prepared = prepare(model, CONFIG, inplace=False)
    seen: list[Tensor] = []
    shared = block_of(prepared, "0").one
    shared.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    with torch.no_grad():
        x = values(6, 30, 8)
        for part in prepared.children() if call == "one by one" else [prepared]:
            x = part(x)
    new = convert(prepared)
    assert integer_at(new, "0.one") is integer_at(new, "1.one")
    rows = torch.cat(seen[:2])
    expected = solve(layer.weight, rows.T @ rows, GPTQConfig())
    require_same_codes(integer_at(new, "0.one").packed.integer_codes(), expected.codes)


def test_a_layer_of_a_block_may_be_called_from_outside() -> None:
    """What it reads there counts."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Block(), Block())
            block_of(self.blocks, "0").add_module("outside", nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.blocks.get_submodule("0.outside")(x)
            output: Tensor = self.blocks(hidden)
            return output

    found = quantized(Model().eval(), values(7, 20, 8))
    assert integer_at(found, "blocks.0.outside").bits == 4


def test_an_input_that_is_written_to_between_layers_is_two_inputs() -> None:
    """Layers share a Gram matrix only if they read the same values, not just the same tensor."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.one(x) + self.two(x.mul_(torch.arange(8.0)))
            return output

    model = Model().eval()
    x = values(8, 30, 8)
    found = quantized(model, x.clone())
    rows = (x * torch.arange(8.0)).double()
    expected = solve(model.two.weight, rows.T @ rows, GPTQConfig())
    two = found.get_submodule("two")
    assert isinstance(two, QuantizedLinear)
    require_same_codes(two.packed.integer_codes(), expected.codes)
    assert "dead columns 1" in report(found).to_markdown()


def test_a_second_algorithm_keeps_what_the_first_has_done() -> None:
    """PTQ after GPTQ keeps the codes, and the report has the newest line of each module."""
    model = quantized(tiny_llama(), TOKENS)
    codes = {name: tensor for name, tensor in tensors_of(model).items() if name.endswith("packed.codes")}
    prepare(model, PTQConfig(strict_wrap=False))
    logits(model)
    convert(model)
    after = tensors_of(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in codes.items())
    lines = {line.path: line for line in report(model).layers}
    assert lines["model.layers.0.mlp.up_proj"].algorithm == "ptq"


def test_a_batch_that_is_not_finite_is_refused_at_once() -> None:
    """The error names the first layer that reads it, nothing of the batch counts, and the next one does."""
    model = stack()
    prepared = prepare(model, CONFIG, inplace=False)
    bad = values(9, 10, 8)
    bad[3, 2] = torch.nan
    with torch.no_grad():
        prepared(values(10, 20, 8))
        with refused(prepared, NumericsError, field="input", module="0.one") as caught:
            prepared(bad)
        prepared(values(11, 20, 8))
    assert caught.value.expected == "finite in every element"
    again = quantized(model, values(10, 20, 8), values(11, 20, 8))
    assert same_tensors(tensors_of(convert(prepared)), tensors_of(again))


def test_layers_without_data_are_all_named() -> None:
    """Converting without a pass, or with a part that none has reached, changes nothing."""
    prepared = prepare(stack(1), CONFIG)
    with refused(prepared, CalibrationError, module="0.one") as caught:
        convert(prepared)
    assert [problem.module for problem in caught.value.problems] == ["0.one", "0.two", "1"]
    prepared(values(12, 4, 8))
    assert isinstance(convert(prepared), nn.Sequential)


def test_converting_leaves_random_numbers_and_inputs_alone() -> None:
    """Blocks that draw random numbers do so without the caller noticing, also in inference mode."""

    class Noisy(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(())

    prepared = prepare(nn.Sequential(Noisy(), Noisy()).eval(), CONFIG)
    x = values(13, 20, 8)
    prepared(x)
    with unchanged(nn.Identity()), torch.inference_mode():
        found = convert(prepared)
    assert same_bits(x, values(13, 20, 8))
    assert not any(tensor.is_inference() for tensor in tensors_of(found).values())
    assert not any(buffer.is_inference() for buffer in found.buffers())


def _replaced_forward() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.forward = lambda input: input  # type: ignore[method-assign]  # noqa: A006
    return layer


def _tied() -> nn.Module:
    model = nn.Module()
    model.table, model.head = nn.Embedding(8, 8), nn.Linear(8, 8)
    model.head.weight = model.table.weight
    return model.head


LEFT: dict[str, Callable[[], nn.Module]] = {
    "a forward of its own": _replaced_forward,
    "computed from other parameters": lambda: weight_norm(nn.Linear(8, 8)),
    "before data have passed": lambda: nn.LazyLinear(8),
    "its weight is torch.complex64": lambda: nn.Linear(8, 8, dtype=torch.complex64),
}


@pytest.mark.parametrize("reason", LEFT)
def test_layers_that_are_left_alone_have_a_reason(reason: str) -> None:
    """A model of nothing else is refused with the reason of each."""
    with pytest.raises(ConfigError) as caught:
        prepare(nn.Sequential(LEFT[reason]()).eval(), CONFIG)
    assert caught.value.field == "model"
    assert reason in str(caught.value.value)
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(LEFT[reason]())).eval()
    prepared = prepare(model, CONFIG)
    prepared.get_submodule("0")(values(14, 10, 8))
    assert integer_at(convert(prepared), "0").bits == 4
    assert reason in report(prepared).to_markdown()


def test_the_head_is_quantized_where_an_override_names_it() -> None:
    """Its exact path does; a pattern that matches nothing else says why it has no effect."""
    path = GPTQConfig(show_progress=False, overrides={"lm_head": {"bits": 8}})
    assert isinstance(quantized(tiny_llama(), TOKENS, config=path).lm_head, QuantizedLinear)
    model = tiny_llama()
    with refused(model, ConfigError, field="overrides") as caught:
        prepare(model, GPTQConfig(overrides={"*head": {"bits": 8}}))
    assert caught.value.value == "*head"
    assert "exact path" in str(caught.value)


def test_a_tied_head_stays_tied() -> None:
    """It is never rewritten: an override that names it is refused with the name of the embedding."""
    model = tiny_llama(tied=True)
    with refused(model, ConfigError, field="overrides") as caught:
        prepare(model, GPTQConfig(overrides={"lm_head": {"bits": 8}}))
    assert "model.embed_tokens" in str(caught.value)
    found = quantized(model, TOKENS)
    assert found.lm_head.weight is found.model.embed_tokens.weight  # type: ignore[union-attr]


def test_groups_that_do_not_divide_the_columns_are_all_named() -> None:
    """Every layer, in prepare, with its width."""
    model = stack(1)
    with refused(model, ConfigError, field="group_size", module="0.two") as caught:
        prepare(model, GPTQConfig(group_size=8))
    assert [problem.module for problem in caught.value.problems] == ["0.two"]
    assert "12 input columns" in caught.value.expected


def test_the_last_group_of_a_row_may_be_shorter() -> None:
    """Where the config says so."""
    config = GPTQConfig(group_size=8, ragged_groups=True, show_progress=False)
    found = quantized(stack(1), values(18, 30, 8), config=config)
    assert integer_at(found, "0.one").packed.scale.shape == (12, 1)
    assert integer_at(found, "0.two").packed.scale.shape == (8, 2)


def test_a_weight_that_is_not_finite_is_refused() -> None:
    """In prepare, with its place."""
    model = stack(1)
    with torch.no_grad():
        model.get_parameter("1.weight")[2, 3] = torch.inf
    with refused(model, NumericsError, field="weight", module="1") as caught:
        prepare(model, CONFIG)
    assert caught.value.value == "inf at (2, 3)"


def test_a_copy_of_a_prepared_model_has_its_own_data() -> None:
    """What one of them sees, the other does not."""
    prepared = prepare(stack(), CONFIG)
    prepared(values(15, 20, 8))
    other = copy.deepcopy(prepared)
    other(values(16, 20, 8))
    one, both = (tensors_of(convert(model)) for model in (prepared, other))
    assert same_tensors(one, tensors_of(quantized(stack(), values(15, 20, 8))))
    assert same_tensors(both, tensors_of(quantized(stack(), values(15, 20, 8), values(16, 20, 8))))


@pytest.mark.parametrize("make", [stack, net, tiny_llama], ids=["stack", "net", "llama"])
def test_reports_list_every_layer(make: Callable[[], nn.Module]) -> None:
    """Each integer layer has a line with its loss, and each that was left float a reason."""
    model = make()
    inputs = {"Sequential": values(17, 20, 8), "Net": images(2)}.get(type(model).__name__, TOKENS)
    found = quantized(model, inputs)
    lines = {line.path: line for line in report(found).layers}
    for path, module in found.named_modules():
        if isinstance(module, QuantizedModule):
            assert lines[path].weight == "uint4 asymmetric per row"
            assert dict(lines[path].figures)["loss"] >= 0
    assert all(line.reason for line in lines.values() if line.weight == "float")
