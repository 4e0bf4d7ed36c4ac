"""Which layers a config reaches, what the report says of the others, and what is saved."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tico_config import ConfigError, TicoError, UnsupportedError
from tico_modules import Report, RestorableModule, load_quantized, named_modules, report, save_quantized
from tico_quantizers.lifecycle import convert, plan
from tico_quantizers.planning import differences
from tico_quantizers.testing._model_state import same_tensors, tensors_of, unchanged
from tico_quantizers.testing._models import VOCABULARY, Fourfold, TiedHead, seeded, values
from tico_quantizers.testing._promises.suite import PromiseSuite, attempted, same_output


class LayerPromises(PromiseSuite):
    """The promises about layers, overrides, reports and files."""

    def test_output_is_near_the_float_one(self) -> None:
        """A quantized model computes about what the float one does."""
        batch = self.batches()[0]
        self.require_near(self.quantized()(batch), self.model()(batch))

    def test_model_with_a_convolution_is_near_the_float_one(self) -> None:
        """The convolution is quantized or left alone; either way the model computes about what it did."""
        batch = self.conv_batches()[0]
        expected = self.conv_model()(batch)
        self.require_near(self.quantized(self.conv_model(), [batch])(batch), expected)

    def test_override_that_matches_nothing_is_refused(self) -> None:
        """The error is a ConfigError about `overrides` that names the nearest path."""
        model, path = self.model(), self.layer_paths()[-1]
        with unchanged(model), pytest.raises(ConfigError) as caught:
            self.prepared(model, self.batches()[0], config=self.overridden(f"{path}x"))
        assert (caught.value.field, caught.value.value) == ("overrides", f"{path}x")
        assert f"'{path}'" in str(caught.value) or f"'{path}." in str(caught.value)

    def test_override_on_a_relu_says_that_it_is_one(self) -> None:
        """The report has a line of the ReLU with a grid, or a ConfigError says that the path is a ReLU."""
        found = [path for path, module in named_modules(self.model()) if isinstance(module, nn.ReLU)]
        config, batches = self.overridden(found[0]), self.batches()[:1]
        outcome = attempted(lambda: self.calibrated(self.model(), batches, config), ConfigError)
        if isinstance(outcome, ConfigError):
            assert outcome.field == "overrides"
            assert "ReLU" in str(outcome)
        else:
            lines = report(convert(outcome)).layers
            assert any("relu" in line.module.lower() and line.activation != "float" for line in lines)

    def test_tied_weights_stay_tied_or_are_reported(self) -> None:
        """Embedding and head share memory afterwards, or the line of each names the other."""
        tokens = torch.arange(2 * VOCABULARY).view(4, -1) % VOCABULARY
        converted = self.quantized(seeded(TiedHead), [tokens])
        if not self.are_tied(converted, "embed", "head"):
            lines = {line.path: line.reason for line in report(converted).layers}
            assert "head" in lines.get("embed", "")
            assert "embed" in lines.get("head", "")

    def are_tied(self, converted: nn.Module, one: str, other: str) -> bool:
        """Tell whether the modules at two paths of a converted model share memory."""
        tensors = [converted.get_submodule(path).state_dict().values() for path in (one, other)]
        memory, others = ({tensor.data_ptr() for tensor in each if tensor.numel()} for each in tensors)
        return not memory.isdisjoint(others)

    def test_subclass_with_a_forward_of_its_own_keeps_it(self) -> None:
        """A layer that computes more than its class is left alone or refused, not replaced by a plain one."""
        batch = values(0, 4, 6, 8)
        model = self.unlike_model()
        path = next(path for path, module in named_modules(model) if isinstance(module, Fourfold))
        expected = model(batch)
        outcome = attempted(lambda: self.quantized(model, [batch]), TicoError)
        if isinstance(outcome, TicoError):
            assert path in str(outcome)
        else:
            self.require_near(outcome(batch), expected)

    def test_report_has_a_line_for_every_module_with_a_float_parameter(self) -> None:
        """Each line names the algorithm, also where it has left the module alone."""
        converted = self.quantized(self.conv_model(), self.conv_batches()[:1])
        assert _silent(self.model(), report(self.quantized()), self.config.name) == []
        assert _silent(self.conv_model(), report(converted), self.config.name) == []

    def test_report_round_trips_through_json(self) -> None:
        """`Report.from_json` gives back what `to_json` was given."""
        found = report(self.quantized())
        assert found.layers
        assert Report.from_json(found.to_json()) == found

    def test_report_says_what_was_planned(self) -> None:
        """There is no plan, or `convert` reports what was planned, module by module and byte by byte."""
        both = ((self.model(), self.batches()[:1]), (self.conv_model(), self.conv_batches()[:1]))
        for model, batches in both:
            with unchanged(model):
                made = attempted(partial(plan, model, self.config, registry=self.serves()), UnsupportedError)
            if not isinstance(made, UnsupportedError):
                assert differences(made, self.quantized(model, batches)) == []

    def test_saved_model_gives_the_same_bits(self, tmp_path: Path) -> None:
        """A file loads to the same tensors; a result without integer modules is refused by name."""
        converted, batch = self.quantized(), self.batches()[1]
        if not any(isinstance(module, RestorableModule) for _, module in named_modules(converted)):
            with pytest.raises(UnsupportedError):
                save_quantized(converted, tmp_path)
            return
        save_quantized(converted, tmp_path)
        loaded = load_quantized(tmp_path, self.model())
        assert same_tensors(tensors_of(loaded), tensors_of(converted))
        assert same_output(loaded, converted, batch)
        assert report(loaded) == report(converted)


def _silent(model: nn.Module, found: Report, algorithm: str) -> list[str]:
    """Return the paths of modules with float parameters of their own that `algorithm` has no line for."""
    said = {line.path for line in found.layers if line.algorithm == algorithm}
    return [
        path
        for path, module in named_modules(model)
        if path not in said
        and any(parameter.is_floating_point() for parameter in module.parameters(recurse=False))
    ]
