"""What the coverage says, before and after conversion, and after loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import (
    GPTQConfig,
    PTQConfig,
    convert,
    coverage,
    load_quantized,
    prepare,
    report,
    save_quantized,
)
from tico.quantization.config import BaseConfig, DType, NumericsError, no_quant
from tico_quantizers import QuantizedModule
from tico_wrapq import Coverage
from tiny_models import TOKENS, images, net, tiny_llama, values


def _paths(found: Coverage) -> list[str]:
    return [line.path for line in found.lines]


def _converted(model: nn.Module, config: BaseConfig) -> nn.Module:
    prepared = prepare(model, config)
    prepared(TOKENS if isinstance(config, PTQConfig) and model.__class__.__name__ != "Net" else images(0))
    return convert(prepared)


def test_prepared_model_lists_points_and_reasons() -> None:
    """What will be quantized, and why the rest will not, is known before any data are run."""
    model = prepare(net(), PTQConfig(overrides={"head.2": no_quant()}))
    lines = {line.path: line for line in coverage(model).lines}
    conv = ("weight uint8 asymmetric", "act_in uint8 asymmetric", "act_out uint8 asymmetric")
    assert lines["conv"].points == conv
    assert lines["norm"].points == conv
    assert lines["head.2"].reason == "the config leaves it float"
    assert lines["drop"].reason == "it does nothing in evaluation mode"
    assert coverage(model).share == 0.0


def test_converted_model_lists_what_stands_there() -> None:
    """Codes and grids are read off the modules themselves."""
    model = _converted(net(), PTQConfig())
    lines = {line.path: line for line in coverage(model).lines}
    assert list(lines) == ["", "conv", "norm", "drop", "head.0", "head.1", "head.2"]
    assert lines["conv"].module == "QuantizedConv2d"
    assert lines["conv"].points == ("weight uint8", "act_in uint8 static", "act_out uint8 static")
    assert lines["head.1"].points == ("act_in uint8 static", "act_out uint8 static")


def test_every_float_module_has_a_reason() -> None:
    """Nothing is left out without being told why."""
    model = _converted(tiny_llama(), PTQConfig())
    assert [line.path for line in coverage(model).lines if not line.points and not line.reason] == []


def test_share_counts_every_weight_once() -> None:
    """Codes that two layers share are one weight, as the parameter was."""
    tied = tiny_llama(tied=True)
    total = sum(parameter.numel() for parameter in tied.parameters())
    norms = sum(parameter.numel() for parameter in tied.parameters() if parameter.ndim == 1)
    found = coverage(_converted(tied, PTQConfig()))
    assert (found.parameters, found.quantized_parameters) == (total, total - norms)


@pytest.mark.parametrize("config", [PTQConfig(), GPTQConfig(show_progress=False)], ids=lambda c: c.name)
def test_coverage_and_report_agree_with_the_modules(config: BaseConfig) -> None:
    """Whatever is integer is listed as such, and nothing else."""
    model = _converted(net(), config)
    integer = {path for path, module in model.named_modules() if isinstance(module, QuantizedModule)}
    listed = {line.path for line in coverage(model).lines if any("weight" in point for point in line.points)}
    reported = {line.path for line in report(model).layers if line.weight != "float"}
    assert integer == listed == reported
    assert len(integer) == (4 if isinstance(config, PTQConfig) else 3)


def test_loaded_model_has_the_same_coverage(tmp_path: Path) -> None:
    """Points of wrappers that stay are listed after loading too."""
    model = _converted(tiny_llama(), PTQConfig())
    save_quantized(model, tmp_path)
    loaded = coverage(load_quantized(tmp_path))
    assert loaded == coverage(model)


def test_text_and_json_hold_every_line() -> None:
    """Both forms tell the same as the value."""
    found = coverage(_converted(net(), PTQConfig()))
    assert [line["path"] for line in json.loads(found.to_json())["lines"]] == _paths(found)
    table = str(found).splitlines()
    assert len(table) == len(found.lines) + 5
    assert table[-2] == f"{found.share:.1%} of {found.parameters} parameters are quantized"


def _outlier() -> Tensor:
    x = values(0, 50, 16)
    x[:, 3] *= 1000
    return x


def test_channel_that_takes_the_range_stands_out() -> None:
    """Before and after conversion, in the coverage and in the report, at its point and nowhere else."""
    model = prepare(nn.Sequential(nn.Linear(16, 16), nn.ReLU()).eval(), PTQConfig())
    model(_outlier())
    shares = {line.path: dict(line.taken_by_one) for line in coverage(model).lines}
    magnitudes = _outlier().abs().amax(0)
    assert shares["0"]["act_in"] == 1 - float(magnitudes.median()) / float(magnitudes.amax())
    assert shares["0"]["act_out"] < 0.99
    with pytest.warns(UserWarning, match=r"nearly all of the range of 0\.act_in 99\.90%, and a grid"):
        convert(model)
    [line, _] = coverage(model).lines
    assert line.taken_by_one == (("act_in", shares["0"]["act_in"]),)
    assert coverage(model).spoiled == (("0.act_in", shares["0"]["act_in"]),)
    assert "act_in 99.90% |" in coverage(model).to_markdown()
    assert str(coverage(model)).endswith("at least 99% of the range of 1 points: 0.act_in 99.90%")
    assert "act_in range taken by one channel" in str(report(model))


def test_sixteen_bits_need_no_warning() -> None:
    """They leave hundreds of codes for the other channels; the report names the point all the same."""
    model = prepare(
        nn.Sequential(nn.Linear(16, 16), nn.ReLU()).eval(),
        PTQConfig(overrides={"0.act_in": {"dtype": DType.uint(16)}}),
    )
    model(_outlier())
    convert(model)
    assert [path for path, _ in coverage(model).spoiled] == ["0.act_in"]


@pytest.mark.parametrize("split", [[50], [20, 30], [1, 49]], ids=str)
def test_share_of_a_channel_does_not_depend_on_the_split(split: list[int]) -> None:
    """Batches of any size give the same bits."""
    model = prepare(nn.Sequential(nn.Linear(16, 16)).eval(), PTQConfig())
    for part in torch.split(_outlier(), split):
        model(part)
    magnitudes = _outlier().abs().amax(0)
    [line] = coverage(model).lines
    assert dict(line.taken_by_one)["act_in"] == 1 - float(magnitudes.median()) / float(magnitudes.amax())


class _Levels(nn.Module):
    """One layer for the same input at several levels."""

    def __init__(self, *levels: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.levels = nn.Linear(8, 8), levels

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs, brought to one level."""
        return torch.cat([self.layer(x * level) / level for level in self.levels], -1)


def test_module_whose_calls_differ_in_range_stands_out() -> None:
    """With the range of each call over all passes, while it is prepared and afterwards."""
    model = prepare(_Levels(1.0, 10.0, 100.0).eval(), PTQConfig(steps="declared"))
    x = values(0, 20, 8)
    model(x)
    model(-2 * x)
    low, high = min(x.min().item(), -2 * x.max().item()), max(x.max().item(), -2 * x.min().item())
    paths = ["layer.act_in", "layer.act_out"]
    for found in (coverage(model), coverage(convert(model))):
        uneven = dict(found.uneven_calls)
        assert list(uneven) == paths
        assert uneven["layer.act_in"][0] == (low, high)
        assert uneven["layer.act_in"][2] == pytest.approx((100 * low, 100 * high))
        assert "one grid serves calls of different ranges at 2 points: layer.act_in" in str(found)


@pytest.mark.parametrize("levels", [(1.0,), (1.0, 3.9), (2.0, 1.0, 3.0)], ids=str)
def test_calls_of_like_ranges_are_not_named(levels: tuple[float, ...]) -> None:
    """A module that is called once, or in ranges that are within two bits of each other."""
    model = prepare(_Levels(*levels).eval(), PTQConfig(overrides={"layer.act_out": no_quant()}))
    model(values(0, 20, 8))
    assert coverage(model).uneven_calls == ()


def test_refused_pass_leaves_no_call_behind() -> None:
    """What a pass that raised has shown is not taken for the first call of the next one."""
    model = prepare(_Levels(1.0).eval(), PTQConfig())
    with pytest.raises(NumericsError):
        model(values(0, 20, 8) * torch.nan)
    model(values(0, 20, 8))
    model(100 * values(0, 20, 8))
    assert coverage(model).uneven_calls == ()


def test_multiplications_are_counted_from_the_shapes_seen() -> None:
    """Every call of every layer counts: outputs times what each of them takes."""
    config = PTQConfig(overrides={"head.2": no_quant(), "head.0.act_in": no_quant()})
    model = prepare(net(), config)
    assert (coverage(model).macs, coverage(model).macs_share) == (None, None)
    assert "is unknown" in str(coverage(model))
    model(images(0, 3))
    model(images(1, 2))
    conv, first, last = 5 * 3 * 16 * 2 * 9, 5 * 8 * 48, 5 * 4 * 8
    for found in (coverage(model), coverage(convert(model))):
        macs = {line.path: line.macs for line in found.lines if line.macs is not None}
        assert macs == {"conv": conv, "head.0": first, "head.2": last}
        assert found.macs == conv + first + last
        assert found.macs_share == conv / (conv + first + last)


def test_pass_that_fails_multiplies_nothing() -> None:
    """What did not end well does not count."""
    model = prepare(net(), PTQConfig())
    with pytest.raises(RuntimeError):
        model(images(0)[:, :, :3])
    assert coverage(model).macs is None


def test_part_that_is_called_by_itself_multiplies_too() -> None:
    """It counts once it has ended."""
    model = prepare(net(), PTQConfig())
    model.get_submodule("head")(values(0, 2, 48))
    assert coverage(model).macs == 2 * (48 * 8 + 8 * 4)
