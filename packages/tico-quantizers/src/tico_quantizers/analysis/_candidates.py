"""Every layer at every candidate, from what one calibration has seen."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import attrs
from torch import nn

from tico_config import GPTQConfig
from tico_modules import PackedWeight, named_modules, report, total_bytes
from tico_quantizers.analysis._measuring import Sample
from tico_quantizers.analysis._overriding import Change, with_choices
from tico_quantizers.calibration import Batch, Calibration, unchanged_process
from tico_quantizers.lifecycle import calibrate, calibration_of, convert, prepare
from tico_quantizers.registry import Registry


@attrs.frozen(eq=False, kw_only=True)
class Candidate:
    """The layers at one candidate.

    Attributes:
        modules: what takes the place of a module of the float model, by its path.
        owners: in which of these modules each layer is, by the path of the layer.
        losses: what GPTQ says that a layer loses, by its path.
        bytes: of the weight of a layer.
        weights: how many there are of a layer.
    """

    modules: Mapping[str, nn.Module]
    owners: Mapping[str, str]
    losses: Mapping[str, float]
    bytes: Mapping[str, int]
    weights: Mapping[str, int]


def as_batches(samples: Sequence[Sample]) -> list[Batch]:
    """Return each sample as a batch for `calibrate`."""
    return [kwargs or args for args, kwargs in samples]


def convert_candidates(
    model: nn.Module,
    paths: Sequence[str],
    base: GPTQConfig,
    candidates: Sequence[Change],
    samples: Sequence[Sample],
    registry: Registry,
) -> list[Candidate]:
    """Return the layers at `paths` at every candidate, solved for what they read in the float model.

    Raises:
        TicoError: calibration or conversion fails.
    """
    base = _without_passes(base)
    seen = _Seen(_calibrated(model, base, samples, registry))
    configs = (with_choices(base, dict.fromkeys(paths, change)) for change in candidates)
    return [_candidate(model, seen.converted(model, config, registry)) for config in configs]


def _without_passes(base: GPTQConfig) -> GPTQConfig:
    """Return `base` without the settings that need data of their own for each candidate."""
    return attrs.evolve(
        base,
        token_weights="uniform",
        true_sequential=False,
        asymmetric=0.0,
        calibrate_all_experts=False,
        forward_dtype=None,
        activation_dtype=None,
        checkpoint_dir=None,
    )


def _calibrated(
    model: nn.Module, base: GPTQConfig, samples: Sequence[Sample], registry: Registry
) -> Calibration:
    prepared = prepare(model, base, inplace=False, registry=registry)
    calibrate(prepared, as_batches(samples), show_progress=base.show_progress)
    return calibration_of(prepared)


class _Seen:
    """What a calibration has seen, for models that are prepared otherwise."""

    def __init__(self, calibration: Calibration) -> None:
        with unchanged_process(), calibration.paused():
            self._statistics = calibration.statistics()

    def converted(self, model: nn.Module, config: GPTQConfig, registry: Registry) -> nn.Module:
        """Return what becomes of a copy of `model` by it."""
        prepared = prepare(model, config, inplace=False, registry=registry)
        with unchanged_process():
            calibration_of(prepared).adopt(self._statistics)
        return convert(prepared)


def _candidate(model: nn.Module, converted: nn.Module) -> Candidate:
    known = {path for path, _ in named_modules(model)}
    losses = {
        line.path: loss
        for line in report(converted).layers
        for name, loss in line.figures
        if name == "loss" and line.bits is not None
    }
    owners = {path: _owner(path, known) for path in losses}
    weights = {path: _weight_at(converted, path) for path in losses}
    return Candidate(
        modules={owner: converted.get_submodule(owner) for owner in owners.values()},
        owners=owners,
        losses=losses,
        bytes={path: total_bytes(weight) for path, weight in weights.items()},
        weights={path: math.prod(weight.shape) for path, weight in weights.items()},
    )


def _owner(path: str, known: Collection[str]) -> str:
    """Return the path of the module of the float model that holds the weight of a layer."""
    while path not in known:
        path = path.rpartition(".")[0]
    return path


def _weight_at(converted: nn.Module, path: str) -> PackedWeight:
    """Return the integer weight of the layer at `path`; that of an expert is itself what is there."""
    found = (each for _, each in named_modules(converted.get_submodule(path)))
    return next(each for each in found if isinstance(each, PackedWeight))
