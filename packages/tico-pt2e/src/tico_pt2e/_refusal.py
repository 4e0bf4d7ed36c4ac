"""Why a model cannot be exported, in a sentence."""

from __future__ import annotations

import re

from torch import nn

from tico_config import Found, Problem, UnsupportedError
from tico_modules import named_modules

_LONGEST_REASON = 300
_UNKNOWN_OUTPUT = re.compile(r"Found <class '(?:\w+\.|<locals>\.)*(?P<name>\w+)'> in output")


def unknown_output(error: BaseException) -> str | None:
    """Return the class of an output that no graph can return, None if that is not what `error` is about."""
    found = _UNKNOWN_OUTPUT.search(str(error))
    return None if found is None else found["name"]


def refusal(model: nn.Module, error: BaseException) -> UnsupportedError:
    """Return the error that says why and where the model could not be exported."""
    output = unknown_output(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines[0] if lines else type(error).__name__)[:_LONGEST_REASON].rstrip(".")
    sentence = f"torch.export refuses it ({type(error).__name__}: {reason})"
    if output is not None:
        sentence = f"it returns {output}, a kind of value that no graph can return"
    return UnsupportedError(
        Problem(
            module=_module_of(model, error),
            field="model",
            value=Found(f"one that it refuses ({type(error).__name__}: {reason})"),
            expected="a model that torch.export takes",
            remedy=_remedy(output),
            sentence=sentence,
        )
    )


def _remedy(output: str | None) -> str:
    if output is None:
        return "rewrite that part, or export the parts around it"
    if "Cache" in output:
        return "pass use_cache=False with the example inputs and in every call"
    registered = f"torch.export.register_dataclass({output}) before if it is a dataclass"
    return f"return tensors, or tuples and dicts of them, or call {registered}"


def _module_of(model: nn.Module, error: BaseException) -> str:
    """Return the path of the innermost module of `model` whose code was running when `error` was raised."""
    paths = {id(module): path for path, module in named_modules(model)}
    where = type(model).__name__
    trace = error.__traceback__
    while trace is not None:
        owner: object = trace.tb_frame.f_locals.get("self")
        where = paths.get(id(owner), "") or where
        trace = trace.tb_next
    return where
