"""What a prepared model has seen, in a sealed file, for the same model prepared otherwise."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping

import attrs
from torch import nn

from tico_config import ArtifactError, Found, LifecycleError, Problem, TicoError
from tico_modules import Edit, Layout, named_modules
from tico_observers import StatisticsFile, read_statistics, save_statistics
from tico_quantizers.calibration import WatchedModule, unchanged_process
from tico_quantizers.lifecycle._model_kinds import require_model
from tico_quantizers.lifecycle._stages import calibration_of, state_of


def save_calibration(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write what the prepared `model` has seen to `path`, for `load_calibration`.

    What the file holds depends on the algorithm. So does what it can be loaded for, at any bits and groups:

    - GPTQ, AWQ, and SmoothQuant with ``alpha="auto"``: the Gram matrix of every layer's inputs in the float
      model, and the range of each input feature. It serves these three.
    - SmoothQuant with another alpha: the ranges. They serve SmoothQuant.
    - PTQ: what its points have seen, and the ranges of layers whose inputs have a grid. Histograms
      (`HistogramSpec`, `PercentileSpec`, `MSESpec`, `EntropySpec`) serve these specs and `MinMaxSpec`; ranges
      serve `MinMaxSpec`.

    Raises:
        LifecycleError: the model is not prepared.
        UnsupportedError: files hold nothing of what the algorithm sees, or not with this config.
        CalibrationError: no data were seen; PTQ: points have seen none.
        OSError: the file cannot be written; what was at `path` before is still there.

    >>> import tempfile
    >>> import torch
    >>> from tico_config import GPTQConfig
    >>> from tico_quantizers import GPTQQuantizer, quantizer_entry
    >>> from tico_quantizers.lifecycle import convert, prepare
    >>> from tico_quantizers.registry import Registry
    >>> registry, layer = Registry([quantizer_entry(GPTQConfig, GPTQQuantizer)]), nn.Linear(4, 2).eval()
    >>> source = prepare(layer, GPTQConfig(), inplace=False, registry=registry)
    >>> y = source(torch.ones(3, 4))
    >>> wide = prepare(layer, GPTQConfig(bits=8, token_weights="uniform"), registry=registry)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_calibration(source, f"{folder}/seen")
    ...     load_calibration(wide, f"{folder}/seen")
    >>> convert(wide).bits
    8
    """
    require_model(model)
    calibration, fingerprint = calibration_of(model), _fingerprint(model)
    with unchanged_process(), calibration.paused():
        seen = calibration.statistics()
        found = calibration.findings()
    origin = {"model": fingerprint, "data": calibration.data.text, "calls": str(calibration.data.calls)}
    if found:
        origin["findings"] = json.dumps(found, sort_keys=True, separators=(",", ":"), allow_nan=False)
    save_statistics(path, seen, origin)


def load_calibration(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Add what the file at `path` holds to what the prepared `model` has seen.

    The file may come from another config, even that of another algorithm: see `save_calibration`. Several
    files, and data that are run through the model, add up. AWQ and SmoothQuant need `args` or `kwargs` in
    `prepare`, because a file does not say which layers form pairs.

    Raises:
        LifecycleError: the model is not prepared.
        UnsupportedError: a field of the config needs the data themselves; every such field is listed.
        ArtifactError: the file is damaged or of another model; every path that differs is listed.
        CalibrationError: the file lacks what the algorithm needs; every such layer or point is listed.
        OSError: the file cannot be read.

    After an error the model has seen what it had before.
    """
    require_model(model)
    calibration, fingerprint = calibration_of(model), _fingerprint(model)
    file = read_statistics(path)
    name = os.fspath(path)
    _require_same_model(name, model, fingerprint, file)
    calls = _calls(name, file.origin)
    try:
        with unchanged_process(), Edit() as edit:
            calibration.adopt_findings(_findings(name, file.origin), edit)
            calibration.adopt(file.statistics)
    except LifecycleError:
        raise
    except TicoError as error:
        first, *others = (attrs.evolve(each, module=each.module or name) for each in error.problems)
        raise type(error)(first, *others) from None
    calibration.files += 1
    if calls is not None:
        calibration.data.add(*calls)


def _fingerprint(model: nn.Module) -> str:
    """Return the fingerprint of the float model, "" where it is not known."""
    return "" if isinstance(model, WatchedModule) else state_of(model).origin.model


def _require_same_model(name: str, model: nn.Module, fingerprint: str, file: StatisticsFile) -> None:
    """Refuse a file of a model with other weights; one of the two may have no fingerprint.

    Raises:
        ArtifactError: with every module that only the other model has.
    """
    saved = file.origin.get("model", "")
    if not fingerprint or not saved or saved == fingerprint:
        return
    problem = Problem(
        module=name,
        field="model",
        value=Found(f"a model of fingerprint {fingerprint[:12]}…"),
        expected=f"the float model that was calibrated, of fingerprint {saved[:12]}…",
        sentence="it is the calibration of another model, or of this one with other weights",
        remedy="load it into the model that it was saved from",
    )
    raise ArtifactError(problem, *_foreign(name, model, file))


def _foreign(name: str, model: nn.Module, file: StatisticsFile) -> Iterator[Problem]:
    """Yield a problem for each module of the file that `model` lacks."""
    named = {statistic: statistic.rpartition("|") for statistic in file.statistics}
    saved = {
        layer if bar else statistic.removesuffix(".channels").rpartition(".")[0]
        for statistic, (layer, bar, _) in named.items()
    }
    for path in sorted(saved - {path for path, _ in named_modules(model)}):
        yield Problem(
            module=name,
            field=path,
            value=Found("one that the model lacks"),
            expected="a module of the model",
            sentence=f"{path} was calibrated, and the model has no such module",
        )


def _findings(name: str, origin: Mapping[str, str]) -> Layout:
    """Return what a file tells besides statistics.

    Raises:
        ArtifactError: it is no object of JSON.
    """
    text = origin.get("findings", "{}")
    try:
        values: object = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        found, expected = Found(text[:40]), "an object of JSON"
        raise ArtifactError(Problem(module=name, field="findings", value=found, expected=expected))
    return Layout(f"{name}: findings", values)


def _calls(name: str, origin: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the fingerprint of the data that a file is of, and the number of calls."""
    text, calls = origin.get("data"), origin.get("calls")
    if text is None and calls is None:
        return None
    digits = text is not None and len(text) == 64 and not set(text) - set("0123456789abcdef")
    if text is None or calls is None or not digits or not (calls.isascii() and calls.isdigit()):
        value = Found(f"{text!r} and {calls!r}")
        expected = "64 hexadecimal digits and a number of calls"
        raise ArtifactError(Problem(module=name, field="origin", value=value, expected=expected))
    return text, int(calls)
