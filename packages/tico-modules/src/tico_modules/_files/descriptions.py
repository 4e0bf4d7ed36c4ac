"""What files say of a model besides the values of its tensors: names, runs, and layouts of modules."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tico_modules._files.module_kinds import package_of
from tico_modules._layers.restorable import RestorableModule
from tico_modules._record.fingerprint import all_tensors
from tico_modules._record.history import runs_of
from tico_modules._record.run import Run


def collect_runs(modules: Iterable[nn.Module]) -> list[Run]:
    """Return the runs that `modules` keep, each once."""
    unique: dict[int, Run] = {}
    for module in modules:
        unique |= {id(run): run for run in runs_of(module)}
    return list(unique.values())


def describe_module(module: RestorableModule, runs: list[Run]) -> dict[str, object]:
    """Return kind, package, layout and the numbers of the runs of `module` among `runs`, for JSON."""
    return {
        "kind": module.kind,
        "package": package_of(module),
        "layout": dict(module.layout()),
        "runs": number_runs(module, runs),
    }


def number_runs(module: nn.Module, runs: list[Run]) -> list[int]:
    """Return the numbers of the runs of `module` among `runs`."""
    numbers = {id(run): number for number, run in enumerate(runs)}
    return [numbers[id(run)] for run in runs_of(module)]


def name_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return parameters and buffers by their first names, and the first name for each further name."""
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in all_tensors(model, empty=True):
        key = (id(tensor), tensor.shape, tensor.stride())
        if key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor
    return tensors, aliases
