"""How far a model is on its way from prepare to convert, and how it goes on where a call comes too early."""

from __future__ import annotations

import warnings
from typing import Literal

import attrs
from torch import nn

from tico_config import BaseConfig, Found, LifecycleError, Problem
from tico_modules import PREPARED, Edit, RestorableModule, named_modules, runs_of
from tico_quantizers.calibration import Calibration, WatchedModule, is_watched
from tico_quantizers.lifecycle._paths import replacement
from tico_quantizers.protocol import AnyPrepared, Prepared

_REPLACED = "_tico_replaced"
_WHOLE = "call convert with the whole model; if that is gone, load the weights into a model made anew"
_UNPREPARED = "a model that is not prepared"


@attrs.frozen(eq=False)
class Replaced:
    """What is kept with a module that a call has replaced as a whole: its config, and what it returned."""

    call: Literal["prepare", "convert"]
    config: BaseConfig
    root: nn.Module


def note_replaced(old: nn.Module, replaced: Replaced, edit: Edit) -> None:
    """Remember at `old` what has taken its place, so that a result which was dropped can be had again."""
    if replaced.root is not old:
        edit.set_attribute(old, _REPLACED, replaced)
    edit.on_commit(lambda: vars(replaced.root).pop(_REPLACED, None))


def prepared_state(model: nn.Module) -> AnyPrepared | None:
    """Return what `prepare` has left with this very module, or None."""
    state: object = vars(model).get(PREPARED)
    return state if isinstance(state, Prepared) else None


def result_of(call: Literal["prepare", "convert"], model: nn.Module) -> Replaced | None:
    """Return what `call` has put in the place of `model` as the last step of its life, or None."""
    found, last = _replaced(model), None
    while found is not None:
        last, found = found, _replaced(found.root)
    if last is None or last.call != call or (call == "prepare" and prepared_state(last.root) is None):
        return None
    return last


def _replaced(module: nn.Module) -> Replaced | None:
    kept: object = vars(module).get(_REPLACED)
    return kept if isinstance(kept, Replaced) else None


def require_unprepared(model: nn.Module) -> None:
    """Refuse a model that is prepared, holds a part that is, or is a part of one that is.

    A part that was converted, but is still in the place of what convert returned, is taken for the float
    module that it is, with a warning.

    Raises:
        LifecycleError: naming the part.
    """
    there = {id(module) for _, module in named_modules(model)}
    for path, module in named_modules(model):
        converted = result_of("convert", module)
        if converted is not None and id(converted.root) in there:
            converted = None
        problem = _unfinished(path, module, converted)
        if problem is not None:
            raise LifecycleError(problem)
        if path and converted is not None:
            text = f"{_dropped(path, 'convert')}, so it is taken as float; {_put_in_place(path, module)}"
            warnings.warn(text, UserWarning, stacklevel=4)


def _unfinished(path: str, module: nn.Module, converted: Replaced | None) -> Problem | None:
    """Return what keeps the module at `path` from being prepared; what it was `converted` to is not there."""
    state, returned = prepared_state(module), result_of("prepare", module)
    if state is not None:
        remedy = f"call {replacement(path, 'convert')} first"
        return _problem(path, f"{_named(path)} is prepared with {type(state.config).__name__}", remedy)
    if returned is not None:
        return _problem(path, _dropped(path, "prepare"), _put_in_place(path, module))
    if converted is not None and any(part is module for _, part in named_modules(converted.root)):
        sentence = f"{_named(path)} is a part of what convert returned for it"
        return _problem(path, sentence, _put_in_place(path, module))
    if not _is_watched(module):
        return None
    if converted is not None:
        return _problem(path, _dropped(path, "convert"), _put_in_place(path, module))
    return _problem(path, f"{_named(path)} is a part of a prepared model", _WHOLE)


def _is_watched(module: nn.Module) -> bool:
    """Whether an algorithm is calibrating this module, by a wrapper or by hooks."""
    wrapped = isinstance(module, RestorableModule) and module.is_calibrating
    return wrapped or is_watched(module)


def _named(path: str) -> str:
    return f"the part {path!r} of the model" if path else "the model"


def _dropped(path: str, call: str) -> str:
    return f"{call} has returned another module for {_named(path)}, which is not in its place"


def _put_in_place(path: str, module: nn.Module) -> str:
    """Return the statement that puts in place what the last call for `module` has returned."""
    returned = result_of("prepare", module)
    if returned is None:
        return f"call {replacement(path, 'convert')}, which returns it again"
    call = f"{replacement(path, 'prepare', ', config')} with the same {type(returned.config).__name__}"
    return f"call {call}, which returns it again, then calibrate and convert that"


def _problem(path: str | None, sentence: str, remedy: str, expected: str = _UNPREPARED) -> Problem:
    where, found = path or None, Found(sentence)
    return Problem(
        module=where, field="model", value=found, expected=expected, remedy=remedy, sentence=sentence
    )


def state_of(model: nn.Module) -> AnyPrepared:
    """Return what `prepare` has left with the model.

    Raises:
        LifecycleError: there is nothing; the error tells what the model is instead, and the way on.
    """
    state = prepared_state(model)
    if state is not None:
        return state
    problems = _parts_left(model) or [_problem(None, *_told(model), expected="a prepared model")]
    raise LifecycleError(*problems)


def calibration_of(model: nn.Module) -> Calibration:
    """Return what the prepared model has seen.

    Raises:
        LifecycleError: it is not prepared.
    """
    return model.calibration if isinstance(model, WatchedModule) else state_of(model).calibration


def _parts_left(model: nn.Module) -> list[Problem]:
    """Return a problem for each part that has to be converted, or put in its place, before the whole is."""
    found: list[Problem] = []
    below: tuple[str, ...] = ()
    there = {id(module) for _, module in named_modules(model)}
    for path, module in named_modules(model):
        left = None if path.startswith(below) else _part_left(path, module, there)
        if left is not None:
            found.append(left)
            below += (f"{path}." if path else "",)
    return found


def _part_left(path: str, module: nn.Module, there: set[int]) -> Problem | None:
    returned = result_of("prepare", module) or result_of("convert", module)
    if prepared_state(module) is not None:
        sentence, remedy = f"only {_named(path)} is prepared", f"call {replacement(path, 'convert')}"
    elif returned is not None and id(returned.root) not in there:
        sentence, remedy = _dropped(path, returned.call), _put_in_place(path, module)
    else:
        return None
    return _problem(None, sentence, remedy, "a prepared model")


def _told(model: nn.Module) -> tuple[str, str]:
    """Return what a model without a state is, and what to do."""
    if _is_watched(model):
        return "the model is a part of a prepared model", _WHOLE
    if any(runs_of(module) for _, module in named_modules(model)):
        return "the model is converted already", "call prepare(model, config) to go on with it"
    return "the model is not prepared", "call prepare(model, config) first, and convert what it returns"
