"""plan: what configs will do, in values, before there are data."""

from __future__ import annotations

import json
from typing import ClassVar

import attrs
import pytest
import torch
from torch import nn

from tico_config import (
    INT8,
    AWQConfig,
    BaseConfig,
    ConfigError,
    DType,
    GPTQConfig,
    GridFormat,
    LifecycleError,
    ModuleConfig,
    PerChannel,
    SmoothQuantConfig,
    UnsupportedError,
    no_quant,
    profiles,
    register_config,
)
from tico_modules import LayerReport, PackedWeight, PlannedWeight
from tico_quantizers import AWQQuantizer, GPTQQuantizer, Registry, SmoothQuantQuantizer, quantizer_entry
from tico_quantizers.conversion import WeightQuantizer
from tico_quantizers.layers import QuantizedWeight, Target, matrix, shape
from tico_quantizers.lifecycle import convert, plan, prepare
from tico_quantizers.planning import Plan, PlanLine, differences, total_bytes
from tico_quantizers.testing import seeded, unchanged
from toy_quantizer import ToyConfig, ToyQuantizer

BUILT_IN = Registry(
    [
        quantizer_entry(GPTQConfig, GPTQQuantizer),
        quantizer_entry(AWQConfig, AWQQuantizer),
        quantizer_entry(SmoothQuantConfig, SmoothQuantQuantizer),
        quantizer_entry(ToyConfig, ToyQuantizer),
    ]
)


def _model() -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU()) for _ in range(2)))


def _planned(config: BaseConfig, model: nn.Module | None = None) -> Plan:
    return plan(_model() if model is None else model, config, registry=BUILT_IN)


def _lines(made: Plan) -> dict[str, PlanLine]:
    return {line.path: line for line in made.lines}


def test_line_names_the_rule_that_decided() -> None:
    """The most specific override decides; where none matches, the fields do."""
    overrides = {"*.0": {"bits": 8}, "1.0": {"group_size": 16}}
    lines = _lines(_planned(GPTQConfig(group_size=32, overrides=overrides)))
    assert (lines["0.0"].rule, lines["0.0"].bits, lines["0.0"].group_size) == ("overrides['*.0']", 8, 32)
    assert (lines["1.0"].rule, lines["1.0"].bits, lines["1.0"].group_size) == ("overrides['1.0']", 4, 16)
    assert _lines(_planned(GPTQConfig()))["0.0"].rule == "defaults"


def test_bytes_are_codes_scales_zero_points_and_biases() -> None:
    """64 x 64 codes of 4 bits, a scale and a zero point of 4 bytes for each 32 of them, and the bias."""
    line = _lines(_planned(GPTQConfig(group_size=32)))["0.0"]
    assert line.bytes_before == 4 * (64 * 64 + 64)
    assert line.bytes_after == 64 * 64 // 2 + 64 * 64 // 32 * 8 + 4 * 64


def test_sums_are_those_of_the_lines_and_of_what_has_none() -> None:
    """A buffer of the root belongs to no line, and counts on both sides."""
    model = _model()
    model.register_buffer("positions", torch.zeros(5))
    made = _planned(GPTQConfig(), model)
    assert made.bytes_before == sum(line.bytes_before for line in made.lines) + 20 == total_bytes(model)
    assert made.bytes == sum(line.bytes_after or 0 for line in made.lines) + 20


def test_what_stays_float_has_the_reason() -> None:
    """An override is named; a norm is none of the layers that GPTQ takes."""
    lines = _lines(_planned(GPTQConfig(overrides={"0.0": no_quant()})))
    assert lines["0.0"].reason == "left out by the override '0.0'"
    assert lines["0.0"].bytes_after == lines["0.0"].bytes_before
    assert "linear layers" in lines["0.1"].reason


@pytest.mark.parametrize("config", [GPTQConfig(), AWQConfig(group_size=32), SmoothQuantConfig()])
def test_values_are_not_needed(config: BaseConfig) -> None:
    """A model on the meta device has the plan of one with values."""
    with torch.device("meta"):
        empty = _model()
    assert _planned(config, empty) == _planned(config)


def test_model_is_left_alone() -> None:
    """Nothing of it changes, and a plan of a prepared one is refused."""
    model = _model().eval()
    with unchanged(model):
        _planned(GPTQConfig(), model)
    prepared = prepare(model, GPTQConfig(), registry=BUILT_IN)
    with pytest.raises(LifecycleError):
        _planned(GPTQConfig(), prepared)


def test_converted_model_is_planned_from_its_integers() -> None:
    """A model of integers is taken on as it is: 4 bits are planned where 8 were, by another algorithm."""
    model = prepare(_model().eval(), GPTQConfig(bits=8, show_progress=False), registry=BUILT_IN)
    model(torch.ones(3, 64))
    converted = convert(model)
    again = GPTQConfig(bits=4, show_progress=False, target=profiles.VLLM, group_size=32, symmetric=True)
    made = _planned(again, converted)
    assert made.bytes_before == total_bytes(converted)
    prepared = prepare(converted, again, registry=BUILT_IN)
    prepared(torch.ones(3, 64))
    assert differences(made, convert(prepared)) == []


@pytest.mark.parametrize(
    "config",
    [
        GPTQConfig(overrides={"0.00": {"bits": 8}}),
        GPTQConfig(group_size=48),
        GPTQConfig(target=profiles.VLLM, bits=3),
        AWQConfig(group_size=48),
        SmoothQuantConfig(overrides={"0.00": {"alpha": 0.1}}),
        SmoothQuantConfig(mappings={"0.11": ["1.0"]}),
        SmoothQuantConfig(insert_mul=True, target=profiles.VLLM),
    ],
)
def test_what_prepare_refuses_is_refused_alike(config: BaseConfig) -> None:
    """The error is the same, nearest names and all, with and without values."""
    errors = []
    for action in (prepare, plan):
        with pytest.raises(ConfigError) as caught:
            action(_model().eval(), config, registry=BUILT_IN)
        errors.append(caught.value.problems)
    assert errors[0] == errors[1]


def test_layer_with_a_forward_of_its_own_is_known_without_values() -> None:
    """One that computes as its class does is taken, one that does not is left alone, both as with values."""

    class Same(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T + self.bias

    class Other(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).flip(-1)

    def make() -> nn.Module:
        return nn.Sequential(Same(8, 8), Other(8, 8))

    with torch.device("meta"):
        empty = make()
    made = _planned(GPTQConfig(), empty)
    assert [line.bits for line in made.lines] == [4, None]
    assert made == _planned(GPTQConfig(), make())


def test_pairs_are_said_to_be_undecided() -> None:
    """Which layers undo the scales of a norm shows in the data alone; where scales may go is known."""
    lines = _lines(_planned(SmoothQuantConfig()))
    assert all("decided by the data" in lines[path].undecided for path in ("0.0", "0.1", "1.0"))
    assert _lines(_planned(GPTQConfig()))["0.0"].undecided == ""


def test_layers_that_data_may_not_reach_are_noted() -> None:
    """With ``on_uncalibrated="skip"`` any layer may stay float."""
    (read,), skipped = _planned(GPTQConfig()).notes, _planned(GPTQConfig(on_uncalibrated="skip")).notes
    assert "never called" in read
    assert skipped == (read, "what no calibration data reach stays float: on_uncalibrated is 'skip'")


def test_memory_is_model_integers_and_gram_matrices_of_one_block() -> None:
    """Two blocks of the same size take what one takes; `gram_memory` bounds that."""
    parts = dict(_planned(GPTQConfig()).memory)
    one = 8 * 64 * 64 + 4 * 2048 * 64  # 64 columns are one panel; and the rows that wait
    assert parts["Gram matrices of what layers read, at most"] == one
    assert parts["the model"] == total_bytes(_model())
    made = _planned(GPTQConfig(gram_memory=one, overrides={"0.0": no_quant()}))
    assert made.peak_bytes == sum(dict(made.memory).values())


def test_algorithm_without_a_plan_says_so() -> None:
    """The error names the quantizer and the method to define."""
    with pytest.raises(UnsupportedError, match=r"ToyQuantizer has no plan.*define foresee"):
        _planned(ToyConfig())


@register_config
@attrs.frozen(kw_only=True)
class _SayingConfig(ModuleConfig):
    name: ClassVar[str] = "saying"

    def weight_format(self) -> GridFormat:
        return GridFormat(dtype=INT8, granularity=PerChannel(0), symmetric=True)


class _Rounding(WeightQuantizer[ModuleConfig]):
    def quantize(self, target: Target[ModuleConfig]) -> QuantizedWeight:
        weight = matrix(target.layer).view(shape(target.layer))
        packed = PackedWeight.round_to_nearest(weight, DType.int(8), symmetric=True, group_size=None)
        line = LayerReport(
            path=target.path,
            module=type(target.layer).__name__,
            algorithm=target.config.name,
            weight="int8 symmetric per row",
            bits=8,
        )
        return QuantizedWeight(packed, line)


@register_config
@attrs.frozen(kw_only=True)
class _SilentConfig(ModuleConfig):
    name: ClassVar[str] = "silent"


def test_format_of_a_config_is_enough_for_a_plan() -> None:
    """An algorithm of layers needs no method for it, where its config says which format weights get."""
    registry = Registry(
        [quantizer_entry(_SayingConfig, _Rounding), quantizer_entry(_SilentConfig, _Rounding)]
    )
    model = seeded(_model)
    made = plan(model, _SayingConfig(), registry=registry)
    assert differences(made, convert(prepare(model, _SayingConfig(), registry=registry))) == []
    with pytest.raises(UnsupportedError, match="_SilentConfig does not say which format"):
        plan(_model(), _SilentConfig(), registry=registry)


def test_no_config_and_something_else_are_refused() -> None:
    """A list of configs may not be empty, and a name is no config."""
    for wrong in ([], "gptq", [GPTQConfig(), "awq"]):
        with pytest.raises(ConfigError):
            plan(_model(), wrong, registry=BUILT_IN)  # type: ignore[arg-type]  # that is the point


def test_json_has_lines_and_sums() -> None:
    """All that the values have."""
    made = _planned(GPTQConfig())
    told = json.loads(made.to_json())
    assert told["bytes"] == made.bytes
    assert told["lines"][0]["path"] == "0.0"
    assert [PlanLine(**line) for line in told["lines"]] == list(made.lines)


def test_table_has_a_row_for_modules_that_differ_in_numbers_alone() -> None:
    """Both layers share a row; with `every_module` each has its own."""
    made = _planned(GPTQConfig())
    assert "| 0…1.0 (2 modules) | Linear | gptq |" in made.to_markdown()
    assert "| 1.0 | Linear | gptq |" in made.to_markdown(every_module=True)
    assert str(made) == made.to_markdown()


def test_difference_from_the_plan_is_told() -> None:
    """Another number of bits, other bytes and another reason are each a line of text."""
    model = prepare(_model().eval(), GPTQConfig(bits=8, show_progress=False), registry=BUILT_IN)
    model(torch.ones(3, 64))
    converted = convert(model)
    found = differences(_planned(GPTQConfig(overrides={"1.0": no_quant()})), converted)
    assert any(text.startswith("0.0: bits: planned 4, found 8") for text in found)
    assert any(text.startswith("0.0: bytes: planned") for text in found)
    assert any(text.startswith('1.0: reason: planned "left out') for text in found)
    assert any(text.startswith("bytes: planned") for text in found)


def test_planned_weight_has_the_buffers_of_a_real_one() -> None:
    """Shapes, dtypes and format are those of the codes that are found later."""
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    real = PackedWeight.round_to_nearest(weight, DType.int(3), symmetric=True, group_size=8)
    planned = PlannedWeight(real.format, symmetric=True)
    for name, buffer in real.named_buffers():
        other = planned.get_buffer(name)
        assert (other.shape, other.dtype) == (buffer.shape, buffer.dtype)
    assert (planned.bytes, planned.grid_format()) == (real.bytes, real.grid_format())


def test_number_that_a_module_reads_is_there() -> None:
    """A factor in a buffer, as embeddings have, is read while a plan is made, with and without values."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("factor", torch.tensor(2.0))

        @property
        def get_output_embeddings(self) -> None:
            """Read the buffer whenever a head is looked for."""
            assert float(self.get_buffer("factor"))

    with torch.device("meta"):
        empty = Scaled()
    assert [line.bits for line in _planned(GPTQConfig(), empty).lines if line.path == "fc"] == [4]
    assert _planned(GPTQConfig(), Scaled()) == _planned(GPTQConfig(), empty)
