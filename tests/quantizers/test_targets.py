"""`target` in configs of weights: `prepare` refuses what the runtime does not take."""

from __future__ import annotations

from typing import ClassVar

import attrs
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PTQConfig,
    RotationConfig,
    SmoothQuantConfig,
    convert,
    prepare,
)
from tico.quantization.config import (
    BaseConfig,
    ConfigError,
    DeploymentProfile,
    DType,
    ModuleConfig,
    UnsupportedError,
    affine,
    no_quant,
    profiles,
    register_config,
)
from tico_quantizers import BaseQuantizer, Calibration, Converted, Example, Registry, quantizer_entry
from tico_quantizers.conversion import BlockQuantizer
from tico_quantizers.testing import unchanged


class Attention(nn.Module):
    """Three layers that vLLM computes as one, and what reads them."""

    def __init__(self, width: int = 64) -> None:
        """Make the layers."""
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.o_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return something that all layers take part in."""
        y: torch.Tensor = self.o_proj(self.q_proj(x) * self.k_proj(x) + self.v_proj(x))
        return y


def model(width: int = 64) -> nn.Module:
    """Return two blocks."""
    return nn.Sequential(nn.LayerNorm(width), Attention(width), Attention(width)).eval()


def refused(config: BaseConfig, width: int = 64, args: tuple[object, ...] | None = None) -> ConfigError:
    """Return the error with which `prepare` refuses a config; the model stays as it was."""
    made = model(width)
    with unchanged(made), pytest.raises(ConfigError) as caught:
        prepare(made, config, args=args)
    return caught.value


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"bits": 3}, "bits", "vLLM takes weights of int4, uint4, int8 or fp8_e4m3, and the weight is uint3"),
        ({"bits": 8}, "bits", "and the weight is uint8"),
        (
            {"group_size": 16},
            "group_size",
            "weights of uint4 in groups of 128, 64 or 32 columns, and",
        ),
        ({"per_tensor": True}, "group_size", "a scale a group of columns or a scale a row"),
        ({"group_size": 32, "static_groups": False}, "group_size", "neighbouring columns"),
        ({"group_size": 32, "ragged_groups": True}, None, ""),
    ],
)
@pytest.mark.parametrize("width", [64])
def test_gptq_is_refused_with_the_field_and_what_is_legal(
    change: dict[str, object], field: str | None, words: str, width: int
) -> None:
    """Every layer that has the problem has a line, in the words of the config."""
    config = attrs.evolve(GPTQConfig(target=profiles.VLLM), **change)  # type: ignore[arg-type]  # its fields
    if field is None:
        prepare(model(width), config)
        return
    error = refused(config, width)
    assert len(error.problems) == 8
    assert (error.field, error.module) == (field, "1.q_proj")
    assert words in str(error)
    assert "target.configs(GPTQConfig)" in str(error)


def test_ragged_groups_are_refused_where_they_come_about() -> None:
    """A size that does not divide the columns leaves a group of another size."""
    config = GPTQConfig(group_size=64, ragged_groups=True, symmetric=True, target=profiles.LLAMA_CPP)
    assert "all of one size" in str(refused(config, width=96))


def test_static_groups_keep_the_order_legal() -> None:
    """Groups are runs of neighbouring columns then."""
    config = GPTQConfig(group_size=32, target=profiles.VLLM)
    prepare(model(), config)


@pytest.mark.parametrize("kind", [GPTQConfig, PTQConfig])
@pytest.mark.parametrize("target", [profiles.VLLM, profiles.LLAMA_CPP, profiles.GPTQMODEL])
def test_transposed_layers_are_refused_where_the_file_has_no_place_for_them(
    kind: type[GPTQConfig | PTQConfig], target: DeploymentProfile
) -> None:
    """Those of GPT-2: what reads checkpoints puts integers in the place of ``Linear`` alone."""
    sizes = {"n_embd": 32, "n_head": 2, "n_layer": 1, "vocab_size": 32, "n_positions": 16}
    made: nn.Module = GPT2LMHeadModel(GPT2Config.from_dict(sizes))
    with unchanged(made), pytest.raises(ConfigError, match=r"the layer is transposed_linear") as caught:
        prepare(made, target.config(kind))
    block = "transformer.h.0"
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    found = [each for each in caught.value.problems if each.field == "kind"]
    assert {each.module for each in found} == {f"{block}.{name}" for name in names}
    prepare(made, profiles.ONNX_RUNTIME.config(kind))


def test_layers_computed_as_one_need_one_format() -> None:
    """One of three with other bits, or left float, is refused with all of them; other layers may differ."""
    overrides = {"1.k_proj": {"bits": 8, "symmetric": True}, "2.v_proj": no_quant(), "*.o_proj": no_quant()}
    error = refused(GPTQConfig(symmetric=True, target=profiles.VLLM, overrides=overrides))
    assert [problem.module for problem in error.problems] == ["1", "2"]
    assert "v_proj: float" in str(error)
    apart = GPTQConfig(target=profiles.LLAMA_CPP, group_size=32, overrides=overrides)
    prepare(model(), apart)


def test_everything_wrong_is_told_at_once() -> None:
    """What does not fit the layer and what the runtime does not take are in one error."""
    overrides = {"1.o_proj": {"group_size": 48}, "2.o_proj": {"bits": 5}}
    error = refused(GPTQConfig(target=profiles.VLLM, overrides=overrides))
    assert {(each.module, each.field) for each in error.problems} >= {
        ("1.o_proj", "group_size"),
        ("2.o_proj", "bits"),
    }


def test_what_is_integer_already_is_looked_at_too() -> None:
    """A layer that an earlier run has quantized, and this one leaves out, stays as it is in the file."""
    made = prepare(model(), GPTQConfig(bits=3, show_progress=False))
    made(torch.randn(8, 64))
    converted = convert(made)
    left = GPTQConfig(target=profiles.VLLM, overrides={"1": no_quant()})
    with pytest.raises(ConfigError, match="uint3") as caught:
        prepare(converted, left)
    assert {str(each.module)[0] for each in caught.value.problems} == {"1"}
    prepare(converted, GPTQConfig(target=profiles.VLLM))


def test_what_an_earlier_run_has_left_is_looked_at() -> None:
    """Grids of activations that no layer reads, and multiplications of inputs, have no place in vLLM."""
    made = prepare(model(), PTQConfig(activation=affine(DType.int(8)), weight=affine(DType.int(8))))
    made(torch.randn(8, 64))
    with pytest.raises(ConfigError, match="no place for the grid") as caught:
        prepare(convert(made), GPTQConfig(target=profiles.VLLM))
    assert "1.q_proj.act_out" in {each.module for each in caught.value.problems}

    args = (torch.randn(8, 64),)
    smoothed = prepare(model(), SmoothQuantConfig(insert_mul=True), args=args)
    smoothed(*args)
    smoothed = convert(smoothed)
    for config in (GPTQConfig(target=profiles.VLLM), profiles.VLLM.config(PTQConfig)):
        with pytest.raises(ConfigError, match="no place for the multiplication in front of this layer"):
            prepare(smoothed, config)


def test_awq_is_refused_as_gptq_is() -> None:
    """Unless it leaves rounding to another algorithm."""
    config = AWQConfig(bits=4, group_size=16, target=profiles.LLAMA_CPP)
    assert "a multiple of 32" in str(refused(config, args=(torch.randn(8, 64),)))
    prepare(model(), attrs.evolve(config, round_weights=False), args=(torch.randn(8, 64),))


def test_smoothing_may_not_leave_multiplications() -> None:
    """A multiplication in front of a layer has a place in graphs only."""
    args = (torch.randn(8, 64),)
    error = refused(SmoothQuantConfig(insert_mul=True, target=profiles.VLLM), args=args)
    assert error.field == "insert_mul"
    prepare(model(), SmoothQuantConfig(target=profiles.VLLM), args=args)
    prepare(model(), SmoothQuantConfig(insert_mul=True, target=profiles.ONNX_RUNTIME), args=args)


def test_online_rotations_need_a_place() -> None:
    """As a multiplication has one; those that are folded into weights need none."""
    args = (torch.randn(8, 64),)
    for config in (
        RotationConfig(online_inputs=True, target=profiles.VLLM),
        RotationConfig(overrides={"*": {"online_inputs": True}}, target=profiles.VLLM),
    ):
        assert refused(config, args=args).field == "online_inputs"
    rotated = prepare(model(), RotationConfig(online_inputs=True, target=profiles.ONNX_RUNTIME), args=args)
    rotated(*args)
    rotated = convert(rotated)
    with pytest.raises(ConfigError, match="no place for the multiplication") as caught:
        prepare(rotated, GPTQConfig(bits=4, group_size=32, target=profiles.VLLM))
    assert caught.value.problems[0].field == "online_inputs"


def test_kinds_of_layers_that_a_runtime_lacks_are_refused() -> None:
    """Integers of vLLM are in linear layers alone."""
    with pytest.raises(ConfigError, match="layers of kind linear, and the layer is conv2d") as caught:
        prepare(
            nn.Sequential(nn.Conv2d(32, 32, 1), nn.Linear(32, 32)).eval(), GPTQConfig(target=profiles.VLLM)
        )
    assert [each.module for each in caught.value.problems] == ["0"]


@register_config
@attrs.frozen(kw_only=True)
class UncheckedConfig(ModuleConfig):
    """A config of another package that knows nothing of targets."""

    name: ClassVar[str] = "unchecked"


class UncheckedQuantizer(BaseQuantizer[UncheckedConfig, Calibration]):
    """An algorithm that does not look at the target."""

    def prepare(
        self, model: nn.Module, example: Example | None, edit: object
    ) -> tuple[nn.Module, Calibration]:
        """Watch nothing."""
        return model, Calibration()

    def convert(self, model: nn.Module, calibration: Calibration, edit: object) -> Converted:
        """Never called."""
        raise NotImplementedError


class SilentQuantizer(BlockQuantizer[UncheckedConfig]):
    """An algorithm over layers whose config does not say what they get."""

    quantize = None  # type: ignore[assignment]  # never called


@pytest.mark.parametrize(
    ("quantizer", "error", "words"),
    [
        (UncheckedQuantizer, UnsupportedError, "does not check what vLLM takes"),
        (SilentQuantizer, ConfigError, "does not say which format its weights get"),
    ],
)
def test_a_target_is_never_ignored(
    quantizer: type[BaseQuantizer[UncheckedConfig, Calibration]], error: type[Exception], words: str
) -> None:
    """An algorithm of somebody else that does not look at it refuses it."""
    registry = Registry([quantizer_entry(UncheckedConfig, quantizer)])
    prepare(model(), UncheckedConfig(), registry=registry)
    with pytest.raises(error, match=words):
        prepare(model(), UncheckedConfig(target=profiles.VLLM), registry=registry)
