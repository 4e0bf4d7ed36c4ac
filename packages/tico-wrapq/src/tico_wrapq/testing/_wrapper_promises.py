"""What every wrapper promises."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn

from tico_config import CalibrationError, DType, NumericsError, PTQConfig, affine, no_quant
from tico_modules import ActivationGrid, QuantizedModule, child_path, named_modules, report
from tico_quantizers.testing import TorchCalls, calls_of, same_tensors, sampled, tensors_of, unchanged
from tico_wrapq.base import REGISTRY, Frozen, QuantModuleBase
from tico_wrapq.ptq import PTQWrapper, coverage
from tico_wrapq.testing._exported import casts_among, operators_on_data
from tico_wrapq.testing._quantized_models import calibrated, convert, output_of, prepare
from tico_wrapq.testing._reload import outputs_elsewhere
from tico_wrapq.testing._wrapper_case import WrapperCase, points_in

_PART = "part"
_FAULTS = 4
_SIXTEEN = affine(DType.uint(16))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors have the same format, shape and bits."""
    return same_tensors({"": one}, {"": other})


class WrapperPromises:
    """Tests of wrappers: a subclass names the modules to try, and pytest collects it.

    The wrappers have to be found as `prepare` and `load_quantized` find them in any process: registered where
    they are defined, and offered in the entry-point groups ``tico.wrappers`` and ``tico.modules``.
    """

    cases: ClassVar[Mapping[str, WrapperCase]] = {}
    """The modules, each with its inputs and config, by a name for the test's report."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run every promise with every case."""
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases.values(), ids=list(self.cases))

    def test_wrapper_is_found(self, case: WrapperCase) -> None:
        """The registry serves the module's class, and the module gets a wrapper with points or weights."""
        kind = type(case.model().part)
        assert REGISTRY.with_installed().find(kind, case.config.variant) is not None
        wrapper = prepare(case.model(), case.config).get_submodule(_PART)
        assert isinstance(wrapper, QuantModuleBase)
        assert wrapper.is_quantized

    def test_float_function_is_kept(self, case: WrapperCase) -> None:
        """Wrapped, the output has the bits of the float module; watched too, but for `watched_error`."""
        # With gradients: without them torch's own layers may take fused kernels, which round otherwise.
        expected: Tensor = case.model()(*case.inputs)
        wrapper = PTQWrapper(case.model(), case.config)
        assert same_bits(wrapper(*case.inputs), expected)
        wrapper.enable_calibration()
        watched: Tensor = wrapper(*case.inputs)
        if case.watched_error:
            assert (watched - expected).abs().max() <= case.watched_error
        else:
            assert same_bits(watched, expected)

    def test_one_pass_reaches_every_point(self, case: WrapperCase) -> None:
        """Without data conversion is refused, naming every point; after one pass no point lacks any."""
        model = prepare(case.model(), case.config)
        waiting = sorted(point.path for point in points_in(model) if point.lacks_data)
        if case.points is not None:
            every = sorted(point.path for point in points_in(model))
            assert every == sorted(f"{_PART}.{name}" for name in case.points)
        if waiting:
            with unchanged(model), pytest.raises(CalibrationError) as caught:
                convert(model)
            assert sorted(str(problem.module) for problem in caught.value.problems) == waiting
        output_of(model, *case.inputs)
        assert [point.path for point in points_in(model) if point.lacks_data] == []

    def test_result_is_on_grids_and_near_the_float_one(self, case: WrapperCase) -> None:
        """Every point has a grid, every weight that is to have codes has them, and the output is near."""
        prepared = calibrated(case)
        asked = [point.path for point in points_in(prepared) if point.is_quantized]
        weights = _weights_to_quantize(prepared)
        model = convert(prepared)
        grids = [module for _, module in named_modules(model) if isinstance(module, ActivationGrid)]
        assert len(grids) == len(asked)
        assert all(isinstance(point.state, Frozen) for point in points_in(model) if point.is_quantized)
        assert [path for path in weights if not _holds_codes(model.get_submodule(path))] == []
        expected, found = output_of(case.model(), *case.inputs), output_of(model, *case.inputs)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert _error(found, expected) <= case.error

    def test_finer_grids_come_nearer(self, case: WrapperCase) -> None:
        """With 16 bits for weights and activations the output is no farther from the float one."""
        expected = output_of(case.model(), *case.inputs)
        eight = PTQConfig(variant=case.config.variant)
        sixteen = attrs.evolve(eight, activation=_SIXTEEN, weight=_SIXTEEN)
        models = [convert(calibrated(attrs.evolve(case, config=config))) for config in (sixteen, eight)]
        fine, coarse = (_error(output_of(model, *case.inputs), expected) for model in models)
        assert fine <= coarse

    def test_point_is_left_float_by_its_path(self, case: WrapperCase) -> None:
        """An override with `no_quant()` on the path of one point takes the grid of this one only."""
        paths = [point.path for point in points_in(calibrated(case)) if point.is_quantized]
        if len(paths) > 1:
            overrides = {**case.config.overrides, paths[0]: no_quant()}
            changed = attrs.evolve(case, config=attrs.evolve(case.config, overrides=overrides))
            model = convert(calibrated(changed))
            grids = [module for _, module in named_modules(model) if isinstance(module, ActivationGrid)]
            assert len(grids) == len(paths) - 1

    def test_hooks_are_called_in_every_state(self, case: WrapperCase) -> None:
        """The user's hooks on the module are called once a pass: float, watched and quantized."""
        model, calls = case.model(), _Calls()
        model.part.register_forward_pre_hook(calls.before)
        model.part.register_forward_hook(calls.after)
        output_of(model, *case.inputs)
        prepared = prepare(model, case.config)
        output_of(prepared, *case.inputs)
        output_of(convert(prepared), *case.inputs)
        assert calls.names == ["before", "after"] * 3

    def test_forward_passes_change_nothing(self, case: WrapperCase) -> None:
        """Quantized, a pass on other data changes no code and no grid."""
        model = convert(calibrated(case))
        with unchanged(model):
            output_of(model, *case.map_inputs(lambda x: x * 3))

    def test_deepcopy_is_a_model_of_its_own(self, case: WrapperCase) -> None:
        """A copy of a prepared model sees its own data, and converts to the same bits as the model would."""
        model = calibrated(case)
        other = copy.deepcopy(model)
        expected = tensors_of(convert(copy.deepcopy(model)))
        output_of(other, *case.map_inputs(lambda x: x * 3))
        assert same_tensors(tensors_of(convert(model)), expected)
        converted = copy.deepcopy(model)
        assert same_bits(output_of(converted, *case.inputs), output_of(model, *case.inputs))

    def test_quantized_again_keeps_its_codes(self, case: WrapperCase) -> None:
        """A second run gives every point a grid again and leaves the codes of weights as they are."""
        once = convert(calibrated(case))
        codes = {name: bits for name, bits in tensors_of(once).items() if ".packed." in name}
        count = sum(isinstance(module, ActivationGrid) for _, module in named_modules(once))
        prepared = prepare(once, attrs.evolve(case.config, overrides={}))
        output_of(prepared, *case.inputs)
        twice = convert(prepared)
        found = tensors_of(twice)
        assert same_tensors({name: found[name] for name in codes}, codes)
        assert sum(isinstance(module, ActivationGrid) for _, module in named_modules(twice)) >= count

    def test_failed_prepare_and_convert_change_nothing(self, case: WrapperCase) -> None:
        """Whatever call of torch fails in between, the model is as it was and the step can be repeated."""
        model, other = case.model(), case.model()
        for call in sampled(calls_of(lambda: prepare(other, case.config)), _FAULTS):
            with (
                unchanged(model),
                pytest.raises(MemoryError, match="injected"),
                TorchCalls(call, MemoryError),
            ):
                prepare(model, case.config)
        prepared = prepare(model, case.config)
        output_of(prepared, *case.inputs)
        output_of(other, *case.inputs)
        for call in sampled(calls_of(lambda: convert(other)), _FAULTS):
            with (
                unchanged(prepared),
                pytest.raises(MemoryError, match="injected"),
                TorchCalls(call, MemoryError),
            ):
                convert(prepared)
        assert same_tensors(tensors_of(convert(prepared)), tensors_of(convert(calibrated(case))))

    def test_data_that_are_not_finite_are_refused(self, case: WrapperCase) -> None:
        """NaN is an error that names the first point it reaches, and the pass does not count."""
        if not case.has_float_inputs:
            pytest.skip("no data are passed in")
        model = prepare(case.model(), case.config)
        before = {point.path: point.lacks_data for point in points_in(model)}
        with pytest.raises(NumericsError) as caught:
            output_of(model, *case.map_inputs(lambda x: x * torch.nan))
        assert caught.value.module == _first_reached(case)
        assert caught.value.field == "x"
        assert {point.path: point.lacks_data for point in points_in(model)} == before

    def test_bfloat16_stays_bfloat16(self, case: WrapperCase) -> None:
        """A model in bfloat16 is prepared and converted as one in float32, and its output is bfloat16."""
        halved = attrs.evolve(
            case,
            make=lambda: case.make().to(torch.bfloat16),
            inputs=case.map_inputs(lambda x: x.to(torch.bfloat16)),
        )
        try:
            expected = output_of(halved.model(), *halved.inputs)
        except NotImplementedError:
            pytest.skip("torch has no such kernel for bfloat16")
        found = output_of(convert(calibrated(halved)), *halved.inputs)
        assert found.dtype == expected.dtype
        # bfloat16 keeps 8 bits of a number: rounding a step's result costs what its grid of 8 bits does.
        assert _error(found.float(), expected.float()) <= 2 * case.error

    def test_report_and_coverage_are_complete(self, case: WrapperCase) -> None:
        """Every module that holds a parameter or a grid has a line, with its points or why it is float."""
        model = convert(calibrated(case))
        lines = {line.path for line in report(model).layers}
        assert [path for path in _paths_to_report(model) if path not in lines] == []
        bare = [line.path for line in coverage(model).lines if not line.points and not line.reason]
        assert bare == []

    def test_exported_program_has_a_pair_of_nodes_for_every_grid(self, case: WrapperCase) -> None:
        """Export gives the same bits; nothing but quantizing and dequantizing is added on the way."""
        model = convert(calibrated(case))
        grids = [module for module in model.modules() if isinstance(module, ActivationGrid)]
        static = sum(bool(grid.scale.numel()) for grid in grids)
        with torch.no_grad():
            original = torch.export.export(case.model(), case.inputs)
            program = torch.export.export(model, case.inputs)
        operators = operators_on_data(program)
        dialect = [name.split(".")[1] for name in operators if name.startswith("quantized_decomposed")]
        assert sum(name.startswith("quantize") for name in dialect) == static
        assert sum(name.startswith("dequantize") for name in dialect) == static
        if case.has_float_inputs:  # rows of an integer table are cast after they are looked up
            assert casts_among(operators) == casts_among(operators_on_data(original))
        exported = output_of(program.module(), *case.inputs)
        assert same_bits(exported, output_of(model, *case.inputs))

    def test_saved_model_gives_the_same_bits_in_another_process(self, case: WrapperCase) -> None:
        """What `convert` leaves is saved and found again through its entry points."""
        owner = next(each for each in type(self).__mro__ if "cases" in vars(each))
        [name] = [name for name, each in self.cases.items() if each is case]
        found = outputs_elsewhere(owner)[name]
        assert same_bits(found, output_of(convert(calibrated(case)), *case.inputs))


class _Calls:
    """Hooks that note when they are called."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def before(self, module: nn.Module, args: object) -> None:
        """Note a call that begins."""
        self.names.append("before")

    def after(self, module: nn.Module, args: object, output: object) -> None:
        """Note a call that has ended."""
        self.names.append("after")


def _error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value, or of 1 where that is larger."""
    return (found - expected).abs().max().item() / max(expected.abs().max().item(), 1.0)


def _weights_to_quantize(model: nn.Module) -> list[str]:
    """Return the paths of the wrappers that are to have integer weights."""
    wrappers = [(path, each) for path, each in named_modules(model) if isinstance(each, QuantModuleBase)]
    return [path for path, each in wrappers if any(spec.is_quantized for spec in each.weight_specs.values())]


def _holds_codes(module: nn.Module) -> bool:
    return any(isinstance(each, QuantizedModule) for each in module.modules())


def _paths_to_report(model: nn.Module) -> set[str]:
    """Return the paths of wrappers, integer modules and parameters' owners, but of what a wrapper keeps."""
    every = list(named_modules(model))
    wrappers = [(path, module) for path, module in every if isinstance(module, QuantModuleBase)]
    kept = {child_path(path, module.kept) for path, module in wrappers if module.kept is not None}
    known = {
        path
        for path, module in every
        if isinstance(module, QuantModuleBase | QuantizedModule) or _owns_values(module)
    }
    return known - kept


def _owns_values(module: nn.Module) -> bool:
    return any(each.numel() for each in module.parameters(recurse=False))


def _first_reached(case: WrapperCase) -> str:
    """Return the path of the first point that a pass of data that are not finite reaches with such data."""
    model = prepare(case.model(), case.config)
    reached: list[str] = []

    def note(point: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not bool(args[0].isfinite().all()):
            reached.append(str(vars(point)["path"]))

    for point in points_in(model):
        point.register_forward_pre_hook(note)
    with pytest.raises(NumericsError):
        output_of(model, *case.map_inputs(lambda x: x * torch.nan))
    return reached[0]
