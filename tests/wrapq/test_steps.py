"""Modules without a wrapper: each step of their own forward has a point."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from tico.quantization import PTQConfig, convert, load_quantized, prepare, report, save_quantized
from tico.quantization.config import DType, PerToken, affine, no_quant
from tico_config import CalibrationError, ConfigError, UnsupportedError
from tico_quantizers.testing import seeded
from tico_wrapq import StepPoints, coverage

A16 = PTQConfig(activation=affine(DType.int(16)), steps="auto")


class Attention(nn.Module):
    """Attention with a mask, rotary-like angles, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the sum of the input and what attention makes of it."""
        angles = torch.arange(x.shape[1]).to(x.dtype)[:, None] * 0.1
        query, key, value = self.qkv(x).chunk(3, -1)
        query, key = turned(query, angles), turned(key, angles)
        scores = query @ key.transpose(-2, -1) / math.sqrt(8)
        scores += mask
        mixed = torch.softmax(scores, -1) @ value
        result: Tensor = x + self.out(mixed)
        return result


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Return `x` turned by `angles`."""
    return x * torch.cos(angles) + x.roll(1, -1) * torch.sin(angles)


class Model(nn.Module):
    """Two blocks of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attention(), Attention()])

    def forward(self, x: Tensor) -> Tensor:
        """Return what the class says."""
        mask = torch.full((x.shape[1], x.shape[1]), -1e9, dtype=x.dtype).triu(1)
        for block in self.blocks:
            x = block(x, mask)
        return x


class Branching(nn.Module):
    """Takes one of two ways, and repeats a step."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the class says."""
        if float(x.detach().flatten()[0]) > 0:
            x = x * 2.0
        x = x * 3.0
        for _ in range(3):
            x = x + 0.5
        return x


def batches(count: int = 3, tokens: int = 6) -> list[Tensor]:
    """Return batches of (samples, tokens, features)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, tokens, 8, generator=generator) for _ in range(count)]


def calibrated(model: nn.Module, config: PTQConfig = A16, data: list[Tensor] | None = None) -> nn.Module:
    """Return `model`, prepared and calibrated."""
    prepared = prepare(model.eval(), config)
    with torch.no_grad():
        for batch in data or batches():
            prepared(batch)
    return prepared


def points_of(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the steps by the path of their module."""
    found = (module for module in model.modules() if isinstance(module, StepPoints))
    return {each.path: [name for name, _ in each.named_points()] for each in found}


def test_each_step_that_computes_with_data_has_a_point_with_the_name_of_its_text() -> None:
    """Angles, positions and masks have none; functions that the forward calls are in the name."""
    assert points_of(calibrated(seeded(Model)))["blocks.1"] == [
        "add_0",
        "add_1",
        "div_0",
        "matmul_0",
        "matmul_1",
        "softmax_0",
        *(f"turned_{call}_{step}" for call in (0, 1) for step in ("add_0", "mul_0", "mul_1")),
    ]


def test_a_model_in_calibration_gives_the_bits_of_the_float_model() -> None:
    """Points that watch change nothing."""
    model = seeded(Model)
    expected = [copy.deepcopy(model)(batch) for batch in batches()]
    prepared = prepare(model.eval(), A16)
    assert all(torch.equal(prepared(batch), each) for batch, each in zip(batches(), expected, strict=True))


def test_sixteen_bits_keep_the_function() -> None:
    """Every step of a masked attention is on a grid, and none loses it: the weights have 8 bits."""
    model = seeded(Model)
    expected = model(batches()[0])
    error = convert(calibrated(copy.deepcopy(model)))(batches()[0]) - expected
    assert error.norm() < 0.02 * expected.norm()


def test_only_what_is_added_to_scores_value_by_value_is_taken_for_scores() -> None:
    """Queries and keys are none, although products of as many tokens as features have their shape."""
    prepared = calibrated(seeded(Model), data=batches(tokens=8))
    scores = [each.findings.scores for each in prepared.modules() if isinstance(each, StepPoints)]
    assert [sorted(found) for found in scores if found] == 2 * [["add_0", "div_0", "matmul_0"]]


class Tokens(nn.Module):
    """Computes with rows of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return more than the rows."""
        rows: Tensor = self.table(tokens)
        return rows * 1.1


def test_steps_behind_an_integer_embedding_are_on_their_grids() -> None:
    """As many values are left as the grid has."""
    model = prepare(seeded(Tokens).eval(), PTQConfig(activation=affine(DType.uint(4)), steps="auto"))
    model(torch.arange(500))
    assert len(convert(model)(torch.arange(500)).unique()) <= 16


class Hidden(nn.Module):
    """Attention in which nobody may look at the last token."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the other tokens see."""
        mask = torch.zeros(x.shape[1])
        mask[-1] = -math.inf
        scores = x[:, :-1] @ x.transpose(-2, -1) + mask
        return torch.softmax(scores, -1) @ x


def test_masked_scores_take_no_part_in_any_grid() -> None:
    """Whatever the token holds that nobody may look at, every grid is the same."""
    far = [torch.cat([batch[:, :-1], 100 * batch[:, -1:]], 1) for batch in batches()]
    converted = [convert(calibrated(Hidden(), A16, data)) for data in (batches(), far)]
    first, second = (each.state_dict() for each in converted)
    assert sum(name.endswith(".scale") for name in first) == 4
    assert all(torch.equal(first[name], second[name]) for name in first)


class Fused(nn.Module):
    """The same attention by one function, with the mask's number for what is hidden."""

    def __init__(self, hidden: float) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        """Return what the other tokens see."""
        mask = torch.zeros(x.shape[1] - 1, x.shape[1])
        mask[:, -1] = self.hidden
        return nn.functional.scaled_dot_product_attention(x[:, :-1], x, x, attn_mask=mask)


@pytest.mark.parametrize("hidden", [-math.inf, -3.4e38, -1e9, -1e4])
def test_the_number_that_a_mask_adds_takes_no_part_in_any_grid(hidden: float) -> None:
    """Nor does what it hides, whatever the number."""
    far = [torch.cat([batch[:, :-1], 100 * batch[:, -1:]], 1) for batch in batches()]
    reference = convert(calibrated(Fused(-math.inf))).state_dict()
    for data in (batches(), far):
        found = convert(calibrated(Fused(hidden), A16, data)).state_dict()
        assert sum(name.endswith(".scale") for name in found) == 5
        assert all(torch.equal(found[name], reference[name]) for name in found)


class AlongSecond(nn.Module):
    """A softmax along the axis of the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the weights of the tokens, per feature."""
        return torch.softmax(x * 10.0, 1)


def test_a_softmax_along_another_axis_makes_no_scores() -> None:
    """Every value before it is on the grid, also where a feature is far below the others."""
    data = [torch.cat([batch[..., :-1], batch[..., -1:] - 100.0], -1) for batch in batches()]
    steps = convert(calibrated(AlongSecond(), A16, data)).get_submodule("quant_steps")
    assert isinstance(steps, StepPoints)
    assert not steps.findings.scores
    scale = steps.point("mul_0").state_dict()["fixed.scale"]
    assert scale * 2**15 > 1000


def test_a_masked_score_keeps_a_weight_of_zero() -> None:
    """A later token changes nothing before it, bit for bit."""
    converted = convert(calibrated(seeded(Model)))
    first = batches()[0]
    second = first.clone()
    second[:, -1] += 1.0
    assert torch.equal(converted(first)[:, :-1], converted(second)[:, :-1])


def test_names_do_not_depend_on_the_order_of_batches_or_on_control_flow() -> None:
    """The third line is `mul_1` whether or not the second one runs; a loop is one step."""
    up, down = torch.ones(2, 3), -torch.ones(2, 3)
    first = points_of(calibrated(Branching(), A16, [up, down]))
    assert first == points_of(calibrated(Branching(), A16, [down, up]))
    assert first == {"": ["add_0", "mul_0", "mul_1"]}


def test_a_step_that_calibration_never_reached_is_an_error() -> None:
    """It is named, with the ways out."""
    converted = convert(calibrated(Branching(), A16, [-torch.ones(2, 3)]))
    with pytest.raises(CalibrationError, match="its step mul_0 is reached now, and was reached by no calib"):
        converted(torch.ones(2, 3))
    assert converted(-torch.ones(2, 3)).shape == (2, 3)  # nothing of the pass that failed is left


def test_overrides_reach_steps() -> None:
    """By path and by pattern; one that matches no step is an error when steps are known."""
    config = PTQConfig(steps="auto", overrides={"*.softmax_0": no_quant()})
    converted = convert(calibrated(seeded(Model), config))
    grids = [line.points for line in coverage(converted).lines if line.path == "blocks.0"]
    assert not any(point.startswith("softmax_0") for points in grids for point in points)
    prepared = calibrated(seeded(Model), PTQConfig(steps="auto", overrides={"*.softmax_7": no_quant()}))
    with pytest.raises(ConfigError, match="softmax_7"):
        convert(prepared)


def test_a_model_of_steps_alone_needs_data() -> None:
    """Nothing is converted in silence."""
    prepared = prepare(Branching().eval(), A16)
    with pytest.raises(CalibrationError, match="no calibration data have reached a step"):
        convert(prepared)


def test_copies_and_files_give_the_same_bits(tmp_path: Path) -> None:
    """A deep copy of a prepared and of a converted model, a pickled one, and a reloaded one."""
    prepared = calibrated(seeded(Model))
    twin = convert(copy.deepcopy(prepared))
    converted, data = convert(prepared), batches()[0]
    save_quantized(converted, tmp_path / "model")
    loaded = load_quantized(tmp_path / "model", seeded(Model).eval())
    pickled = pickle.loads(pickle.dumps(converted))  # noqa: S301  # made here
    others = (twin, copy.deepcopy(converted), pickled, loaded)
    assert all(torch.equal(each(data), converted(data)) for each in others)


def test_a_program_has_the_same_bits() -> None:
    """With a pair of nodes for each grid: two blocks of twelve steps and four grids of their layers."""
    converted, data = convert(calibrated(seeded(Model))), batches()[0]
    program = torch.export.export(converted, (data,), strict=False)
    assert torch.equal(program.module()(data), converted(data))
    pairs = [node for node in program.graph.nodes if "quantize_per_tensor" in str(node.target)]
    assert len(pairs) == 2 * 2 * (12 + 4)


class LookedUp(nn.Module):
    """Tables of tokens and of places, whose rows are added and squared before any layer reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(8, 4), nn.Embedding(6, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the squares of the sums."""
        x: Tensor = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return x * x


def test_what_is_looked_up_has_its_grids_in_a_program_too() -> None:
    """There the lookup is several functions, of which none makes data by its name."""
    prepared, tokens = prepare(seeded(LookedUp).eval(), A16), torch.tensor([[1, 5, 7, 0, 3, 2]])
    prepared(tokens)
    converted = convert(prepared)
    program = torch.export.export(converted, (tokens,), strict=False)
    assert torch.equal(program.module()(tokens), converted(tokens))
    pairs = [node for node in program.graph.nodes if "quantize_per_tensor" in str(node.target)]
    assert len(pairs) == 2 * 4  # two tables, the sum and the square


def test_a_compiled_model_runs_its_steps_uncompiled() -> None:
    """The bits are the same."""
    converted, data = convert(calibrated(seeded(Model))), batches()[0]
    compiled = torch.compile(converted, backend="eager")
    assert torch.equal(compiled(data), converted(data))


def test_the_program_of_a_model_compiles_as_one_graph() -> None:
    """With the bits of the model; the model itself is refused as one graph, and the error says what to do."""
    model = convert(calibrated(seeded(Model))).requires_grad_(False)
    x = batches(1)[0]
    program = torch.export.export(model, (x,), strict=False).module()
    assert torch.equal(torch.compile(program, fullgraph=True, backend="eager")(x), model(x))
    torch._dynamo.reset()  # it leaves out code that another test has found no graph for
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"compile what torch\.export makes of it"):
        torch.compile(model, fullgraph=True, backend="eager")(x)


def test_a_failed_prepare_leaves_the_model_as_it_was() -> None:
    """Classes and children."""
    model = nn.Sequential(seeded(Model), nn.LSTM(2, 2))
    with pytest.raises(UnsupportedError, match="LSTM"):
        prepare(model.eval(), A16)
    assert [type(module) for module in model.modules()][1] is Model
    assert not points_of(model)


def test_a_copy_is_prepared_with_inplace_false() -> None:
    """The argument keeps its classes."""
    model = seeded(Model).eval()
    prepare(model, A16, inplace=False)
    assert type(model) is Model
    assert not points_of(model)


class Norm(nn.Module):
    """A norm that is written out, and a function that no table knows."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the class says."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def test_the_statistics_of_a_norm_stay_float_and_are_named() -> None:
    """Unless an override speaks of them: the square of one outlier leaves nothing of the others."""
    per_token = PTQConfig(activation=affine(DType.int(8), granularity=PerToken()), steps="auto")
    for config, grid in ((A16, "int16 static"), (per_token, "int8 per token")):
        line = report(convert(calibrated(Norm(), config))).layers[0]
        assert line.activation == f"mul_0 {grid}"
        assert all(name in line.reason for name in ("pow_0", "mean_0", "add_0", "rsqrt_0"))
    asked = PTQConfig(
        activation=affine(DType.int(16)), steps="auto", overrides={"mean_0": {"dtype": DType.int(8)}}
    )
    assert "mean_0 int8 static" in report(convert(calibrated(Norm(), asked))).layers[0].activation
    named = attrs.evolve(per_token, overrides={"mean_0": {"dtype": DType.int(4)}})
    assert "mean_0 int4 per token" in report(convert(calibrated(Norm(), named))).layers[0].activation


class Unknown(nn.Module):
    """Calls a function that is in no table."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the class says."""
        return torch.add(torch.special.i0(x), x)


def test_functions_in_no_table_are_refused_or_named() -> None:
    """All at once when data first reach them, and by `convert`; with `strict_wrap=False` they stay float."""
    prepared = prepare(Unknown().eval(), A16)
    for run in (lambda: prepared(batches(1)[0]), lambda: convert(prepared)):
        with pytest.raises(UnsupportedError, match="it calls special_i0, and whether that is a step"):
            run()
    permissive = PTQConfig(steps="auto", strict_wrap=False)
    assert "special_i0 is in no table" in report(convert(calibrated(Unknown(), permissive))).layers[0].reason


class Several(nn.Module):
    """Calls functions that give several tensors, or complex ones."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a sum of what they give."""
        variance, mean = torch.var_mean(x, -1, keepdim=True)
        return torch.add(variance + mean, torch.fft.rfft(x).abs()[..., :1])


def test_functions_of_several_or_complex_results_are_named() -> None:
    """All of them at once."""
    with pytest.raises(UnsupportedError, match=r"(?s)fft_rfft.*var_mean"):
        convert(calibrated(Several()))


class Hypotenuse(nn.Module):
    """A root of squares that is no norm."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the length of pairs."""
        return torch.sqrt(x[..., :1] ** 2 + x[..., 1:2] ** 2)


def test_a_root_of_a_plain_sum_is_no_statistic() -> None:
    """Nothing was averaged, so every step has its grid."""
    line = report(convert(calibrated(Hypotenuse()))).layers[0]
    assert line.reason == ""
    assert "sqrt_0 int16 static" in line.activation


def test_arithmetic_in_place_keeps_its_aliases() -> None:
    """What is written to a tensor is read through its views, on the grid of the step."""

    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            copied = x.clone()
            part = copied[..., :2]
            copied.mul_(3.0)
            return part + 0.0

    data = batches()
    converted = convert(calibrated(InPlace(), A16, data))
    assert (converted(data[0]) - data[0][..., :2] * 3).abs().max() < 1e-3


def test_a_family_without_a_wrapper_generates_on_the_grids_of_its_steps() -> None:
    """Gemma 2: decoding with a cache passes the steps that reading the prompt has passed, and no others."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 40}
    config = Gemma2Config.from_dict(
        {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    )
    model: nn.Module = seeded(lambda: Gemma2ForCausalLM(config))
    prepared = prepare(model.eval(), PTQConfig(activation=A16.activation, steps="auto", strict_wrap=False))
    tokens = torch.randint(3, 40, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prepared(input_ids=tokens)
    converted = convert(prepared)
    lines = {line.path: line.points for line in coverage(converted).lines}
    assert lines["model.layers.1"] == ("add_0 int16 static", "add_1 int16 static")
    mask = torch.ones_like(tokens)
    greedy = {"attention_mask": mask, "max_new_tokens": 3, "do_sample": False}
    made: Tensor = converted.generate(tokens, **greedy)  # type: ignore[operator]  # torch's type of attributes
    assert made.shape == (2, 11)
    assert len(points_of(converted)["model.layers.0.self_attn"]) == 18
