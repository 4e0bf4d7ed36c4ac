"""Models inside wrappers of torch and peft, whose names in files would not be those of the model itself."""

from __future__ import annotations

import sys

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tico_config import Found, Problem, UnsupportedError
from tico_modules._tree.module_tree import children, named_modules


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model in `model`, which compiles, copies or averages it, or `model` itself.

    Raises:
        UnsupportedError: a part of the model is in such a wrapper, is sharded, or has adapters of peft.
    """
    inner = model
    while (name := _slot_of(inner)) is not None:
        inner = children(inner)[name]
    problems = [problem for path, module in named_modules(inner) for problem in _find_problems(path, module)]
    if problems:
        raise UnsupportedError(*problems[:1])
    return inner


def _slot_of(module: nn.Module) -> str | None:
    """Return the name under which `module`, if it is a wrapper that changes no name inside, has its model."""
    if _is_of(module, "torch._dynamo.eval_frame", "OptimizedModule"):
        return "_orig_mod"
    averages = _is_of(module, "torch.optim.swa_utils", "AveragedModel")
    return "module" if averages or isinstance(module, DataParallel | DistributedDataParallel) else None


def _find_problems(path: str, module: nn.Module) -> list[Problem]:
    kind = type(module)
    name = _slot_of(module)
    if name is not None:
        return [_make_problem(path, kind, f"put the module in its `{name}` in its place")]
    if _is_of(module, "torch.distributed.fsdp", "FullyShardedDataParallel"):
        return [_make_problem(path, kind, "save the model before it is sharded")]
    if kind.__module__.partition(".")[0] == "peft":
        remedy = "save the adapter by model.save_pretrained, and the base model before it gets one"
        return [_make_problem(path, kind, f"{remedy} (or model.unload())")]
    return []


def _make_problem(path: str, kind: type[nn.Module], remedy: str) -> Problem:
    found, expected = Found(f"a {kind.__name__}"), "a model without wrappers, whose names are its own"
    return Problem(module=path, field="model", value=found, expected=expected, remedy=remedy)


def _is_of(value: object, home: str, name: str) -> bool:
    """Tell whether `value` is of a class of the module `home`; if that is not loaded, it is not."""
    kind: object = vars(sys.modules[home]).get(name) if home in sys.modules else None
    return isinstance(kind, type) and isinstance(value, kind)
