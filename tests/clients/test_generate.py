"""transformers generates with a converted model in every way, and evaluates it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from client_models import TOKENS, both, generated
from references import same_bits

CLIENT = "transformers"
PROMPT = TOKENS[:1, 1:7]  # without the token that stands for padding
LENGTH = 8
FIXED: Mapping[str, object] = {
    "max_new_tokens": LENGTH,
    "min_new_tokens": LENGTH,
    "eos_token_id": None,
}
WAYS: dict[str, Mapping[str, object]] = {
    "greedy": {"do_sample": False},
    "without a cache": {"do_sample": False, "use_cache": False},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "top_k": 10},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 2},
}


def _by_hand(model: LlamaForCausalLM) -> Tensor:
    """Return the tokens that are the most probable ones, each in its turn."""
    tokens = PROMPT
    with torch.no_grad():
        for _ in range(LENGTH):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
    return tokens


@pytest.mark.parametrize("way", WAYS)
def test_generate(kind: str, way: str) -> None:
    """New tokens come, the same ones again, after the prompt."""
    for model in both(kind):
        found = []
        for _ in range(2):
            torch.manual_seed(0)
            found.append(generated(model, PROMPT, **FIXED, **WAYS[way]))
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0][:, : PROMPT.shape[1]], PROMPT)
        assert found[0].shape[1] == PROMPT.shape[1] + LENGTH


def test_greedy_tokens_are_the_most_probable(kind: str) -> None:
    """Without a cache, generation is the model called again and again."""
    for model in both(kind):
        found = generated(model, PROMPT, do_sample=False, use_cache=False, **FIXED)
        assert torch.equal(found, _by_hand(model))


def test_hidden_states(kind: str) -> None:
    """They are recorded in front of each layer, and at the end."""
    for model in both(kind):
        found = model(TOKENS, output_hidden_states=True)
        assert len(found.hidden_states) == 3
        assert same_bits(found.logits, model(TOKENS).logits)


class _Tokens(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return len(TOKENS)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": TOKENS[index], "labels": TOKENS[index]}


def _trainer(model: nn.Module, folder: Path) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), report_to=[], use_cpu=True, per_device_eval_batch_size=len(TOKENS)
    )
    return Trainer(model=model, args=arguments, eval_dataset=_Tokens())


def test_trainer_evaluates_with_an_adapter(kind: str, tmp_path: Path) -> None:
    """The loss is that of a call."""
    for model in both(kind):
        expected = model(input_ids=TOKENS, labels=TOKENS).loss.item()
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
        found = _trainer(adapted, tmp_path).evaluate()["eval_loss"]
        assert found == pytest.approx(expected, rel=1e-6)  # a mean of float32 in another order


def test_trainer_without_an_adapter(kind: str, tmp_path: Path, refused: Callable[[str], None]) -> None:
    """It takes the float model, and refuses one of integers before anything is trained."""
    control, model = both(kind)
    assert _trainer(control, tmp_path).evaluate()["eval_loss"] > 0
    with pytest.raises(ValueError, match="attach trainable adapters"):
        _trainer(model, tmp_path)
    refused("transformers asks for adapters on a quantized model")
