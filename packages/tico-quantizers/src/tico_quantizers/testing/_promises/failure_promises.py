"""What holds after an error: nothing has changed, and the call works the next time."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tico_config import CalibrationError, NumericsError
from tico_modules import named_modules
from tico_quantizers.lifecycle import convert
from tico_quantizers.testing._faults import HookRegistrations, calls_of, sampled
from tico_quantizers.testing._model_state import same_tensors, tensors_of, unchanged
from tico_quantizers.testing._promises.suite import PromiseSuite


class FailurePromises(PromiseSuite):
    """The promises about errors in the middle of a call, and about data that can't be used."""

    def test_failed_prepare_changes_nothing(self) -> None:
        """Wherever torch raises, model and process are as they were, and preparing works the next time."""
        expected, batch = tensors_of(self.quantized()), self.batches()[0]
        model = self.model()
        count = calls_of(lambda: self.prepared(self.model(), batch)) - calls_of(self.model)
        for fails in self.faulty(sampled(count, self.faults)):
            with unchanged(model):
                fails(lambda: self.prepared(model, batch))
        assert same_tensors(tensors_of(self.quantized(model)), expected)

    def test_prepare_that_fails_to_set_a_hook_changes_nothing(self) -> None:
        """Whichever forward hook can't be registered, the others are gone, and the next try works."""
        expected, batch = tensors_of(self.quantized()), self.batches()[0]
        model = self.model()
        with HookRegistrations() as registrations:
            self.prepared(self.model(), batch)
        for number in sampled(registrations.count, 3 * self.faults):
            # Code between may catch any other exception and try something else.
            error = KeyboardInterrupt
            with unchanged(model), pytest.raises(error), HookRegistrations(number, error):
                self.prepared(model, batch)
        assert same_tensors(tensors_of(self.quantized(model)), expected)

    def test_failed_convert_changes_nothing(self) -> None:
        """Wherever torch raises, the model is still prepared, and converting it gives the same bits."""
        data = self.batches()[:2]
        expected = tensors_of(self.quantized(batches=data))
        model = self.calibrated(self.model(), data)
        other = copy.deepcopy(model)
        for fails in self.faulty(sampled(calls_of(partial(convert, other)), self.faults)):
            with unchanged(model):
                fails(lambda: convert(model))
        assert same_tensors(tensors_of(convert(model)), expected)

    def test_failed_convert_loses_no_calibration(self) -> None:
        """Data after a conversion that failed count like those before it."""
        one, two, _ = self.batches()
        expected = tensors_of(self.quantized(batches=[one, two]))
        model = self.calibrated(self.model(), [one])
        other = copy.deepcopy(model)
        for fails in self.faulty(sampled(calls_of(partial(convert, other)), 3)):
            fails(lambda: convert(model))
        model(two)
        assert same_tensors(tensors_of(convert(model)), expected)

    def test_failed_forward_does_not_count(self) -> None:
        """Wherever a forward pass fails, the passes before and after it count, and it does not."""
        one, two, three = self.batches()
        # An order of magnitude beyond the others, so that a pass that counts moves every range.
        two = 10 * two
        expected = tensors_of(self.quantized(batches=[one, three]))
        calibrated = self.calibrated(self.model(), [one])
        count = calls_of(lambda: copy.deepcopy(calibrated)(two)) - calls_of(lambda: copy.deepcopy(calibrated))
        for fails in self.faulty(sampled(count, self.faults)):
            model = copy.deepcopy(calibrated)
            with unchanged(model):
                fails(lambda: model(two))  # noqa: B023  # called at once
            model(three)
            assert same_tensors(tensors_of(convert(model)), expected)

    def test_no_data_is_an_error(self) -> None:
        """Converting without data is a CalibrationError that names a module, where data decide."""
        model = self.prepared(self.model(), self.batches()[0])
        if not self.needs_data:
            self.require_near(convert(model)(self.batches()[0]), self.model()(self.batches()[0]))
            return
        with unchanged(model), pytest.raises(CalibrationError) as caught:
            convert(model)
        self._require_path(caught.value.module, self._paths())

    def test_nan_in_a_weight_is_refused_with_the_path(self) -> None:
        """The error is a NumericsError that names the layer."""
        model, path = self.model(), self.layer_paths()[-1]
        layer = model.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        with torch.no_grad():
            layer.weight[1, 2] = torch.nan
        with pytest.raises(NumericsError) as caught:
            self.quantized(model)
        self._require_path(caught.value.module, [path])

    def test_nan_in_data_is_refused_with_a_path(self) -> None:
        """The error is a NumericsError that names a module; good data alone then give the same bits."""
        if not self.needs_data:
            pytest.skip("data are not looked at")
        one, two, _ = self.batches()
        two[0] = torch.nan
        expected = tensors_of(self.quantized(batches=[one]))
        model = self.calibrated(self.model(), [one])
        with pytest.raises(NumericsError) as caught:
            _feed_and_convert(model, two)
        self._require_path(caught.value.module, self._paths())
        assert same_tensors(tensors_of(convert(model)), expected)

    def test_training_mode_is_refused(self) -> None:
        """Where a module depends on its mode, calibration in training mode names it."""
        batch = self.batches()[0]
        model = nn.Sequential(self.model(), nn.Dropout(0.5).train())
        with pytest.raises(CalibrationError) as caught:
            self.calibrated(model, [batch])
        assert (caught.value.field, caught.value.module) == ("training", "1")

    def _paths(self) -> list[str]:
        return [path for path, _ in named_modules(self.model()) if path]

    def _require_path(self, module: str | None, paths: list[str]) -> None:
        """Assert that `module` is one of `paths` or a point of one."""
        assert module is not None
        assert any(module == path or module.startswith(f"{path}.") for path in paths)


def _feed_and_convert(model: nn.Module, batch: Tensor) -> nn.Module:
    model(batch)
    return convert(model)
