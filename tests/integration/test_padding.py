"""Padding counts nowhere: what stands in masked places changes no bit of any algorithm's result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import pytest
import torch
import transformers
from torch import Tensor, nn

from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PT2EConfig,
    PTQConfig,
    SmoothQuantConfig,
    convert,
    prepare,
)
from tico_config import BaseConfig, CalibrationError
from tico_quantizers.testing import same_tensors, seeded, tensors_of, values

TOKENS: Final = torch.arange(36).view(3, 12) * 7 % 37 + 3
COMMON: Final = {"vocab_size": 40, "pad_token_id": 0, "attn_implementation": "eager"}
DECODER: Final = {
    **COMMON,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ENCODER: Final = {
    **COMMON,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
BOTH: Final = {
    **COMMON,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}


class Experts(nn.Module):
    """Experts as a list of modules, each of which is given the rows that an index picks."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 4, bias=False)
        sizes = [(nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 16)) for _ in range(4)]
        self.experts = nn.ModuleList(nn.Sequential(*each) for each in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Return what two experts give for each token."""
        flat = x.reshape(-1, x.shape[-1])
        shares, chosen = self.gate(flat).softmax(-1).topk(2, -1)
        total = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(chosen == number)
            total = total.index_add(0, row, expert(flat[row]) * shares[row, place, None])
        return total.reshape(x.shape)


class Routed(nn.Module):
    """A model of one layer of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.experts = Experts()
        self.head = nn.Linear(16, 40)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False) -> Tensor:
        """Return logits."""
        hidden: Tensor = self.embed(input_ids)
        logits: Tensor = self.head(hidden + self.experts(hidden))
        return logits


def tiny(family: str, task: str, settings: Mapping[str, object]) -> nn.Module:
    """Return a random model of transformers."""
    config = getattr(transformers, f"{family}Config")(**settings)
    model: nn.Module = getattr(transformers, f"{family}{task}")(config)
    return model


MODELS: Final[dict[str, Callable[[], nn.Module]]] = {
    "llama": lambda: tiny("Llama", "ForCausalLM", DECODER),
    "bert": lambda: tiny("Bert", "ForMaskedLM", ENCODER),
    "bart": lambda: tiny("Bart", "ForConditionalGeneration", BOTH),
    "mixtral": lambda: tiny("Mixtral", "ForCausalLM", {**DECODER, "num_local_experts": 4}),
    "list of experts": Routed,
}
CONFIGS: Final[Mapping[str, BaseConfig]] = {
    "gptq": GPTQConfig(show_progress=False),
    "gptq, first token": GPTQConfig(show_progress=False, token_weights=(200.0,)),
    "gptq, asymmetric": GPTQConfig(show_progress=False, asymmetric=1.0),
    "awq": AWQConfig(group_size=None, show_progress=False),
    "smoothquant": SmoothQuantConfig(alpha="auto"),
    "ptq": PTQConfig(strict_wrap=False),
    "pt2e": PT2EConfig(),
}


def call(name: str, filler: int, side: str) -> dict[str, object]:
    """Return a batch whose first rows have padding, filled with one token, on one side."""
    mask = torch.ones_like(TOKENS)
    for row, count in enumerate((5, 2)):
        mask[row, slice(None, count) if side == "left" else slice(-count, None)] = 0
    tokens = torch.where(mask.bool(), TOKENS, filler)
    found: dict[str, object] = {"input_ids": tokens, "attention_mask": mask}
    if name == "bart":  # as long as its other text, so that shapes tell nothing
        found["decoder_input_ids"] = TOKENS.flip(1)
    return found if name == "bert" else {**found, "use_cache": False}


def result(name: str, config: BaseConfig, filler: int, side: str) -> dict[str, Tensor]:
    """Return the tensors of a model calibrated with padding of one token."""
    model, given = seeded(MODELS[name]), call(name, filler, side)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    prepared = prepare(model, config, kwargs=given, inplace=not isinstance(config, PT2EConfig))
    with torch.no_grad():
        prepared(**given)
    return tensors_of(convert(prepared))


# Each export takes seconds; one graph is enough, as its values are told by their shape alone.
CASES: Final = [
    (config, name, side)
    for config in CONFIGS
    for name in MODELS
    for side in ("left", "right")
    if config != "pt2e" or (name, side) == ("llama", "left")
    if name != "list of experts" or config not in ("awq", "smoothquant")  # no layer alone reads another
]


@pytest.mark.parametrize(("config", "name", "side"), CASES)
def test_what_stands_in_padding_changes_no_bit(config: str, name: str, side: str) -> None:
    """With padding of any token, on any side, the result is the same; the float model gives the same too."""
    found = [result(name, CONFIGS[config], filler, side) for filler in (0, 1)]
    assert same_tensors(*found)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_rows_that_fused_experts_pick_are_told_from_padding(
    experts: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However transformers computes experts in one parameter, their steps have the same grids."""
    settings = {**DECODER, "num_local_experts": 4, "experts_implementation": experts}
    monkeypatch.setitem(MODELS, "mixtral", lambda: tiny("Mixtral", "ForCausalLM", settings))
    found = [result("mixtral", CONFIGS["ptq"], filler, side) for filler in (0, 1)]
    assert same_tensors(*found)


def test_padding_is_refused_where_nothing_follows_the_rows_that_experts_pick() -> None:
    """With steps of wrappers alone, by the point that would have seen it; without padding it is none."""
    settings = {**DECODER, "num_local_experts": 4}
    config = PTQConfig(steps="declared", strict_wrap=False)
    prepared = prepare(tiny("Mixtral", "ForCausalLM", settings), config)
    tokens = torch.arange(12).view(2, 6) + 3
    mask = torch.ones_like(tokens)
    prepared(tokens, attention_mask=mask)
    mask[0, :2] = 0
    with pytest.raises(CalibrationError, match="chooses the rows that it reads") as caught:
        prepared(tokens, attention_mask=mask)
    assert "mlp.experts.act_fn" in str(caught.value)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("config", ["gptq", "ptq"])
def test_torch_encoders_count_no_padding(config: str, batch_first: bool) -> None:
    """With samples or tokens on the first axis, and by heads inside of the attention."""

    def found(scale: float) -> dict[str, Tensor]:
        model = seeded(
            lambda: nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first), 2, enable_nested_tensor=False
            )
        )
        padding = torch.zeros(3, 10, dtype=torch.bool)
        padding[0, 6:] = True
        x = torch.where(padding[..., None], scale * values(1, 3, 10, 8), values(0, 3, 10, 8))
        prepared = prepare(model, CONFIGS[config])
        with torch.no_grad():
            prepared(x if batch_first else x.transpose(0, 1), src_key_padding_mask=padding)
        return tensors_of(convert(prepared))

    assert same_tensors(found(1.0), found(30.0))
