"""What was seen once serves other configs, processes and machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tico.quantization import (
    PTQConfig,
    convert,
    coverage,
    load_calibration,
    prepare,
    save_calibration,
)
from tico.quantization.config import (
    ArtifactError,
    CalibrationError,
    DType,
    EMASpec,
    HistogramSpec,
    LifecycleError,
    MinMaxSpec,
    MSESpec,
    ObserverSpec,
    PercentileSpec,
    affine,
    no_quant,
)
from tico_config import EntropySpec, PerChannel, PerToken
from tico_observers import Statistic, load_statistics, save_statistics
from tico_quantizers.testing import refused, same_tensors, tensors_of
from tico_wrapq import PTQWrapper
from tiny_models import TOKENS, images, net, tiny_llama

HISTOGRAM = PTQConfig(activation=affine(DType.uint(8), observer=HistogramSpec()))


def _config(bits: int, observer: ObserverSpec) -> PTQConfig:
    return PTQConfig(activation=affine(DType.int(bits), observer=observer), weight=affine(DType.int(bits)))


def _calibrated(config: PTQConfig, *seeds: int) -> nn.Module:
    model = prepare(net(), config)
    for seed in seeds:
        model(images(seed))
    return model


@pytest.fixture
def histograms(tmp_path: Path) -> Path:
    """Return a file of the histograms of three batches."""
    save_calibration(_calibrated(HISTOGRAM, 0, 1, 2), tmp_path / "seen")
    return tmp_path / "seen"


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize(
    "observer",
    [MinMaxSpec(), HistogramSpec(), PercentileSpec(1.0, 99.0), MSESpec(20), EntropySpec(20)],
    ids=lambda spec: type(spec).__name__,
)
def test_histogram_serves_every_config(histograms: Path, bits: int, observer: ObserverSpec) -> None:
    """The grids are those that the data themselves would have given, bit for bit, without running them."""
    config = _config(bits, observer)
    loaded = prepare(net(), config)
    load_calibration(loaded, histograms)
    expected = _calibrated(config, 0, 1, 2)
    assert coverage(loaded).lines[1].taken_by_one == coverage(expected).lines[1].taken_by_one
    assert same_tensors(tensors_of(convert(loaded)), tensors_of(convert(expected)))


@pytest.mark.parametrize("observer", [MinMaxSpec(), HistogramSpec(), PercentileSpec()], ids=str)
def test_parts_of_the_data_may_be_seen_elsewhere(tmp_path: Path, observer: ObserverSpec) -> None:
    """Files of several processes, and data of one's own, add up in any order."""
    config = _config(8, observer)
    for seed in (0, 1):
        save_calibration(_calibrated(config, seed), tmp_path / f"seen {seed}")
    model = _calibrated(config, 2)
    for seed in (1, 0):
        load_calibration(model, tmp_path / f"seen {seed}")
    expected = _calibrated(config, 0, 1, 2)
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(expected)))


def test_data_seen_after_loading_count_too(histograms: Path) -> None:
    """A loaded model is calibrated further as any other."""
    model = prepare(net(), _config(8, MinMaxSpec()))
    load_calibration(model, histograms)
    model(images(3))
    expected = _calibrated(_config(8, MinMaxSpec()), 0, 1, 2, 3)
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(expected)))


def test_moving_average_is_taken_up_where_it_was(tmp_path: Path) -> None:
    """What depends on order can be saved and gone on with, in the same order."""
    config = _config(8, EMASpec(0.5))
    save_calibration(_calibrated(config, 0, 1), tmp_path / "seen")
    model = prepare(net(), config)
    load_calibration(model, tmp_path / "seen")
    model(images(2))
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(_calibrated(config, 0, 1, 2))))


@pytest.mark.parametrize(
    ("saved", "wanted", "names"),
    [
        (MinMaxSpec(), PercentileSpec(), ("RangeStatistic", "HistogramStatistic")),
        (HistogramSpec(), EMASpec(), ("HistogramStatistic", "EMAStatistic")),
        (EMASpec(0.5), MinMaxSpec(), ("EMAStatistic", "RangeStatistic")),
    ],
    ids=str,
)
def test_other_kind_of_statistic_is_refused(
    tmp_path: Path, saved: ObserverSpec, wanted: ObserverSpec, names: tuple[str, str]
) -> None:
    """Every point is named, with both kinds, and the model is as it was."""
    save_calibration(_calibrated(_config(8, saved), 0), tmp_path / "seen")
    model = prepare(net(), _config(8, wanted))
    with refused(model, CalibrationError, field="statistics", module="conv.act_in") as error:
        load_calibration(model, tmp_path / "seen")
    assert len(error.value.problems) == 10
    assert all(name in str(error.value) for name in names)
    with pytest.raises(CalibrationError, match="data"):
        convert(model)


def test_other_units_are_refused(tmp_path: Path) -> None:
    """A range of the whole tensor is none of each channel."""
    save_calibration(_calibrated(_config(8, HistogramSpec()), 0), tmp_path / "seen")
    channels = affine(DType.uint(8), granularity=PerChannel(1))
    model = prepare(net(), PTQConfig(overrides={"conv.act_in": channels}))
    with refused(model, CalibrationError, field="granularity", module="conv.act_in"):
        load_calibration(model, tmp_path / "seen")


def test_second_moving_average_is_refused(tmp_path: Path) -> None:
    """Two averages cannot be merged; what was seen before counts on."""
    config = _config(8, EMASpec(0.5))
    model = _calibrated(config, 0)
    save_calibration(model, tmp_path / "seen")
    with refused(model, CalibrationError, field="merge", module="conv.act_in"):
        load_calibration(model, tmp_path / "seen")
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(_calibrated(config, 0))))


def test_points_that_are_float_or_dynamic_are_left_out(histograms: Path) -> None:
    """A config that needs fewer points is served; what it does not need is not asked for."""
    dynamic = affine(DType.int(8), granularity=PerToken())
    model = prepare(net(), PTQConfig(overrides={"conv": no_quant(), "head.0.act_in": dynamic}))
    load_calibration(model, histograms)
    assert convert(model)(images(0)).shape == (3, 4)


def test_file_of_another_model_is_refused_with_every_difference(histograms: Path) -> None:
    """The fingerprint tells it, and every module that the model lacks is listed."""
    model = prepare(nn.Sequential(nn.Linear(4, 4)).eval(), PTQConfig())
    with refused(model, ArtifactError, field="model", module=str(histograms)) as error:
        load_calibration(model, histograms)
    fields = [problem.field for problem in error.value.problems]
    assert fields == ["model", "conv", "head.0", "head.1", "head.2", "norm"]


def test_points_are_compared_where_there_is_no_fingerprint(histograms: Path) -> None:
    """Of a file without one, points that it lacks and points that it has too many are all listed."""
    save_statistics(histograms, without_ranges_of_layers(histograms))
    model = prepare(nn.Sequential(nn.Linear(4, 4)).eval(), PTQConfig())
    with refused(model, ArtifactError, field="0.act_in", module=str(histograms)) as error:
        load_calibration(model, histograms)
    fields = [problem.field for problem in error.value.problems]
    assert fields[:2] == ["0.act_in", "0.act_out"]
    assert len(fields) == 12
    assert "conv.act_in" in fields


def test_file_from_before_there_were_fingerprints_is_loaded(histograms: Path) -> None:
    """Files of points alone, without an origin, go on to serve their model."""
    save_statistics(histograms, without_ranges_of_layers(histograms))
    model = prepare(net(), HISTOGRAM)
    load_calibration(model, histograms)
    expected = _calibrated(HISTOGRAM, 0, 1, 2)
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(expected)))


def without_ranges_of_layers(path: Path) -> dict[str, Statistic]:
    """Return what files of points held before they served other algorithms."""
    return {name: each for name, each in load_statistics(path).items() if "|" not in name}


def test_damaged_file_is_refused(histograms: Path) -> None:
    """A byte that is wrong is found, and nothing was seen."""
    content = bytearray(histograms.read_bytes())
    content[-1] ^= 1
    histograms.write_bytes(content)
    model = prepare(net(), HISTOGRAM)
    with refused(model, ArtifactError, field="file", module=str(histograms)):
        load_calibration(model, histograms)


@pytest.mark.parametrize("action", [save_calibration, load_calibration])
def test_model_that_does_not_watch_is_refused(
    histograms: Path, action: Callable[[nn.Module, Path], None]
) -> None:
    """A float model, one without a point that waits for data, or a finished one."""
    finished = convert(_calibrated(HISTOGRAM, 0))
    dynamic = affine(DType.int(8), granularity=PerToken())
    waiting = prepare(net(), PTQConfig(activation=dynamic))
    lone = PTQWrapper(nn.Linear(4, 2).eval())
    for model in (net(), waiting, lone, finished):
        with refused(model, LifecycleError, field="model"):
            action(model, histograms)


def test_points_without_data_cannot_be_saved(tmp_path: Path) -> None:
    """Every one of them is named, and no file is written."""
    model = prepare(net(), HISTOGRAM)
    with refused(model, CalibrationError, module="conv.act_in") as error:
        save_calibration(model, tmp_path / "seen")
    assert len(error.value.problems) == 10
    assert not (tmp_path / "seen").exists()


def test_one_module_in_a_wrapper_is_saved_too(tmp_path: Path) -> None:
    """The wrapper of a lone module has points with short paths."""
    one, other = (PTQWrapper(nn.Linear(4, 2).eval()) for _ in range(2))
    other.load_state_dict(one.state_dict())
    for each in (one, other):
        each.enable_calibration()
    one(torch.linspace(-1, 3, 20).view(5, 4))
    save_calibration(one, tmp_path / "seen")
    load_calibration(other, tmp_path / "seen")
    for each in (one, other):
        each.freeze_qparams()
    assert same_tensors(tensors_of(one), tensors_of(other))


def test_language_model_is_calibrated_once_for_two_formats(tmp_path: Path) -> None:
    """A LLaMA with shared modules: the file holds each point once."""
    source = prepare(tiny_llama(tied=True), HISTOGRAM)
    source(TOKENS)
    save_calibration(source, tmp_path / "seen")
    for config in (_config(16, MinMaxSpec()), _config(8, MSESpec(10))):
        loaded, expected = (prepare(tiny_llama(tied=True), config) for _ in range(2))
        load_calibration(loaded, tmp_path / "seen")
        expected(TOKENS)
        assert same_tensors(tensors_of(convert(loaded)), tensors_of(convert(expected)))
