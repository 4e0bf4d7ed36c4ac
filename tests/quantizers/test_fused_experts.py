"""Experts whose weights stand in one parameter: each is quantized for the tokens that go to it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fused_models import FUSED, experts_of, fused_model, token_ids
from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PTQConfig,
    convert,
    coverage,
    load_calibration,
    prepare,
    save_calibration,
)
from tico_config import BaseConfig, CalibrationError, DType, UnsupportedError, no_quant
from tico_modules import (
    FloatExpert,
    LayerReport,
    PackedWeight,
    QuantizedExperts,
    load_quantized,
    named_modules,
    report,
    save_quantized,
)
from tico_quantizers.algorithms.gptq import solve
from tico_quantizers.layers import FusedExperts, fused_experts
from tico_quantizers.solvers import Grid, best_shares
from tico_quantizers.testing import refused
from tiny_models import logits

PLAIN = GPTQConfig(token_weights="uniform", min_expert_tokens=1, show_progress=False)
CHOOSING = tuple(name for name in FUSED if name != "llama4")


def quantized(model: nn.Module, config: BaseConfig, *batches: Mapping[str, Tensor]) -> nn.Module:
    """Return `model` after an algorithm on `batches`."""
    prepare(model, config)
    with torch.no_grad():
        for batch in batches or ({"input_ids": token_ids()},):
            model(**batch)
    return convert(model)


def packed_of(model: nn.Module) -> dict[str, PackedWeight]:
    """Return the weights of all experts by their paths."""
    return {
        path: module
        for path, module in named_modules(model)
        if isinstance(module, PackedWeight) and ".experts." in path
    }


def lines_of(model: nn.Module) -> dict[str, LayerReport]:
    """Return the lines of the report about experts by path."""
    return {line.path: line for line in report(model).layers if ".experts" in line.path}


def same_codes(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether the experts of two models have the same codes and grids."""
    first, second = packed_of(one), packed_of(other)
    return first.keys() == second.keys() and all(
        torch.equal(a, b)
        for path in first
        for a, b in zip(first[path].buffers(), second[path].buffers(), strict=True)
    )


def routed(experts: nn.Module, args: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Yield the rows that each expert is given, by definition."""
    count = len(experts.get_parameter("down_proj"))
    for number in range(count):
        if len(args) == 1:
            rows = args[0].view(count, -1, args[0].shape[-1])[number]
            yield rows[rows.any(-1)]
        else:
            yield args[0][(args[1] == number).any(-1)]


def gated(experts: nn.Module, number: int, rows: Tensor, about: FusedExperts) -> Tensor:
    """Return what an expert's second matrix multiplies, by definition."""
    weight = experts.get_parameter("gate_up_proj")[number]
    both = rows @ weight if about.transposed["gate_up_proj"] else F.linear(rows, weight)
    biases = dict(experts.named_parameters()).get("gate_up_proj_bias")
    both = both if biases is None else both + biases[number]
    own: object = getattr(experts, "_apply_gate", None)
    if callable(own):
        result: Tensor = own(both)
        return result
    gate, up = both.chunk(2, -1)
    return up * F.silu(gate)


def read_by_definition(name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return matrix and rows of each expert of the first layer, routed by hand, one expert at a time."""
    model = fused_model(name)
    path, experts = experts_of(model, layer=0)
    about = fused_experts(experts)
    assert about is not None
    seen: list[tuple[Tensor, ...]] = []
    experts.register_forward_pre_hook(lambda module, args: seen.append(args))
    found = {}
    with torch.no_grad():
        model(token_ids())
        for number, rows in enumerate(routed(experts, seen[0])):
            inputs = {"gate_up_proj": rows, "down_proj": gated(experts, number, rows, about)}
            for parameter, x in inputs.items():
                weight = experts.get_parameter(parameter)[number]
                matrix = weight.T if about.transposed[parameter] else weight
                found[f"{path}.{parameter}.{number}"] = matrix.detach(), x
    return found


@pytest.mark.parametrize("name", FUSED)
def test_each_expert_is_solved_for_the_rows_that_go_to_it(name: str) -> None:
    """Codes are those of GPTQ on the Gram matrix of rows that were routed by hand."""
    found, read = packed_of(quantized(fused_model(name), PLAIN)), read_by_definition(name)
    assert len(read) == 8
    for path, (matrix, x) in read.items():
        expected = solve(matrix, (x.double().T @ x.double()).float(), GPTQConfig(bits=4))
        assert torch.equal(found[path].integer_codes(), expected.codes.to(torch.int32)), path


@pytest.mark.parametrize("name", FUSED)
def test_all_experts_become_integers_and_are_reported(name: str) -> None:
    """Each with its tokens, and better than rounding where it has enough of them; coverage counts them."""
    model = fused_model(name)
    sizes = {path: parameter.numel() for path, parameter in model.named_parameters()}
    experts = sum(size for path, size in sizes.items() if "experts." in path and not path.endswith("bias"))
    batches = [{"input_ids": token_ids(seed)} for seed in (1, 2, 3)]
    found = quantized(model, GPTQConfig(show_progress=False), *batches)
    lines = {path: line for path, line in lines_of(found).items() if line.path in packed_of(found)}
    layers = {path.rpartition(".experts.")[0] for path in lines}
    assert len(lines) == 8 * len(layers)
    solved = [dict(line.figures) for line in lines.values() if "rounded to nearest" not in line.reason]
    assert len(solved) >= len(lines) // 2
    enough = [each for each in solved if each["tokens"] >= 64]  # at least twice the columns, 16 or 24
    assert all(each["loss"] < each["loss if rounded to nearest"] for each in enough)
    assert all(line.weight == "uint4 asymmetric per row" for line in lines.values())
    assert not any("stay float" in line.reason for line in lines_of(found).values())
    assert coverage(found).share > experts / sum(sizes.values())
    assert isinstance(experts_of(found)[1], QuantizedExperts)


@pytest.mark.parametrize("name", CHOOSING)
def test_the_tokens_of_experts_are_those_that_go_to_them(name: str) -> None:
    """Every token goes to two experts; one that reads too few tokens is rounded, and named with them."""
    found = quantized(fused_model(name), GPTQConfig(min_expert_tokens=60, show_progress=False))
    path, _ = experts_of(found)
    lines = [lines_of(found)[f"{path}.gate_up_proj.{number}"] for number in range(4)]
    counts = [int(dict(line.figures)["tokens"]) for line in lines]
    assert sum(counts) == 2 * token_ids().numel()
    for count, line in zip(counts, lines, strict=True):
        assert (f"read {count} tokens, fewer than 60" in line.reason) == (count < min(60, max(counts)))


@pytest.mark.parametrize("name", FUSED)
def test_a_prepared_model_gives_the_same_bits(name: str) -> None:
    """With gradients and without, and so does one of which the conversion has failed."""
    model = fused_model(name)
    with torch.no_grad():
        expected = logits(model, token_ids())
    keys = list(model.state_dict())
    prepare(model, GPTQConfig(show_progress=False))
    with pytest.raises(CalibrationError):
        convert(model)
    with torch.no_grad():
        assert torch.equal(logits(model, token_ids()), expected)
    assert torch.equal(logits(model, token_ids()).detach(), expected)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_experts_see_the_same_rows_whatever_computes_them(implementation: str) -> None:
    """The codes of the first layer do not depend on the implementation that transformers is set to."""

    def run(chosen: str) -> dict[str, PackedWeight]:
        model = fused_model("mixtral")
        set_implementation = getattr(model, "set_experts_implementation")  # noqa: B009  # transformers' own
        set_implementation(chosen)
        return packed_of(quantized(model, PLAIN))

    found, expected = run(implementation), run("eager")
    first = [path for path in found if "layers.0." in path]
    assert len(first) == 8
    assert all(torch.equal(found[path].codes, expected[path].codes) for path in first)


@pytest.mark.parametrize("name", FUSED)
def test_padding_counts_nowhere(name: str) -> None:
    """What stands in its place changes no code, and it is not among the tokens of experts."""
    mask = torch.ones(6, 16, dtype=torch.int64)
    mask[0, :9] = mask[3, :4] = 0
    batches = []
    for filler in (5, 17):
        ids = token_ids()
        ids[mask == 0] = filler
        batches.append({"input_ids": ids, "attention_mask": mask})
    one, other = (quantized(fused_model(name), PLAIN, batch) for batch in batches)
    assert same_codes(one, other)
    path, _ = experts_of(one)
    counts = [dict(lines_of(one)[f"{path}.down_proj.{number}"].figures)["tokens"] for number in range(4)]
    assert sum(counts) == (1 if name == "llama4" else 2) * int(mask.sum())


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4"])
def test_all_experts_can_learn_from_all_tokens(name: str) -> None:
    """The model gives the same bits meanwhile; where rows are sorted already, experts have their own."""
    model = fused_model(name)
    with torch.no_grad():
        expected = logits(model, token_ids())
        prepare(model, GPTQConfig(calibrate_all_experts=True, show_progress=False))
        assert torch.equal(logits(model, token_ids()), expected)
    found = convert(model)
    path, _ = experts_of(found)
    counts = [dict(lines_of(found)[f"{path}.down_proj.{number}"].figures)["tokens"] for number in range(4)]
    if name == "llama4":
        assert sum(counts) == token_ids().numel()
    else:
        assert counts == [token_ids().numel()] * 4


@pytest.mark.parametrize("name", FUSED)
def test_the_split_into_batches_and_the_number_of_threads_change_no_bit(name: str) -> None:
    """Neither of sums over the rows of an expert."""
    expected = quantized(fused_model(name), PLAIN)
    batches = [{"input_ids": ids} for ids in (token_ids()[:2], token_ids()[2:3], token_ids()[3:])]
    assert same_codes(quantized(fused_model(name), PLAIN, *batches), expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert same_codes(quantized(fused_model(name), PLAIN), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["mixtral", "llama4"])
def test_a_calibration_file_holds_what_experts_have_read(name: str, tmp_path: Path) -> None:
    """The first layer, which reads the same in the float model, has the same codes."""
    file = tmp_path / "calibration"
    model = prepare(fused_model(name), PLAIN)
    with torch.no_grad():
        model(token_ids())
    save_calibration(model, file)
    other = prepare(fused_model(name), PLAIN)
    load_calibration(other, file)
    found, expected = packed_of(convert(other)), packed_of(convert(model))
    first = [path for path in expected if "layers.0." in path]
    assert len(first) == 8
    assert all(torch.equal(found[path].codes, expected[path].codes) for path in first)


def test_all_tokens_for_all_experts_are_not_what_files_hold(tmp_path: Path) -> None:
    """Such a calibration is neither saved nor loaded."""
    model = prepare(fused_model("mixtral"), attrs.evolve(PLAIN, calibrate_all_experts=True))
    with torch.no_grad():
        model(token_ids())
    with refused(model, UnsupportedError, field="calibrate_all_experts"):
        save_calibration(model, tmp_path / "calibration")
    plain = prepare(fused_model("mixtral"), PLAIN)
    with torch.no_grad():
        plain(token_ids())
    file = tmp_path / "calibration"
    save_calibration(plain, file)
    with refused(model, UnsupportedError, field="calibrate_all_experts", module=str(file)):
        load_calibration(model, file)


def test_a_copy_of_a_prepared_model_learns_by_itself() -> None:
    """Converted copies have the same codes, and the original is prepared still."""
    model = prepare(fused_model("gpt_oss"), PLAIN)
    with torch.no_grad():
        model(token_ids())
    one, other = convert(model, inplace=False), convert(copy.deepcopy(model))
    assert same_codes(one, other)
    assert same_codes(convert(model), one)


def test_work_that_was_interrupted_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """Experts are in the files of finished blocks."""
    config = attrs.evolve(PLAIN, checkpoint_dir=str(tmp_path))
    first = quantized(fused_model("mixtral"), config)
    assert same_codes(quantized(fused_model("mixtral"), config), first)
    assert len(list(tmp_path.rglob("block-*"))) == 2


SETTINGS: Mapping[str, Mapping[str, object]] = {
    "groups": {"group_size": 8, "symmetric": True},
    "groups in order of activations": {"static_groups": False, "group_size": 8},
    "one stage after the other": {"true_sequential": True},
    "asymmetric": {"asymmetric": 0.25},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_experts_take_every_setting_of_linear_layers(setting: str, tmp_path: Path) -> None:
    """And are saved with what it gives."""
    config = GPTQConfig(**SETTINGS[setting], show_progress=False)  # type: ignore[arg-type]  # of several types
    found = quantized(fused_model("gpt_oss"), config)
    assert len(packed_of(found)) == 16
    save_quantized(found, tmp_path)
    with torch.no_grad():
        assert torch.equal(logits(load_quantized(tmp_path), token_ids()), logits(found, token_ids()))


def test_stages_learn_from_the_quantized_ones_before_them() -> None:
    """Second matrices read what integer first ones give, if that is asked for."""
    at_once = quantized(fused_model("mixtral"), PLAIN)
    staged = quantized(fused_model("mixtral"), attrs.evolve(PLAIN, true_sequential=True))
    one, other = packed_of(at_once), packed_of(staged)
    first, second = (f"model.layers.0.mlp.experts.{name}.0" for name in ("gate_up_proj", "down_proj"))
    assert not torch.equal(one[second].codes, other[second].codes)
    assert one[first].codes.shape == other[first].codes.shape


def test_overrides_reach_experts() -> None:
    """By parameter and by expert; what is left out stays float, and the report says why."""
    layer = "model.layers.1.mlp.experts"
    overrides = {
        f"{layer}.gate_up_proj.*": {"bits": 8},
        f"{layer}.down_proj.2": no_quant(),
        "model.layers.0.mlp.experts": no_quant(),
    }
    found = quantized(fused_model("mixtral"), GPTQConfig(overrides=overrides, show_progress=False))
    lines = lines_of(found)
    assert lines[f"{layer}.gate_up_proj.0"].bits == 8
    assert lines[f"{layer}.down_proj.1"].bits == 4
    assert "left out by the override" in lines[f"{layer}.down_proj.2"].reason
    assert isinstance(found.get_submodule(f"{layer}.down_proj.2"), FloatExpert)
    assert "left out by the override" in lines["model.layers.0.mlp.experts"].reason
    assert "Mixtral" in type(found.get_submodule("model.layers.0.mlp.experts")).__name__


def test_one_of_two_parameters_may_stay_float() -> None:
    """The report says so of the module that holds both."""
    overrides = {"*.down_proj.*": no_quant()}
    model = quantized(fused_model("gpt_oss"), GPTQConfig(overrides=overrides, show_progress=False))
    path, experts = experts_of(model)
    assert isinstance(experts, QuantizedExperts)
    assert list(experts.expert_weights) == ["gate_up_proj"]
    assert experts.get_parameter("down_proj").ndim == 3
    assert "left out by the override" in lines_of(model)[path].reason


def test_integer_experts_keep_their_codes_when_activations_get_grids() -> None:
    """PTQ after GPTQ, as with linear layers; coverage says what they are."""
    model = quantized(fused_model("mixtral"), PLAIN)
    before = {path: packed.codes.clone() for path, packed in packed_of(model).items()}
    prepare(model, PTQConfig(strict_wrap=False))
    with torch.no_grad():
        model(token_ids())
    found = packed_of(convert(model))
    assert before.keys() == found.keys()
    assert all(torch.equal(codes, found[path].codes) for path, codes in before.items())
    points = {line.path: line.points for line in coverage(model).lines}
    assert points["model.layers.1.mlp.experts"] == ("gate_up_proj uint4 per row", "down_proj uint4 per row")


AWQ = AWQConfig(bits=3, group_size=None, clip=True, show_progress=False)


@pytest.mark.parametrize("name", FUSED)
def test_awq_searches_the_range_of_each_expert_for_its_rows(name: str) -> None:
    """Codes are those on the grids that suit rows which were routed by hand, with the scales of the norm."""
    found, read = quantized(fused_model(name), AWQ), read_by_definition(name)
    grid = Grid(dtype=DType.uint(3), symmetric=False, group_size=None)
    norm = "model.layers.0.post_attention_layernorm.weight"
    scale = fused_model(name).get_parameter(norm).detach().double() / found.get_parameter(norm).double()
    assert bool((scale != 1).any()) == (name in CHOOSING)
    shares = {}
    for path, (matrix, x) in read.items():
        first = ".gate_up_proj." in path
        scaled = (matrix.double() * scale).float() if first else matrix
        rows = x.double() / scale if first else x.double()
        shares[path] = best_shares(scaled, ((rows.T @ rows) / len(x)).float(), grid)
        wanted = PackedWeight.on_grid(scaled, grid.params(scaled, shares[path]))
        assert torch.equal(packed_of(found)[path].codes, wanted.codes), path
        columns = "columns multiplied for model.layers.0.post_attention_layernorm"
        assert (columns in lines_of(found)[path].reason) == (first and name in CHOOSING)
    assert any(bool((share < 1).any()) for share in shares.values())


def test_awq_keeps_the_whole_range_of_experts_that_read_nothing() -> None:
    """And says so; nothing else needs data less than before."""
    found = quantized(fused_model("llama4"), AWQ, {"input_ids": token_ids(rows=1, length=2)})
    unread = {path: line for path, line in lines_of(found).items() if "no token went to it" in line.reason}
    assert len(unread) >= 4 * 2
    for path in unread:
        _, experts = experts_of(fused_model("llama4"), layer=int(path.split(".")[2]))
        parameter, number = path.split(".")[-2:]
        weight = experts.get_parameter(parameter)[int(number)].T
        wanted = PackedWeight.round_to_nearest(weight, DType.uint(3), symmetric=False, group_size=None)
        assert torch.equal(packed_of(found)[path].codes, wanted.codes)


def test_gptq_rounds_experts_after_the_scales_of_awq() -> None:
    """Scales alone leave experts float, for the next algorithm."""
    scaled = quantized(fused_model("mixtral"), attrs.evolve(AWQ, round_weights=False))
    assert not packed_of(scaled)
    assert len(packed_of(quantized(scaled, PLAIN))) == 16


@pytest.mark.parametrize("names", ["top_k_index top_k_weights", "router_indices routing_weights"])
def test_experts_alone_can_be_quantized(names: str) -> None:
    """Called by the names that an implementation has, in any order; the report of a part has its experts."""
    _, experts = experts_of(fused_model("gpt_oss"))
    implementation = "eager" if "router" in names else "grouped_mm"
    getattr(experts, "config")._experts_implementation = implementation  # noqa: B009  # transformers' own
    numbers = torch.arange(128).view(64, 2) % 4
    named = dict(zip(names.split(), (numbers, torch.full((64, 2), 0.5)), strict=True))
    x = torch.linspace(-1, 1, 64 * 16).view(64, 16).sin()
    prepared = prepare(experts, PLAIN)
    with torch.no_grad():
        prepared(x, **dict(reversed(named.items())))
    found = convert(prepared)
    assert isinstance(found, QuantizedExperts)
    lines = {line.path: line for line in report(found).layers}
    assert lines[""].weight == "gate_up_proj uint4 per row, down_proj uint4 per row"
    assert {dict(lines[f"down_proj.{number}"].figures)["tokens"] for number in range(4)} == {32}


def test_the_report_of_a_part_has_its_experts() -> None:
    """By the paths that they have in the part."""
    found = quantized(fused_model("mixtral"), PLAIN)
    _, experts = experts_of(found)
    assert "down_proj.3" in {line.path for line in report(experts).layers}


def test_generation_works_after_gptq() -> None:
    """With the integers in the place of the experts."""
    found = quantized(fused_model("gpt_oss"), PLAIN)
    generate = getattr(found, "generate")  # noqa: B009  # transformers' own
    output: Tensor = generate(token_ids(rows=2), max_new_tokens=3, do_sample=False)
    assert output.shape == (2, 19)


class Doubled(nn.Module):
    """Uses its weights in another way than to multiply rows by them."""

    def __init__(self) -> None:
        """Make the weights."""
        super().__init__()
        self.weights = nn.Parameter(torch.ones(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows of each expert, times twice its weight."""
        return torch.bmm(x.view(2, -1, 3), self.weights * 2)


def test_what_else_is_done_to_a_weight_keeps_it_float() -> None:
    """Only products are known; the report says that the weights stay float."""
    assert fused_experts(Doubled()) is None
    model = nn.Sequential(nn.Linear(3, 3), Doubled()).eval()
    prepare(model, GPTQConfig(show_progress=False))
    model(torch.randn(8, 3))
    line = next(line for line in report(convert(model)).layers if line.path == "1")
    assert "weights of several layers in one parameter, which stay float" in line.reason
