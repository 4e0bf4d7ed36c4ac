"""Kinds of models that no algorithm can watch or change, each with the way out."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tico_config import BaseConfig, Found, Problem, UnsupportedError
from tico_modules import named_modules
from tico_quantizers.lifecycle._paths import place
from tico_quantizers.protocol import AnyQuantizer

_LOAD = "load its weights first, for example by model.load_state_dict(weights, assign=True)"
_UNHOOK = "load the model without offloading"
_EAGER = "call prepare before it is compiled, or with inplace=False, as a copy is not compiled"
_PYTHON = "give prepare the Python module that it was made from"
_SOURCE = "give prepare the module that it was exported from, or program.module() for PT2E"
_WHOLE = "call prepare before the model is sharded"


def require_model(model: object) -> None:
    """Refuse what is no module.

    Raises:
        UnsupportedError: with what to pass instead.
    """
    if not isinstance(model, nn.Module):
        remedy = _SOURCE if isinstance(model, ExportedProgram) else None
        raise UnsupportedError(Problem(field="model", value=model, expected="an nn.Module", remedy=remedy))


def require_plain(model: nn.Module, *, inplace: bool, values: bool = True) -> None:
    """Refuse a model with modules that are compiled, scripted, run as copies, sharded, or without `values`.

    Raises:
        UnsupportedError: naming every one of them.
    """
    found: list[Problem] = []
    hidden: tuple[str, ...] = ()
    for path, module in named_modules(model):
        if path.startswith(hidden):
            continue
        shell = _shell_problem(path, module)
        problem = shell or _problem_of(path, module, inplace=inplace, values=values)
        found += [] if problem is None else [problem]
        hidden += () if shell is None else (f"{path}." if path else "",)
    if found:
        raise UnsupportedError(*found)


def _shell_problem(path: str, module: nn.Module) -> Problem | None:
    """Return why neither `module` nor what is in it can be watched or changed."""
    if _is_of(module, "torch._dynamo.eval_frame", "OptimizedModule"):
        return _problem(path, module, "is compiled by torch.compile", _unpack(path, "_orig_mod", "compile"))
    if isinstance(module, torch.jit.ScriptModule):
        return _problem(path, module, "is a TorchScript module, whose layers cannot be replaced", _PYTHON)
    sharded = _is_of(module, "torch.distributed.fsdp", "FullyShardedDataParallel")
    if sharded or isinstance(module, DataParallel | DistributedDataParallel):
        finding = "runs copies or shards, each of which sees a part of the data"
        return _problem(path, module, finding, _unpack(path, "module", "wrap"))
    return None


def _unpack(path: str, name: str, again: str) -> str:
    inner = f"{place(path)}.{name}"
    way = f"put {inner} in its place" if path else f"pass {inner}"
    return f"{way}, and {again} what convert returns"


def _problem_of(path: str, module: nn.Module, *, inplace: bool, values: bool) -> Problem | None:
    """Return why `module` itself can not be watched or changed."""
    stored = _stored(module)
    if inplace and module._compiled_call_impl is not None:
        return _problem(path, module, "is compiled by module.compile()", _EAGER)
    if values and any(tensor.is_meta for tensor in stored):
        remedy = _UNHOOK if "_hf_hook" in vars(module) else _LOAD
        return _problem(path, module, "is on the meta device, which has no data", remedy, "device")
    if any(_is_of(tensor, "torch.distributed.tensor", "DTensor") for tensor in stored):
        return _problem(path, module, "has parameters that are sharded over processes", _WHOLE)
    return None


def _problem(path: str, module: nn.Module, finding: str, remedy: str, field: str = "model") -> Problem:
    return Problem(
        module=path or type(module).__name__,
        field=field,
        value=Found(f"one that {finding}"),
        expected="an eager module with data",
        sentence=f"it {finding}",
        remedy=remedy,
    )


def _is_of(value: object, home: str, name: str) -> bool:
    """Whether `value` is of a class whose module is costly to import; if it is not loaded, it is not."""
    kind: object = vars(sys.modules[home]).get(name) if home in sys.modules else None
    return isinstance(kind, type) and isinstance(value, kind)


def _stored(module: nn.Module) -> list[Tensor]:
    parameters: dict[str, nn.Parameter | None] = module._parameters
    buffers: dict[str, Tensor | None] = module._buffers
    return [tensor for tensor in (*parameters.values(), *buffers.values()) if tensor is not None]


def require_modules(model: nn.Module, quantizer: AnyQuantizer, config: BaseConfig) -> None:
    """Refuse an exported graph for an algorithm that works on modules.

    Raises:
        UnsupportedError: with the order that works.
    """
    if _is_graph(model) and not isinstance(model, quantizer.graphs):
        name = type(config).__name__
        raise UnsupportedError(
            Problem(
                field="model",
                value=Found("an exported graph"),
                expected="a model made of modules",
                sentence=f"{name} needs modules, and the model is an exported graph, which has operators",
                remedy=f"take {name} first, on the model that the graph was made from, and export afterwards",
            )
        )


def _is_graph(model: nn.Module) -> bool:
    """Whether `model` was made by torch.export: its operators are those of ATen, its layers are gone."""
    if not isinstance(model, fx.GraphModule):
        return False
    called = (node.target for node in model.graph.nodes if node.op == "call_function")
    return any(isinstance(target, torch._ops.OpOverload) for target in called)
