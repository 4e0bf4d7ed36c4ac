"""Each promise notices the algorithm that breaks it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn

from tico_config import ConfigError, Found, ModuleConfig, NumericsError, Problem, TicoError, register_config
from tico_modules import (
    Edit,
    LayerReport,
    PackedWeight,
    QuantizedModule,
    Report,
    named_modules,
)
from tico_quantizers import Converted, Example, Planned, Registry, quantizer_entry
from tico_quantizers.layers import Layer, LayerPlan, Target, as_layer
from tico_quantizers.testing import AlgorithmPromises
from toy_quantizer import Maxima, ToyCalibration, ToyConfig, ToyQuantizer


class TestToy(AlgorithmPromises):
    """An algorithm in a few lines keeps the promises."""

    config = ToyConfig()
    registry = Registry([quantizer_entry(ToyConfig, ToyQuantizer)])
    unmet: ClassVar[Mapping[str, str]] = {"test_padding_changes_no_bit": "it knows of no masks"}


class _Blind(ToyQuantizer):
    """Looks at no data."""

    def share(self, path: str, maxima: Maxima) -> Tensor:
        return torch.ones(())

    def convert(self, model: nn.Module, calibration: ToyCalibration, edit: Edit) -> Converted:
        known = dict.fromkeys(calibration.plan.targets, torch.ones(()))
        calibration.maxima.known |= known
        return super().convert(model, calibration, edit)


class TestBlindToy(AlgorithmPromises):
    """An algorithm that looks at no data keeps the promises, that of padding included."""

    config = ToyConfig()
    registry = Registry([quantizer_entry(ToyConfig, _Blind)])
    needs_data = False


class _Mutable(ToyConfig):
    __setattr__ = object.__setattr__


class _HashedByIdentity(ToyConfig):
    __hash__ = object.__hash__


class _EqualByIdentity(ToyConfig):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@attrs.frozen(kw_only=True)
class _Unregistered(ToyConfig):
    name: ClassVar[str] = "unregistered toy"


@register_config
@attrs.frozen(kw_only=True)
class _Untyped(ModuleConfig):
    name: ClassVar[str] = "untyped toy"

    anything: object = 1


class _Negating(ToyQuantizer):
    def packed(self, layer: Layer, share: Tensor, bits: int) -> PackedWeight:
        return super().packed(layer, -share, bits)


class _Greedy(ToyQuantizer):
    """Takes everything that is a linear layer, and looks at no override."""

    def plan(self, model: nn.Module) -> LayerPlan[ToyConfig]:
        layers = {path: as_layer(module) for path, module in named_modules(model)}
        found = {
            path: Target(path, layer, self.config) for path, layer in layers.items() if layer is not None
        }
        return LayerPlan(targets=found, left={})


class _Silent(ToyQuantizer):
    def lines(self, model: nn.Module, plan: LayerPlan[ToyConfig]) -> list[LayerReport]:
        return [line for line in super().lines(model, plan) if line.path in plan.targets]


class _Idling(ToyQuantizer):
    """Plans to do nothing."""

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        return Planned(converted=Converted(root=model, modules=(model,), report=Report()))


class _NoNumber(ToyQuantizer):
    def line(self, path: str, module: nn.Module) -> LayerReport:
        return attrs.evolve(super().line(path, module), figures=(("loss", math.nan),))


class _Larger(nn.Module):
    """A layer that no file knows, with outputs in float32."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)
        return output.float() * 1.01


class _Enlarging(ToyQuantizer):
    def replacement(self, layer: Layer, packed: PackedWeight) -> nn.Module:
        return _Larger(super().replacement(layer, packed))


class _SumOfMaxima(Maxima):
    def note(self, path: str, x: Tensor) -> None:
        super().note(path, x)
        self.fresh[path] = x.detach().float().square().sum().sqrt()


class _Summing(ToyQuantizer):
    maxima = _SumOfMaxima


class _Wrapping(ToyQuantizer):
    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, ToyCalibration]:
        root, calibration = super().prepare(model, example, edit)
        return nn.Sequential(root), calibration


class _Forgetful(Maxima):
    def __deepcopy__(self, memo: dict[int, object]) -> Maxima:
        made = Maxima()
        made.known = {path: 2 * largest for path, largest in self.known.items()}
        return made


class _Forgetting(ToyQuantizer):
    maxima = _Forgetful


class _SharedMaxima(Maxima):
    def __deepcopy__(self, memo: dict[int, object]) -> Maxima:
        return self


class _Sharing(ToyQuantizer):
    maxima = _SharedMaxima


class _Marking(ToyQuantizer):
    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, ToyCalibration]:
        vars(model)["mine"] = torch.zeros(())
        return super().prepare(model, example, edit)


class _Irrevocable(ToyQuantizer):
    def put(self, root: nn.Module, path: str, new: nn.Module, edit: Edit) -> nn.Module:
        root.set_submodule(path, new)
        return root


class _Consuming(ToyQuantizer):
    def share(self, path: str, maxima: Maxima) -> Tensor:
        largest = maxima.known.pop(path)
        return 1 - torch.sqrt(largest) / 1024


class _HastyMaxima(Maxima):
    def note(self, path: str, x: Tensor) -> None:
        super().note(path, x)
        self.digest()
        self.accept()


class _Hasty(ToyQuantizer):
    maxima = _HastyMaxima


class _Pathless(_Greedy):
    def packed(self, layer: Layer, share: Tensor, bits: int) -> PackedWeight:
        if not bool(torch.isfinite(layer.weight).all()):
            raise NumericsError(Problem(field="weight", value=Found("NaN"), expected="finite"))
        return super().packed(layer, share, bits)


class _PathlessMaxima(Maxima):
    def note(self, path: str, x: Tensor) -> None:
        try:
            super().note(path, x)
        except NumericsError as error:
            raise NumericsError(attrs.evolve(error.problems[0], module=None)) from None


class _PathlessData(ToyQuantizer):
    maxima = _PathlessMaxima


class _Careless(ToyCalibration):
    def begin(self, modal: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        super().begin([], args, kwargs)


class _CarelessQuantizer(ToyQuantizer):
    calibration = _Careless


class _Muting(ToyQuantizer):
    def convert(self, model: nn.Module, calibration: ToyCalibration, edit: Edit) -> Converted:
        warnings.simplefilter("ignore", category=ResourceWarning)
        return super().convert(model, calibration, edit)


class _Running(ToyQuantizer):
    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, ToyCalibration]:
        model(*(example or Example()).args)
        return super().prepare(model, example, edit)


class _Labelling(ToyQuantizer):
    def convert(self, model: nn.Module, calibration: ToyCalibration, edit: Edit) -> Converted:
        edit.set_attribute(model, "mine", 1)
        return super().convert(model, calibration, edit)


class _Freezing(ToyQuantizer):
    def convert(self, model: nn.Module, calibration: ToyCalibration, edit: Edit) -> Converted:
        model.requires_grad_(False)
        return super().convert(model, calibration, edit)


class _Inferring(ToyQuantizer):
    def packed(self, layer: Layer, share: Tensor, bits: int) -> PackedWeight:
        with torch.inference_mode():
            return super().packed(layer, share, bits)


class _Picky(ToyQuantizer):
    """Fails on integers."""

    def plan(self, model: nn.Module) -> LayerPlan[ToyConfig]:
        if any(isinstance(module, QuantizedModule) for module in model.modules()):
            raise KeyError("integers")
        return super().plan(model)


def _threads(*, plus: float) -> type[ToyQuantizer]:
    class Threaded(ToyQuantizer):
        def share(self, path: str, maxima: Maxima) -> Tensor:
            return super().share(path, maxima) - plus * torch.get_num_threads()

    return Threaded


CONFIGS: dict[str, Callable[[], ModuleConfig]] = {
    "test_config_is_frozen": _Mutable,
    "test_config_is_hashable": _HashedByIdentity,
    "test_config_survives_pickle_and_deepcopy": _EqualByIdentity,
    "test_config_round_trips_through_json": _Unregistered,
    "test_wrong_field_type_is_refused_at_construction": _Untyped,
}
QUANTIZERS: dict[str, type[ToyQuantizer]] = {
    "test_output_is_near_the_float_one": _Negating,
    "test_model_with_a_convolution_is_near_the_float_one": _Negating,
    "test_override_that_matches_nothing_is_refused": _Greedy,
    "test_override_on_a_relu_says_that_it_is_one": _Greedy,
    "test_tied_weights_stay_tied_or_are_reported": _Greedy,
    "test_subclass_with_a_forward_of_its_own_keeps_it": _Greedy,
    "test_report_has_a_line_for_every_module_with_a_float_parameter": _Silent,
    "test_report_round_trips_through_json": _NoNumber,
    "test_report_says_what_was_planned": _Idling,
    "test_saved_model_gives_the_same_bits": _Enlarging,
    "test_number_of_threads_changes_no_bit": _threads(plus=2**-10),
    "test_split_into_batches_changes_no_bit": _Summing,
    "test_padding_changes_no_bit": ToyQuantizer,
    "test_bfloat16_stays_bfloat16": _Enlarging,
    "test_inplace_returns_the_very_object": _Wrapping,
    "test_place_makes_no_difference": _Forgetting,
    "test_deepcopy_of_a_prepared_model_calibrates_alone": _Sharing,
    "test_failed_prepare_changes_nothing": _Marking,
    "test_prepare_that_fails_to_set_a_hook_changes_nothing": _Marking,
    "test_failed_convert_changes_nothing": _Irrevocable,
    "test_failed_convert_loses_no_calibration": _Consuming,
    "test_failed_forward_does_not_count": _Hasty,
    "test_no_data_is_an_error": _Blind,
    "test_nan_in_a_weight_is_refused_with_the_path": _Pathless,
    "test_nan_in_data_is_refused_with_a_path": _PathlessData,
    "test_training_mode_is_refused": _CarelessQuantizer,
    "test_nothing_global_changes": _Muting,
    "test_hooks_are_called_as_often_as_the_model": _Running,
    "test_nothing_is_left_on_float_modules": _Labelling,
    "test_gradients_and_modes_stay": _Freezing,
    "test_result_takes_part_in_gradients": _Inferring,
    "test_before_ptq": _Negating,
    "test_after_ptq": _Picky,
    "test_after_smoothquant": _Negating,
    "test_after_itself": _Picky,
}
COPYING = (
    "test_work_on_a_copy_leaves_the_argument_untouched",
    "test_convert_on_a_copy_leaves_the_model_prepared",
)


_TOY = ToyConfig()


def _run(
    name: str, folder: Path, config: ModuleConfig = _TOY, quantizer: type[ToyQuantizer] = ToyQuantizer
) -> None:
    """Run one promise on an algorithm."""

    class Suite(AlgorithmPromises):
        pass

    Suite.config, Suite.registry = config, Registry([quantizer_entry(ToyConfig, quantizer)])
    with warnings.catch_warnings():
        if name == "test_saved_model_gives_the_same_bits":
            Suite().test_saved_model_gives_the_same_bits(folder)
        else:
            test: Callable[[], None] = getattr(Suite(), name)
            test()


_NOTICED = (AssertionError, pytest.fail.Exception, TicoError, KeyError, RuntimeError)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_that_breaks_a_promise_is_noticed(name: str, tmp_path: Path) -> None:
    """A config that is none is told by the promise that it breaks."""
    with pytest.raises(_NOTICED):
        _run(name, tmp_path, CONFIGS[name]())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantizer_that_breaks_a_promise_is_noticed(name: str, tmp_path: Path) -> None:
    """A quantizer with one fault is told by the promise that it breaks."""
    with pytest.raises(_NOTICED):
        _run(name, tmp_path, quantizer=QUANTIZERS[name])


@pytest.mark.parametrize("name", COPYING)
def test_work_on_no_copy_is_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were no copy made, the promises of `inplace` would tell."""
    monkeypatch.setattr("tico_quantizers.lifecycle._lifecycle.detached_copy", lambda model: model)
    with pytest.raises(_NOTICED):
        _run(name, tmp_path)


def test_every_promise_is_tried() -> None:
    """No promise is without an algorithm that breaks it."""
    promises = {name for name in dir(AlgorithmPromises) if name.startswith("test_")}
    assert promises == {*CONFIGS, *QUANTIZERS, *COPYING}


def test_unmet_names_only_promises() -> None:
    """A name in `unmet` that is no test is refused when the class is made."""
    with pytest.raises(ConfigError) as caught:
        type("Suite", (AlgorithmPromises,), {"unmet": {"test_no_such_thing": "it does not exist"}})
    assert (caught.value.field, caught.value.value) == ("unmet", "test_no_such_thing")
