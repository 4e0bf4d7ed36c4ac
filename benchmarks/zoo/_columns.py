"""The columns of the table: what is done to an architecture, and what has to come of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PT2EConfig,
    PTQConfig,
    SmoothQuantConfig,
    convert,
    prepare,
    save_quantized,
)
from tico.quantization.config import DType, affine
from tico_config import BaseConfig
from zoo._cell import Cell, FloatModelError, WrongError, measured
from zoo._other_process import OtherProcess
from zoo._tokens import caches, padding
from zoo._trial import EXACT, Trial

_A16: Final = affine(DType.int(16))
STRICT: Final = PTQConfig(activation=_A16, steps="auto", on_uncalibrated="skip")
PERMISSIVE: Final = PTQConfig(activation=_A16, steps="auto", strict_wrap=False, on_uncalibrated="skip")
DECLARED: Final = PTQConfig(activation=_A16, steps="declared", strict_wrap=False, on_uncalibrated="skip")

Column = Callable[[Trial], Cell]


def quantized(config: BaseConfig, trial: Trial) -> Cell:
    """The output while data are collected is that of the float model, and after that about the same."""
    model, seen = trial.converted(config)
    exact = trial.attention == "eager"
    if seen < (float("inf") if exact else EXACT):
        raise WrongError(f"while it is calibrated, the output is {seen:.0f} dB from that of the float model")
    return judged(trial, trial.outputs(model))


def judged(trial: Trial, found: Sequence[Tensor]) -> Cell:
    """Return the cell of outputs; that rounding lets a few tokens take other experts is no fault."""
    cell = measured(trial.decibels(found), trial.bound)
    if cell.is_right or not trial.routes or trial.typical(found) < trial.bound:
        return cell
    reason = f"some tokens take other experts; half of all have {trial.typical(found):.0f} dB or more"
    return Cell(f"{trial.decibels(found):.0f} dB", reason)


def exported(config: BaseConfig, trial: Trial) -> Cell:
    """The same of the graph that torch.export makes, which can't return a cache."""
    model = trial.model()
    for module in model.modules():
        if hasattr(module, "config"):
            setattr(module.config, "use_cache", False)  # noqa: B010  # torch takes it for a module
    prepared = prepare(model, config, kwargs=trial.call(0), inplace=False)
    for seed in (0, 1):
        trial.outputs(prepared, seed)
    return judged(trial, trial.outputs(convert(prepared, inplace=False)))


def reloaded(config: BaseConfig, trial: Trial) -> Cell:
    """A process that has only the saved model gives the same bits."""
    model, _ = trial.converted(config)
    with tempfile.TemporaryDirectory() as folder:
        save_quantized(model, folder)
        found = OtherProcess.one().outputs(trial.architecture.name, folder)
    if not all(map(_same_bits, found, trial.outputs(model))):
        raise WrongError("another process gives other bits")
    return Cell("ok")


def _same_bits(left: Tensor, right: Tensor) -> bool:
    return left.dtype is right.dtype and torch.equal(left, right)


def narrow(config: BaseConfig, trial: Trial) -> Cell:
    """A model of bfloat16 is as right as its format lets it be."""
    short = Trial(trial.architecture, torch.bfloat16, "eager")
    try:
        floats = short.expected
    except Exception as error:
        raise FloatModelError(str(error)) from error
    if not all(bool(each.isfinite().all()) for each in floats):
        raise FloatModelError("its output is not finite")
    return quantized(config, short)


def _with_eager_attention(column: Column) -> Column:
    return lambda trial: column(Trial(trial.architecture, attention="eager"))


COLUMNS: Final[Mapping[str, Column]] = {
    "strict": _with_eager_attention(partial(quantized, STRICT)),
    "permissive": partial(quantized, PERMISSIVE),
    "declared": partial(quantized, DECLARED),
    "GPTQ W8": partial(quantized, GPTQConfig(bits=8, show_progress=False)),
    "AWQ W8": partial(quantized, AWQConfig(bits=8, group_size=None, show_progress=False)),
    "SmoothQ": partial(quantized, SmoothQuantConfig()),
    "PT2E": partial(exported, PT2EConfig(activation=_A16)),
    "caches": partial(caches, config=PERMISSIVE),
    "padding": partial(padding, config=PERMISSIVE),
    "reload": partial(reloaded, PERMISSIVE),
    "bfloat16": partial(narrow, PERMISSIVE),
}
