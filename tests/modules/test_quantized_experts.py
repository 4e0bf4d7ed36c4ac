"""Experts of integers in the place of parameters that hold a weight for each expert."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fused_models import FUSED, experts_of, fused_model, token_ids
from tico_config import ArtifactError, DType, LifecycleError, NumericsError, UnsupportedError
from tico_modules import (
    Edit,
    ExpertWeights,
    FloatExpert,
    PackedWeight,
    QuantizedExperts,
    load_quantized,
    report,
    save_quantized,
)
from tico_quantizers.layers import fused_experts
from tico_quantizers.testing import refused, same_tensors, tensors_of
from tiny_models import logits

CHOOSING = tuple(name for name in FUSED if name != "llama4")
INT4 = DType.uint(4)


def rounded(model: nn.Module, *, group_size: int | None = None) -> nn.Module:
    """Return the model with the experts of all layers rounded to nearest."""
    for module in list(model.modules()):
        about = fused_experts(module)
        if about is not None:
            new = QuantizedExperts.from_float(
                module,
                INT4,
                transposed=about.transposed,
                choosing=about.routing == "chosen",
                group_size=group_size,
            )
            with Edit() as edit:
                edit.replace(model, module, new)
    return model


def with_values(name: str, integer: nn.Module) -> nn.Module:
    """Return the float model of that name with the values of the integers for its weights."""
    model = fused_model(name)
    for path, module in integer.named_modules():
        if isinstance(module, QuantizedExperts):
            own = model.get_submodule(path)
            for parameter, values in module.dequantize().items():
                with torch.no_grad():
                    own.get_parameter(parameter).copy_(values)
    return model


def use(model: nn.Module, implementation: str) -> nn.Module:
    """Let the model compute its experts by an implementation of transformers."""
    set_implementation = getattr(model, "set_experts_implementation")  # noqa: B009  # transformers' own
    set_implementation(implementation)
    return model


@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("name", FUSED)
def test_the_float_function_of_the_dequantized_weights_is_computed(name: str, group_size: int | None) -> None:
    """Bit for bit, with rows or groups of columns on a grid, whichever way a parameter holds the weights."""
    integer = rounded(fused_model(name), group_size=group_size)
    with torch.no_grad():
        assert torch.equal(logits(integer, token_ids()), logits(with_values(name, integer), token_ids()))


@pytest.mark.parametrize("name", FUSED)
def test_an_expert_has_the_codes_of_a_linear_layer_with_its_weight(name: str) -> None:
    """Outputs are its rows, also where the parameter holds it transposed."""
    _, float_experts = experts_of(fused_model(name))
    _, integer = experts_of(rounded(fused_model(name), group_size=8))
    assert isinstance(integer, QuantizedExperts)
    for parameter, weights in integer.expert_weights.items():
        stack = float_experts.get_parameter(parameter).detach()
        for number, packed in enumerate(weights.experts):
            own = stack[number].T if weights.transposed else stack[number]
            wanted = PackedWeight.round_to_nearest(own, INT4, symmetric=False, group_size=8)
            assert isinstance(packed, PackedWeight)
            assert torch.equal(packed.integer_codes(), wanted.integer_codes())
            assert torch.equal(packed.scale, wanted.scale)
            assert packed.shape == tuple(own.shape)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", CHOOSING)
def test_every_implementation_of_transformers_runs_on_integers(name: str, implementation: str) -> None:
    """Each gives what it gives for the dequantized weights, bit for bit."""
    integer = use(rounded(fused_model(name)), implementation)
    float_model = use(with_values(name, integer), implementation)
    with torch.no_grad():
        assert torch.equal(logits(integer, token_ids()), logits(float_model, token_ids()))


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_only_chosen_experts_are_dequantized(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a forward asks for one expert, for some by their numbers, or for all at once."""
    model = use(rounded(fused_model("mixtral")), implementation)
    _, experts = experts_of(model)
    assert isinstance(experts, QuantizedExperts)
    numbers = {
        id(packed): n for each in experts.expert_weights.values() for n, packed in enumerate(each.experts)
    }
    seen: list[int] = []
    dequantize = PackedWeight.dequantize

    def noted(self: PackedWeight) -> Tensor:
        seen.append(numbers[id(self)])
        return dequantize(self)

    monkeypatch.setattr(PackedWeight, "dequantize", noted)
    experts(torch.ones(3, 16), torch.tensor([[2], [0], [2]]), torch.ones(3, 1))
    assert sorted(seen) == [0, 0, 2, 2]


@pytest.mark.parametrize("name", FUSED)
def test_generation_is_that_of_the_dequantized_weights(name: str) -> None:
    """With a cache, from a batch with left padding."""
    integer = rounded(fused_model(name))
    ids, mask = token_ids(rows=2, length=6), torch.ones(2, 6, dtype=torch.int64)
    ids[0, :3], mask[0, :3] = 0, 0
    found = [
        model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)  # type: ignore[operator]
        for model in (integer, with_values(name, integer))
    ]
    assert torch.equal(*found)


_RELOAD = """
import sys, torch
from pathlib import Path
from tico_modules import load_quantized
ids = torch.load(Path(sys.argv[1]) / "ids.pt")
for name in sys.argv[2:]:
    with torch.no_grad():
        output = load_quantized(Path(sys.argv[1]) / name)(ids).logits
    torch.save(output, Path(sys.argv[1]) / f"{name}.pt")
"""


def test_a_fresh_process_loads_the_same_bits(tmp_path: Path) -> None:
    """The class is found from the saved config; biases stay in float, the codes what they were."""
    models = {name: rounded(fused_model(name), group_size=8) for name in FUSED}
    for name, model in models.items():
        save_quantized(model, tmp_path / name)
    torch.save(token_ids(), tmp_path / "ids.pt")
    subprocess.run([sys.executable, "-c", _RELOAD, str(tmp_path), *FUSED], check=True)
    with torch.no_grad():
        for name, model in models.items():
            assert torch.equal(torch.load(tmp_path / f"{name}.pt"), logits(model, token_ids()))


def test_loading_into_a_float_model_gives_the_same_bits(tmp_path: Path) -> None:
    """As does loading without one."""
    integer = rounded(fused_model("gpt_oss"))
    save_quantized(integer, tmp_path)
    loaded = load_quantized(tmp_path, fused_model("gpt_oss"))
    assert same_tensors(tensors_of(loaded), tensors_of(integer))
    with torch.no_grad():
        assert torch.equal(logits(loaded, token_ids()), logits(integer, token_ids()))


def test_another_model_is_refused_and_stays_what_it_was(tmp_path: Path) -> None:
    """One whose experts have other sizes."""
    manifest = save_quantized(rounded(fused_model("mixtral")), tmp_path)
    where = f"{manifest}.modules.model.layers.0.mlp.experts.layout"
    other = fused_model("mixtral")
    other.get_submodule("model.layers.0.mlp.experts").down_proj = nn.Parameter(torch.ones(4, 16, 8))
    with refused(other, ArtifactError, field="down_proj", module=where):
        load_quantized(tmp_path, other)


def test_copies_pickles_and_state_dicts_keep_the_bits() -> None:
    """A state dict of another format is refused."""
    integer = rounded(fused_model("gpt_oss"))
    with torch.no_grad():
        expected = logits(integer, token_ids())
        file = io.BytesIO()
        torch.save(integer, file)
        file.seek(0)
        for other in (copy.deepcopy(integer), torch.load(file, weights_only=False)):
            assert torch.equal(logits(other, token_ids()), expected)
    again = rounded(fused_model("gpt_oss"))
    again.load_state_dict(integer.state_dict())
    with pytest.raises(RuntimeError, match="group_size"):
        rounded(fused_model("gpt_oss"), group_size=8).load_state_dict(integer.state_dict(), strict=False)


def test_a_cast_there_and_back_loses_nothing_of_the_weights() -> None:
    """Scales stay float32; the values that a call uses have the dtype of the model."""
    integer = rounded(fused_model("mixtral"))
    with torch.no_grad():
        expected = logits(integer, token_ids())
        _, experts = experts_of(integer)
        before = {name: stack for name, stack in experts.state_dict().items() if "like" not in name}
        integer.to(torch.bfloat16)
        assert logits(integer, token_ids()).dtype == torch.bfloat16
        after = experts.state_dict()
        assert all(torch.equal(stack, after[name]) for name, stack in before.items())
        assert expected.dtype == torch.float32


def test_what_would_write_to_a_weight_is_refused() -> None:
    """A forward that changes its own weights would not reach the codes."""

    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.ones(2, 3, 4))

        def forward(self, x: Tensor) -> Tensor:
            self.weights[0].mul_(2)
            return torch.bmm(x, self.weights)

    experts = QuantizedExperts.from_float(Writing(), INT4, transposed={"weights": True}, choosing=False)
    with pytest.raises(LifecycleError):
        experts(torch.ones(2, 1, 3))


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_can_be_compiled_and_exported(name: str) -> None:
    """Without a break of the graph, by an implementation that has no loop over experts."""
    model = use(rounded(fused_model(name)), "batched_mm")
    _, experts = experts_of(model)
    call = torch.ones(3, 16), torch.tensor([[2, 1], [0, 3], [2, 3]]), torch.full((3, 2), 0.5)
    with torch.no_grad():
        expected = experts(*call)
        compiled = torch.compile(experts, backend="eager", fullgraph=True)
        exported = torch.export.export(experts, call, strict=False).module()
        assert torch.equal(compiled(*call), expected)
        assert torch.equal(exported(*call), expected)


def test_some_experts_may_stay_float(tmp_path: Path) -> None:
    """They are saved as they are."""
    model = fused_model("mixtral")
    path, experts = experts_of(model)
    stack = experts.get_parameter("down_proj").detach()
    packed = PackedWeight.round_to_nearest(stack[0], INT4, symmetric=False, group_size=None)
    mixed = ExpertWeights((packed, *(FloatExpert(one.clone()) for one in stack[1:])))
    with Edit() as edit:
        edit.replace(model, experts, QuantizedExperts(experts, {"down_proj": mixed}, choosing=True))
    new = model.get_submodule(path)
    assert isinstance(new, QuantizedExperts)
    assert torch.equal(new.dequantize()["down_proj"][1:], stack[1:])
    save_quantized(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(logits(load_quantized(tmp_path), token_ids()), logits(model, token_ids()))


def test_experts_that_do_not_fit_are_refused() -> None:
    """A weight of another shape, a parameter that is not there, values that no grid has."""
    _, experts = experts_of(fused_model("mixtral"))
    packed = PackedWeight.round_to_nearest(torch.ones(2, 3), INT4, symmetric=False, group_size=None)
    for name in ("down_proj", "elsewhere"):
        with refused(experts, UnsupportedError, field=name):
            QuantizedExperts(experts, {name: ExpertWeights((packed,) * 4)}, choosing=True)
    with pytest.raises(UnsupportedError, match="all of one shape"):
        ExpertWeights((packed, FloatExpert(torch.ones(3, 2))))
    with refused(experts, UnsupportedError, field="act_fn"):
        QuantizedExperts.from_float(experts, INT4, transposed={"act_fn": True}, choosing=True)
    with torch.no_grad():
        experts.get_parameter("down_proj")[1, 0, 0] = float("nan")
    with pytest.raises(NumericsError):
        QuantizedExperts.from_float(experts, INT4, transposed={"down_proj": False}, choosing=True)


def test_weights_without_values_are_refused() -> None:
    """Not every kernel refuses tensors on the meta device."""
    _, experts = experts_of(rounded(fused_model("mixtral")))
    for module in experts.modules():
        if isinstance(module, PackedWeight):
            module.to("meta")
    with pytest.raises(LifecycleError, match="meta device"):
        experts(torch.ones(3, 16), torch.tensor([[2], [0], [2]]), torch.ones(3, 1))


def test_the_float_module_is_left_as_it_is() -> None:
    """Its parameters, its class and what it gives; the new one answers what it answered."""
    model = fused_model("mixtral")
    _, experts = experts_of(model)
    names = [name for name, _ in experts.named_parameters()]
    new = QuantizedExperts.from_float(
        experts, INT4, transposed={"gate_up_proj": False, "down_proj": False}, choosing=True
    )
    assert [name for name, _ in experts.named_parameters()] == names
    assert getattr(new, "num_experts") == 4  # noqa: B009
    assert new.experts_class is type(experts)
    assert "uint4 per row" in repr(new)


def test_the_report_names_experts_that_no_algorithm_has_seen() -> None:
    """By the paths of their lists, as it does for any module."""
    path, _ = experts_of(fused_model("mixtral"))
    lines = {line.path for line in report(rounded(fused_model("mixtral"))).layers}
    assert f"{path}.down_proj.3" in lines
