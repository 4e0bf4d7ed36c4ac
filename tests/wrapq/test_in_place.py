"""Modules that write to their input, which others read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, load_quantized, prepare, save_quantized
from tico.quantization.config import UnsupportedError, no_quant
from tico_wrapq import ACT_IN, ACT_OUT, PointDeclaration, PTQWrapper, QuantModuleBase, lookup, register
from tiny_models import values

KINDS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Hardtanh, nn.RReLU),
)

IN_PLACE = {"inplace": True}


class ReadAgain(nn.Module):
    """An activation whose input is read behind it: where it works in place, that is its output."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.layer, self.activation, self.last = nn.Linear(4, 4), activation, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last layer of the activation and its input."""
        hidden = self.layer(x)
        activated = self.activation(hidden)
        read = hidden if getattr(self.activation, "inplace", False) else activated
        last: Tensor = self.last(activated) + read
        return last


def _converted(make: Callable[[], nn.Module], overrides: Mapping[str, object]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = ReadAgain(make()).eval()
    expected = model(values(0, 5, 4))
    prepare(model, PTQConfig(overrides=dict(overrides), steps="declared"))
    assert torch.equal(model(values(0, 5, 4)), expected)
    converted = convert(model).requires_grad_(False)
    return converted, converted(values(1, 5, 4))


LEFT = [{}, {"activation.act_in": no_quant()}, {"activation.act_out": no_quant()}, {"activation": no_quant()}]


@pytest.mark.parametrize("overrides", LEFT, ids=["all", "no act_in", "no act_out", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_to_is_what_comes_out(
    kind: type[nn.Module], overrides: Mapping[str, object], tmp_path: Path
) -> None:
    """Whoever reads the input again reads the output, on its grid; loaded from a file too."""
    assert lookup(type(kind())) is not None
    model, output = _converted(lambda: kind(**IN_PLACE), overrides)
    _, expected = _converted(kind, overrides)
    assert torch.equal(output, expected)
    save_quantized(model, tmp_path)
    loaded = load_quantized(tmp_path, ReadAgain(kind(**IN_PLACE)))
    assert torch.equal(loaded(values(1, 5, 4)), expected)


def test_the_tensor_is_the_one_that_was_given() -> None:
    """By position or by name."""
    model = prepare(nn.Sequential(nn.ReLU(inplace=True)).eval(), PTQConfig())
    model(values(0, 5, 4))
    layer = convert(model).get_submodule("0")
    x = values(1, 5, 4)
    assert layer(x) is x
    assert layer(input=x) is x


class _Halving(nn.Module):
    """Halves its input in place."""

    inplace = True

    def forward(self, x: Tensor) -> Tensor:
        """Return the halved input itself."""
        return x.mul_(0.5)


class _Cooling(_Halving):
    """Another one."""


@register(_Halving)
class _QuantHalving(QuantModuleBase):
    """A wrapper as its README shows one."""

    kind: ClassVar[str] = "test.halving"
    points: ClassVar[tuple[PointDeclaration, ...]] = (ACT_IN, ACT_OUT)
    module: nn.Module

    def adopt(self, module: nn.Module) -> None:
        """Keep the module."""
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return the module's output by way of both points."""
        moved: Tensor = self.point("act_out")(self.module(self.point("act_in")(x)))
        return moved


@register(_Cooling)
class _QuantCooling(_QuantHalving):
    """A wrapper that leaves in its input what the module does."""

    kind: ClassVar[str] = "test.cooling"
    writes_to_input: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with the output in it."""
        return x.copy_(super().forward(x))


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_wrapper_that_would_leave_its_input_alone_is_refused(
    mode: Callable[[], AbstractContextManager[None]],
) -> None:
    """By the first data, with the ways out; one of them is taken."""
    model = ReadAgain(_Halving()).eval().requires_grad_(False)
    prepared = prepare(model, PTQConfig())
    for _ in range(2):  # a pass that is refused counts for nothing, and so is the next one
        with mode(), pytest.raises(UnsupportedError, match="its module writes to its input") as caught:
            prepared(values(0, 5, 4))
        assert caught.value.module == "activation"
        assert "writes_to_input = True" in str(caught.value)
    wrapper = PTQWrapper(_Halving().eval())
    wrapper.enable_calibration()
    with mode(), pytest.raises(UnsupportedError, match="its module writes to its input"):
        wrapper(values(0, 5, 4))
    left, _ = _converted(_Halving, {"activation": no_quant()})
    assert not any(isinstance(module, QuantModuleBase) for module in left.modules())


def test_wrapper_that_writes_to_its_input_is_taken() -> None:
    """Whoever reads the input again reads the output, on its grid."""
    model, output = _converted(_Cooling, {})
    x = values(1, 5, 4)
    hidden = model.get_submodule("layer")(x)
    activated: Tensor = model.get_submodule("activation")(hidden)
    assert activated is hidden
    assert torch.equal(output, model.get_submodule("last")(activated) + activated)
