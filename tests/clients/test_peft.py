"""LoRA on integer linear layers: attached by name or all of them, trained, saved and loaded, never merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import LlamaForCausalLM

from client_models import TOKENS, both, codes_of, converted, float_model
from references import same_bits
from tico.quantization.config import DType
from tico_config import UnsupportedError
from tico_modules import QuantizedLinear, RotatedInput, ScaledInput

CLIENT = "peft"
TARGETS: dict[str, str | list[str]] = {"all": "all-linear", "some": ["q_proj", "down_proj"]}
by_targets = pytest.mark.parametrize("targets", TARGETS)
STEPS = 20


def _config(targets: str) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=TARGETS[targets])


def _train(model: PeftModel) -> list[float]:
    """Return the loss of each step."""
    losses = []
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    model.train()
    for _ in range(STEPS):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def _adapted(model: nn.Module) -> set[str]:
    prefix = "base_model.model."
    return {
        name.removeprefix(prefix) for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }


@by_targets
def test_lora_attaches_where_it_does_in_the_float_model(kind: str, targets: str) -> None:
    """The head aside, these are all linear layers, or those of the names."""
    control, model = (get_peft_model(each, _config(targets)) for each in both(kind))
    assert _adapted(model) == _adapted(control)
    assert len(_adapted(model)) == {"all": 14, "some": 4}[targets]


@by_targets
def test_lora_learns(kind: str, targets: str) -> None:
    """The loss falls as it does in the float model, and no code changes."""
    for model in both(kind):
        codes, expected = codes_of(model), model(TOKENS).logits
        adapted = get_peft_model(model, _config(targets))
        assert same_bits(adapted(TOKENS).logits, expected)
        losses = _train(adapted)
        assert losses[-1] < 0.97 * losses[0]  # a float model of this size falls by 5 to 20 %
        assert all(same_bits(value, codes[name]) for name, value in codes_of(adapted).items())
        with adapted.disable_adapter():
            assert same_bits(adapted(TOKENS).logits, expected)


@by_targets
def test_an_adapter_is_saved_and_loaded(kind: str, targets: str, tmp_path: Path) -> None:
    """Onto a fresh model it gives the same bits."""
    fresh = float_model(), converted(kind)
    for number, (model, other) in enumerate(zip(both(kind), fresh, strict=True)):
        adapted = get_peft_model(model, _config(targets))
        _train(adapted)
        adapted.save_pretrained(str(tmp_path / str(number)))
        loaded = PeftModel.from_pretrained(other, str(tmp_path / str(number)))
        assert same_bits(loaded(TOKENS).logits, adapted(TOKENS).logits)


def test_an_adapter_of_the_float_model_fits(kind: str, tmp_path: Path) -> None:
    """Its layers have the names of the float ones."""
    control, model = both(kind)
    adapted = get_peft_model(control, _config("all"))
    _train(adapted)
    adapted.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(model, str(tmp_path))
    theirs = {name: value for name, value in adapted.named_parameters() if "lora_" in name}
    ours = {name: value for name, value in loaded.named_parameters() if "lora_" in name}
    assert theirs.keys() == ours.keys()
    assert all(same_bits(ours[name], value) for name, value in theirs.items())


MERGES: dict[str, Callable[[PeftModel], object]] = {
    "merge_and_unload": lambda model: model.merge_and_unload(),
    "merge_adapter": lambda model: model.merge_adapter(),
}


@pytest.mark.parametrize("merge", MERGES)
def test_merging(kind: str, merge: str, refused: Callable[[str], None]) -> None:
    """It is refused before anything is merged; the float model takes it."""
    control, model = (get_peft_model(each, _config("all")) for each in both(kind))
    MERGES[merge](control)
    expected = model(TOKENS).logits
    with pytest.raises(UnsupportedError, match="an adapter is not merged into an integer layer"):
        MERGES[merge](model)
    assert same_bits(model(TOKENS).logits, expected)
    refused("codes would be rounded again")


def test_unloading_gives_the_model_back(kind: str) -> None:
    """With its bits, and without layers of peft."""
    for model in both(kind):
        expected = model(TOKENS).logits
        unloaded = get_peft_model(model, _config("all")).unload()
        assert isinstance(unloaded, LlamaForCausalLM)
        assert not _adapted(unloaded)
        assert same_bits(unloaded(TOKENS).logits, expected)


def test_a_second_adapter_goes_beside_the_first(kind: str) -> None:
    """All-linear means the same layers again."""
    for model in both(kind):
        adapted = get_peft_model(model, _config("all"))
        before = _adapted(adapted)
        adapted.add_adapter("other", _config("all"))
        adapted.set_adapter("other")
        assert _adapted(adapted) == before
        assert adapted(TOKENS).logits.isfinite().all()


@pytest.mark.parametrize("initial", ["pissa", "olora"])
def test_taking_the_adapter_out_of_the_weight(
    kind: str, initial: str, refused: Callable[[str], None]
) -> None:
    """An initial adapter that changes the base weight is refused, and nothing is attached."""
    model = converted(kind)
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=initial)
    with pytest.raises(UnsupportedError, match="init_lora_weights"):
        get_peft_model(model, config)
    assert not _adapted(model)
    refused("codes would be rounded again")


@pytest.mark.parametrize(
    "changed",
    [
        lambda linear: ScaledInput(linear, torch.rand(8), axis=-1),
        lambda linear: RotatedInput(linear, torch.eye(4), torch.eye(2)),
    ],
    ids=["multiplied", "rotated"],
)
def test_a_layer_with_a_changed_input_has_one_adapter(changed: Callable[[nn.Module], nn.Module]) -> None:
    """Under its own name, whatever is inside it."""
    linears: dict[str, nn.Module] = {
        "integer": QuantizedLinear.from_float(nn.Linear(8, 8), DType.uint(4)),
        "floating": nn.Linear(8, 8),
        "plain": nn.Linear(8, 8),
    }
    model = nn.Sequential()
    for name, linear in linears.items():
        model.add_module(name, linear if name == "plain" else changed(linear))
    x = torch.randn(2, 8)
    expected = model(x)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    assert _adapted(adapted) == {"integer", "floating", "plain"}
    assert same_bits(adapted(x), expected)
