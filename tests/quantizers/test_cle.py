"""Cross-layer equalization of models: which pairs it finds, and what it leaves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tico_config import CalibrationError, CLEConfig, ConfigError, GPTQConfig, HQQConfig, no_quant
from tico_modules import QuantizedLinear, report
from tico_quantizers import CLEQuantizer, GPTQQuantizer, HQQQuantizer, Registry, quantizer_entry
from tico_quantizers.lifecycle import convert, prepare
from tico_quantizers.testing import ConvNet, ResidualBlock, seeded, values

REGISTRY = Registry(
    [
        quantizer_entry(CLEConfig, CLEQuantizer),
        quantizer_entry(GPTQConfig, GPTQQuantizer),
        quantizer_entry(HQQConfig, HQQQuantizer),
    ]
)


def mobile() -> nn.Module:
    """Return an inverted residual: expansion, a convolution of one channel a group, projection."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=8, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 2, groups=2), nn.Flatten(), nn.Linear(6 * 9, 2)),
    )


def block() -> nn.Module:
    """Return a norm, two linear layers and a sum."""
    return seeded(ResidualBlock)


def uneven(model: nn.Module) -> nn.Module:
    """Return `model` with output channels of weights that differ by up to 16."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            factors = 2.0 ** (torch.arange(len(parameter)) % 5)
            parameter.data *= factors.view(-1, *[1] * (parameter.ndim - 1))
    return model


def norm_of(error: Tensor, expected: Tensor) -> float:
    """Return an error as a share of what was expected."""
    return float((error - expected).detach().norm() / expected.detach().norm())


def reasons(model: nn.Module) -> dict[str, str]:
    """Return what the report says of each module."""
    return {line.path: line.reason for line in report(model).layers}


def test_convolutions_with_groups_are_pairs() -> None:
    """Each with the one before and the one after it, whatever the size of the groups."""
    model, x = uneven(seeded(mobile)), values(1, 2, 3, 4, 4)
    expected = model(x)
    model = convert(prepare(model, CLEConfig(), (x,), registry=REGISTRY))
    assert norm_of(model(x), expected) < 1e-6
    weights = {number: model.get_submodule(number).get_parameter("weight").abs() for number in "0246"}
    outputs = {number: weight.flatten(1).amax(1) for number, weight in weights.items()}
    assert torch.allclose(outputs["0"], weights["2"].view(8, -1).amax(1), rtol=4e-6)
    assert torch.allclose(outputs["2"], weights["4"].amax((0, 2, 3)), rtol=4e-6)
    assert torch.allclose(outputs["4"], weights["6"].view(2, 3, 2, -1).amax((1, 3)).flatten(), rtol=4e-6)
    assert reasons(model)["2"] == "columns multiplied for 0; channels divided for 4"


def test_a_batch_norm_counts_as_folded() -> None:
    """Its channels take the scales; equal are the ranges of the folded weight and of the next layer."""
    model, x = uneven(seeded(ConvNet)), values(1, 2, 2, 4, 4)
    norm = model.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.running_var.copy_(torch.tensor([0.1, 1.0, 7.0]))
    norm.weight.data = torch.tensor([-1.0, 0.5, 2.0])
    expected = model(x)
    conv = model.get_submodule("conv").get_parameter("weight").clone()
    model = convert(prepare(model, CLEConfig(), (x,), registry=REGISTRY))
    assert norm_of(model(x), expected) < 1e-6
    assert torch.equal(model.get_submodule("conv").get_parameter("weight"), conv)
    factors = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    head = model.get_submodule("head").get_parameter("weight").view(5, 3, 16).abs().amax((0, 2))
    assert torch.allclose(factors * conv.flatten(1).abs().amax(1), head, rtol=4e-6)
    assert reasons(model)["norm"] == "channels divided for head"
    assert reasons(model)["conv"] == "its output is read by norm"


class TwoNorms(nn.Module):
    """A convolution that two batch norms read, a layer behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.third = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways, and a layer more."""
        x = self.conv(x)
        one: Tensor = self.third(self.first(self.one(x).relu()).relu())
        other: Tensor = self.second(self.other(x).relu())
        return one[:, :1] + other


def test_two_batch_norms_share_no_layer() -> None:
    """A weight that both multiply has two ranges."""
    model = convert(prepare(seeded(TwoNorms), CLEConfig(), (values(1, 2, 2, 3, 3),), registry=REGISTRY))
    told = reasons(model)
    assert told["one"] == told["other"]
    assert told["one"].startswith("it is a norm, and no batch norm")
    assert told["third"] == "columns multiplied for first"


def test_other_norms_are_left() -> None:
    """They have no weight whose range could be shared."""
    model, x = block(), values(1, 2, 3, 8)
    norm = model.get_submodule("norm").get_parameter("weight").clone()
    model = convert(prepare(model, CLEConfig(), (x,), registry=REGISTRY))
    assert torch.equal(model.get_submodule("norm").get_parameter("weight"), norm)
    assert reasons(model)["norm"].startswith("it is a norm, and no batch norm")
    assert reasons(model)["second"] == "columns multiplied for first"


@pytest.mark.parametrize(
    "activation", [nn.ReLU6(), nn.GELU(), nn.Sigmoid()], ids=lambda each: type(each).__name__
)
def test_what_is_not_homogeneous_ends_a_pair(activation: nn.Module) -> None:
    """A model without another pair is refused, with who reads the output."""
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 2)))
    with pytest.raises(ConfigError, match=r"0: its output is read by (hardtanh|relu6|gelu|sigmoid)"):
        prepare(model, CLEConfig(), (values(1, 3, 4),), registry=REGISTRY)


def test_an_override_leaves_out_a_pair() -> None:
    """By the path of either layer; the others are equalized."""
    model, x = uneven(seeded(mobile)), values(1, 2, 3, 4, 4)
    first = model.get_submodule("0").get_parameter("weight").clone()
    config = CLEConfig(overrides={"0": no_quant()})
    model = convert(prepare(model, config, (x,), registry=REGISTRY))
    assert torch.equal(model.get_submodule("0").get_parameter("weight"), first)
    assert reasons(model)["0"] == "left out by the override '0'"
    assert reasons(model)["2"] == "channels divided for 4"


def test_mappings_name_pairs_of_layers_alone() -> None:
    """With groups of channels, too; a norm is refused, as no mapping says which layer it follows."""
    model, x = uneven(seeded(mobile)), values(1, 2, 3, 4, 4)
    expected = model(x)
    model = convert(prepare(model, CLEConfig(mappings={"0": ["2"]}), (x,), registry=REGISTRY))
    assert norm_of(model(x), expected) < 1e-6
    assert reasons(model)["2"] == "columns multiplied for 0"
    with pytest.raises(ConfigError, match="cannot take scales") as caught:
        prepare(seeded(ConvNet), CLEConfig(mappings={"norm": ["head"]}), registry=REGISTRY)
    assert caught.value.module == "norm"


def test_without_a_pass_nothing_shows_the_pairs() -> None:
    """One pass, or an example, is enough."""
    model, x = uneven(seeded(mobile)), values(1, 2, 3, 4, 4)
    prepared = prepare(model, CLEConfig(), registry=REGISTRY)
    with pytest.raises(CalibrationError):
        convert(prepared)
    expected = prepared(x)
    assert norm_of(convert(prepared)(x), expected) < 1e-6


def test_short_floats_take_powers_of_two() -> None:
    """No weight of bfloat16 is rounded again."""
    model, x = uneven(seeded(mobile)).bfloat16(), values(1, 2, 3, 4, 4).bfloat16()
    before = model.get_submodule("0").get_parameter("weight").float()
    model = convert(prepare(model, CLEConfig(), (x,), registry=REGISTRY))
    ratio = before / model.get_submodule("0").get_parameter("weight").float()
    assert torch.equal(ratio.log2(), ratio.log2().round())


def test_rounding_per_tensor_gains_what_the_paper_says() -> None:
    """With one grid for a whole weight, uneven channels lose most; equalized ones lose less than half."""
    config = GPTQConfig(per_tensor=True, bits=8, token_weights="uniform", show_progress=False)
    x = values(1, 4, 3, 4, 4)
    errors = []
    for first in ([], [CLEConfig()]):
        model = seeded(mobile)
        for number in (0, 4):  # what one divides the next one multiplies, so that the function stays
            factors = 2.0 ** (
                torch.arange(len(model.get_submodule(str(number)).get_parameter("weight"))) * 1.5
            )
            _unbalance(model, number, factors)
        expected = model(x).detach()
        for each in (*first, config):
            model = prepare(model, each, (x,), registry=REGISTRY)
            model(x)
            model = convert(model)
        errors.append(norm_of(model(x), expected))
    assert errors[1] < errors[0] / 2


def _unbalance(model: nn.Module, number: int, factors: Tensor) -> None:
    """Divide the output channels of a convolution, and multiply those of the next one that read them."""
    first, second = (model.get_submodule(str(each)) for each in (number, number + 2))
    weight = second.get_parameter("weight")
    first.get_parameter("weight").data /= factors.view(-1, 1, 1, 1)
    first.get_parameter("bias").data /= factors
    groups = len(factors) // weight.shape[1]
    weight.data *= (
        factors.view(groups, 1, -1).repeat_interleave(len(weight) // groups, 1).view(len(weight), -1, 1, 1)
    )


@pytest.mark.parametrize("config", [GPTQConfig(show_progress=False), HQQConfig(show_progress=False)])
def test_rounding_goes_on_with_the_result(config: GPTQConfig | HQQConfig) -> None:
    """Prepared again, the model becomes integers."""
    model, x = block(), values(1, 2, 3, 8)
    for each in (CLEConfig(), config):
        model = prepare(model, each, (x,), registry=REGISTRY)
        model(x)
        model = convert(model)
    assert isinstance(model.get_submodule("second"), QuantizedLinear)


def test_overrides_only_leave_out() -> None:
    """The sweeps are those of all pairs together."""
    with pytest.raises(ConfigError, match="sweeps"):
        CLEConfig(overrides={"0": {"sweeps": 2}})
