"""What may be wrong with a step, and what to do about it."""

from __future__ import annotations

from typing import Final

from tico_config import Found, Problem
from tico_modules import child_path

FOREIGN: Final = "made by no function of torch"


def foreign_step(path: str) -> Problem:
    """Return what is wrong with the step at `path`, which reads what no function of torch has made."""
    return Problem(
        module=path,
        value=Found("a tensor of unknown origin"),
        expected="data that functions of torch have handed on",
        sentence=f"it reads a tensor that was {FOREIGN}, so that what was computed is not known",
        remedy="compute it by functions of torch, give the step a grid or no_quant() by an"
        f" override of its path {path!r}, or set strict_wrap=False to have it reported",
    )


def unknown_step(path: str, function: str) -> Problem:
    """Return what is wrong with the step at `path`, which calls a `function` that is in no table."""
    return Problem(
        module=path,
        value=Found(function),
        expected="a function in the table of steps",
        sentence=f"it calls {function}, and whether that is a step is not known",
        remedy=f"leave it float by overrides={{{path!r}: no_quant()}}, or set strict_wrap=False"
        " to leave all such steps float and have them reported",
    )


def unseen_step(module: str, name: str) -> Problem:
    """Return what is wrong with the step `name` of a `module`, which calibration has never reached."""
    path = child_path(module, name)
    return Problem(
        module=module,
        field=name,
        value=Found("a step that calibration never reached"),
        expected="one of the steps that calibration data have reached",
        sentence=f"its step {name} is reached now, and was reached by no calibration data",
        remedy="calibrate with data that take this way through the model too, "
        f"or leave the step float by overrides={{{path!r}: no_quant()}}",
    )
