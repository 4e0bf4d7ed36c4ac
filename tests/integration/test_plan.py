"""plan and convert agree, module by module, over models of many families."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tico.quantization import convert, plan, prepare
from tico.quantization.config import (
    AWQConfig,
    BaseConfig,
    GPTQConfig,
    PT2EConfig,
    PTQConfig,
    RotationConfig,
    SmoothQuantConfig,
    no_quant,
)
from tico_config import INT8, ConfigError, SuperBlock, UnsupportedError
from tico_quantizers.planning import differences
from zoo import ARCHITECTURES, Trial

NAMES: Final = (
    "LlamaForCausalLM",
    "MixtralForCausalLM",
    "GptOssForCausalLM",
    "GPT2LMHeadModel",
    "T5ForConditionalGeneration",
    "ResidualNet",
    "GemmaForCausalLM",
    "LlavaForConditionalGeneration",
)
_PTQ: Final = PTQConfig(strict_wrap=False, on_uncalibrated="skip")
_GPTQ: Final = GPTQConfig(show_progress=False, on_uncalibrated="skip")
_AWQ: Final = AWQConfig(group_size=8, ragged_groups=True, show_progress=False, on_uncalibrated="skip")
CONFIGS: Final[Mapping[str, Sequence[BaseConfig]]] = {
    "GPTQ": (_GPTQ,),
    "AWQ": (_AWQ,),
    "SmoothQuant": (SmoothQuantConfig(on_uncalibrated="skip"),),
    "PTQ": (_PTQ,),
    "linear": (PTQConfig(scope="linear", strict_wrap=False, on_uncalibrated="skip"),),
    "three": (SmoothQuantConfig(on_uncalibrated="skip"), _GPTQ, _PTQ),
}
TRIALS: Final = {each.name: Trial(each) for each in ARCHITECTURES if each.name in NAMES}


def _converted(trial: Trial, configs: Sequence[BaseConfig], model: nn.Module | None = None) -> nn.Module:
    model = trial.model() if model is None else model
    for config in configs:
        model = prepare(model, config, kwargs=trial.call(0))
        with torch.no_grad():
            model(**trial.call(0))
        model = convert(model)
    return model


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_convert_reports_what_was_planned(name: str, kind: str) -> None:
    """Path, class, algorithm, format, bits, group, bytes, and the reason of what stays float."""
    trial, configs = TRIALS[name], CONFIGS[kind]
    made = plan(trial.model(), configs)
    assert differences(made, _converted(trial, configs)) == []


@pytest.mark.parametrize("configs", [(RotationConfig(),), (RotationConfig(tied_embeddings="refuse"), _GPTQ)])
@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "GPT2LMHeadModel", "GemmaForCausalLM", "MixtralForCausalLM"]
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_rotated_is_up_to_the_data(name: str, configs: Sequence[BaseConfig]) -> None:
    """The plan says so, of a head that is untied its bytes too; the rest of the lines holds."""
    trial = TRIALS[name]
    made = plan(trial.model(), configs)
    assert any("in which rotation" in line.undecided for line in made.lines)
    assert differences(made, _converted(trial, configs)) == []


@pytest.mark.parametrize(
    "config",
    [
        GPTQConfig(group_size=8, static_groups=False),
        GPTQConfig(group_size=8, symmetric=True),
        GPTQConfig(per_tensor=True, bits=8, symmetric=True),
        GPTQConfig(group_size=16, super_block=SuperBlock(columns=32, scale_bits=6, offset_bits=6)),
        GPTQConfig(overrides={"lm_head": {"bits": 8}, "*.0.self_attn": no_quant()}),
        AWQConfig(group_size=None, symmetric=True, round_weights=False),
        SmoothQuantConfig(insert_mul=True),
        PTQConfig(overrides={"*.norm": no_quant(), "*.mlp.*": no_quant(), "*.q_proj": {"dtype": INT8}}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_every_field_of_the_storage_counts(config: BaseConfig) -> None:
    """Indices of groups, offsets of super-blocks, scales that all rows share, multiplications."""
    trial = TRIALS["LlamaForCausalLM"]
    assert differences(plan(trial.model(), config), _converted(trial, [config])) == []


def test_steps_of_a_forward_are_said_to_be_undecided() -> None:
    """Their number shows when the model is run; a module with a wrapper of its own is known to the byte."""
    lines = {line.path: line for line in plan(TRIALS["T5ForConditionalGeneration"].model(), _PTQ).lines}
    attention = lines["encoder.block.0.layer.0.SelfAttention"]
    assert "decided by the data" in attention.undecided
    assert attention.bytes_after is None
    assert lines["encoder.block.0.layer.0.SelfAttention.q"].bytes_after is not None


def test_experts_that_may_read_too_little_are_said_to_be() -> None:
    """Their format is known, and not whether they are solved for or rounded."""
    lines = plan(TRIALS["MixtralForCausalLM"].model(), GPTQConfig(min_expert_tokens=40)).lines
    experts = [line for line in lines if ".experts.down_proj." in line.path]
    assert experts
    assert all("fewer than 40 tokens" in line.undecided and line.bits == 4 for line in experts)


def test_graphs_have_no_plan() -> None:
    """PT2E needs example inputs, which the error says."""
    with pytest.raises(UnsupportedError, match="example inputs"):
        plan(TRIALS["ResidualNet"].model(), PT2EConfig())


def test_misspelt_override_has_the_nearest_names() -> None:
    """As in `prepare`."""
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.down_proj"):
        plan(
            TRIALS["LlamaForCausalLM"].model(),
            GPTQConfig(overrides={"model.layers.0.mlp.downproj": {"bits": 8}}),
        )


def test_eighty_blocks_of_a_large_model_take_seconds() -> None:
    """A LLaMA of 70 billion parameters on the meta device, in less than a tenth of what is allowed."""
    sizes = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(sizes)
    start = time.process_time()
    made = plan(model, GPTQConfig(group_size=128))
    assert time.process_time() - start < 20
    assert made.bytes_before == sum(each.nbytes for each in model.parameters()) + 2 * 64 * 4
    assert len([line for line in made.lines if line.bits == 4]) == 80 * 7
