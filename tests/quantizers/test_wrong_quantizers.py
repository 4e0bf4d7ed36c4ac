"""What somebody's quantizer returns is checked: what is wrong is told in our words, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import attrs
import pytest
import torch
from torch import nn

from tico.quantization import convert, prepare
from tico_config import DType, ModuleConfig, UnsupportedError, register_config
from tico_modules import Edit, LayerReport, PackedWeight, Report
from tico_quantizers import BaseQuantizer, Converted, Registry, quantizer_entry
from tico_quantizers.calibration import Calibration, GroupedGram
from tico_quantizers.conversion import BlockQuantizer, WeightQuantizer
from tico_quantizers.layers import QuantizedWeight, Target, matrix, shape
from tico_quantizers.testing import refused, unchanged


@register_config
@attrs.frozen(kw_only=True)
class FaultyConfig(ModuleConfig):
    """A config whose quantizers go wrong."""

    name: ClassVar[str] = "faulty"


def model() -> nn.Module:
    """Return a model with one layer."""
    return nn.Sequential(nn.Linear(4, 4)).eval()


def good(target: Target[FaultyConfig]) -> QuantizedWeight:
    """Return what is right for a layer."""
    weight = matrix(target.layer).view(shape(target.layer))
    packed = PackedWeight.round_to_nearest(weight, DType.uint(4), symmetric=False, group_size=None)
    return QuantizedWeight(packed, LayerReport(path=target.path, module="Linear", algorithm="faulty"))


PREPARED: dict[str, Callable[[nn.Module], object]] = {
    "nothing": lambda root: None,
    "no module": lambda root: (3, Calibration()),
    "one": lambda root: root,
}


@pytest.mark.parametrize("case", PREPARED)
def test_what_prepare_returns_is_checked(case: str) -> None:
    """A pair of a module and a calibration."""

    class Faulty(BaseQuantizer[FaultyConfig, Calibration]):
        def prepare(self, model: nn.Module, example: object, edit: Edit) -> tuple[nn.Module, Calibration]:
            return PREPARED[case](model)  # type: ignore[return-value]  # that is the fault

        def convert(self, model: nn.Module, calibration: Calibration, edit: Edit) -> Converted:
            raise NotImplementedError

    whole = model()
    registry = Registry([quantizer_entry(FaultyConfig, Faulty)])
    with refused(whole, UnsupportedError, field="the result of Faulty.prepare"):
        prepare(whole, FaultyConfig(), registry=registry)


def result(**fields: object) -> Converted:
    """Return a result of these fields, whatever they are."""
    return Converted(**fields)  # type: ignore[arg-type]  # that is the fault


CONVERTED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "nothing": (lambda root: None, "the result of Faulty.convert"),
    "the model": (lambda root: root, "the result of Faulty.convert"),
    "a root": (lambda root: result(root=3, modules=(), report=Report()), "Converted.root"),
    "a list": (lambda root: result(root=root, modules=[root], report=Report()), "Converted.modules"),
    "modules": (lambda root: result(root=root, modules=(3,), report=Report()), "Converted.modules"),
    "a report": (lambda root: result(root=root, modules=(root,), report=[]), "Converted.report"),
}


@pytest.mark.parametrize("case", CONVERTED)
def test_what_convert_returns_is_checked(case: str) -> None:
    """A `Converted`, each of its fields too; the model stays prepared."""
    make, field = CONVERTED[case]

    class Faulty(BaseQuantizer[FaultyConfig, Calibration]):
        def prepare(self, model: nn.Module, example: object, edit: Edit) -> tuple[nn.Module, Calibration]:
            return model, Calibration()

        def convert(self, model: nn.Module, calibration: Calibration, edit: Edit) -> Converted:
            return make(model)  # type: ignore[return-value]  # that is the fault

    registry = Registry([quantizer_entry(FaultyConfig, Faulty)])
    prepared = prepare(model(), FaultyConfig(), registry=registry)
    with refused(prepared, UnsupportedError, field=field):
        convert(prepared)


def _elsewhere(target: Target[FaultyConfig]) -> QuantizedWeight:
    right = good(target)
    return attrs.evolve(right, line=attrs.evolve(right.line, path="5"))


def _of_another_shape(target: Target[FaultyConfig]) -> QuantizedWeight:
    right = good(target)
    packed = PackedWeight.round_to_nearest(torch.ones(2, 3), DType.uint(4), symmetric=False, group_size=None)
    return attrs.evolve(right, packed=packed)


WEIGHTS: dict[str, tuple[Callable[[Target[FaultyConfig]], object], str]] = {
    "a path of no layer": (_elsewhere, "line.path"),
    "another shape": (_of_another_shape, "packed"),
    "nothing": (lambda target: None, "quantize"),
}


@pytest.mark.parametrize("needs_data", [False, True])
@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_are_checked(case: str, needs_data: bool) -> None:
    """Their path, shape and type."""
    make, field = WEIGHTS[case]

    class OfWeights(WeightQuantizer[FaultyConfig]):
        def quantize(self, target: Target[FaultyConfig]) -> QuantizedWeight:
            return make(target)  # type: ignore[return-value]  # that is the fault

    class OfBlocks(BlockQuantizer[FaultyConfig]):
        def quantize(
            self, targets: tuple[Target[FaultyConfig], ...], read: GroupedGram
        ) -> list[QuantizedWeight]:
            return [make(target) for target in targets]  # type: ignore[misc]  # that is the fault

    with_data, without = quantizer_entry(FaultyConfig, OfBlocks), quantizer_entry(FaultyConfig, OfWeights)
    entry = with_data if needs_data else without
    prepared = prepare(model(), FaultyConfig(), registry=Registry([entry]))
    prepared(torch.ones(3, 4))
    with unchanged(prepared), pytest.raises(UnsupportedError) as caught:
        convert(prepared)
    assert caught.value.field == field


@pytest.mark.parametrize("result", [None, [], "weights"])
def test_every_layer_gets_a_weight(result: object) -> None:
    """As many as there were layers, in a list."""

    class OfBlocks(BlockQuantizer[FaultyConfig]):
        def quantize(
            self, targets: tuple[Target[FaultyConfig], ...], read: GroupedGram
        ) -> list[QuantizedWeight]:
            return result  # type: ignore[return-value]  # that is the fault

    registry = Registry([quantizer_entry(FaultyConfig, OfBlocks)])
    prepared = prepare(model(), FaultyConfig(), registry=registry)
    prepared(torch.ones(3, 4))
    with refused(prepared, UnsupportedError, field="the result of OfBlocks.quantize"):
        convert(prepared)
