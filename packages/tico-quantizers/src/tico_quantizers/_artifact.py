"""Quantized models on disk: one sealed file, and what transformers needs beside it.

The sealed file holds every tensor of the model under its name, and as text the layout of every integer
module, the runs that made them, and the config of a transformers model. Loading puts the integer modules
into a float skeleton of the model, which needs no weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

import torch
from torch import Tensor, nn

from tico_config import ArtifactError, Found, Problem, UnsupportedError
from tico_observers import read_sealed, write_sealed
from tico_quantizers._layout import Layout
from tico_quantizers._module_tree import Edit
from tico_quantizers._report import Report, runs_of
from tico_quantizers._restorable import RestorableModule
from tico_quantizers._restoring import Restoring, all_tensors, restorable
from tico_quantizers._transformers_model import described, skeleton, write_config

FILE_NAME = "quantized.safetensors"
ENTRY_POINT_GROUP = "tico.modules"


def save_quantized(model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Write a converted model to `directory`, made if it is missing; return the path of its file.

    The config of a transformers model is in the file, and beside it for other tools, so that
    `load_quantized` needs the folder only. The file is complete or not there: a crash leaves what was there
    before.

    Raises:
        UnsupportedError: the model holds no integer module, or a tensor has no data.
        OSError: the folder cannot be written.
    """
    modules = dict(restorable(model))
    if not modules:
        remedy = "convert the model first"
        expected = "a model with integer modules"
        found = Found("one without")
        raise UnsupportedError(Problem(field="model", value=found, expected=expected, remedy=remedy))
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, aliases = _named_tensors(model)
    runs = _all_runs(modules)
    about = {
        "aliases": aliases,
        "modules": {path: _entry(module, runs) for path, module in modules.items()},
        "runs": [json.loads(run.to_json()) for run in runs],
        "transformers": described(model),
    }
    write_sealed(folder / FILE_NAME, json.dumps(about, sort_keys=True, separators=(",", ":")), tensors)
    write_config(model, folder)
    return folder / FILE_NAME


def load_quantized(directory: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Return the model that `save_quantized` wrote to `directory`, in evaluation mode.

    `model` is a float model of the same architecture; its weights are not used, and it becomes the result
    (its replacement does where the root itself is an integer module). Without it the model must be one that
    transformers makes for causal language modeling. The tensors are mapped from the file.

    Raises:
        ArtifactError: the file is damaged, foreign, or does not fit `model`, which is then unchanged.
        MissingExtraError: `model` is left out and transformers is not installed.
        OSError: the file cannot be read.
    """
    where = Path(directory) / FILE_NAME
    sealed = read_sealed(where)
    about = Layout(str(where), _json_object(where, sealed.about))
    kinds = _installed_kinds()
    runs = _runs(about)
    with Edit() as edit:
        restoring = Restoring(
            root=skeleton(about) if model is None else model,
            where=str(where),
            tensors=dict(sealed.tensors) | _aliased(about.child("aliases"), sealed.tensors),
            edit=edit,
        )
        restoring.put_modules(about.child("modules"), kinds, runs)
        restoring.fill()
        restoring.tie_weights()
    return restoring.root.eval()


def _all_runs(modules: Mapping[str, nn.Module]) -> list[Report]:
    unique: dict[int, Report] = {}
    for module in modules.values():
        unique |= {id(run): run for run in runs_of(module)}
    return list(unique.values())


def _entry(module: RestorableModule, runs: list[Report]) -> dict[str, object]:
    numbers = {id(run): number for number, run in enumerate(runs)}
    return {
        "kind": module.kind,
        "layout": dict(module.layout()),
        "runs": [numbers[id(run)] for run in runs_of(module)],
    }


def _named_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return every parameter and buffer by its first name, and the other names of those that are shared."""
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in all_tensors(model):
        key = (id(tensor), tensor.shape, tensor.stride())
        if key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor
    return tensors, aliases


def _json_object(where: Path, text: str) -> Mapping[str, object]:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.keys() != {"aliases", "modules", "runs", "transformers"}:
        problem = Problem(
            module=str(where),
            field="file",
            value=Found("another sealed file"),
            expected="a quantized model",
        )
        raise ArtifactError(problem)
    return value


def _aliased(aliases: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in aliases.values:
        first = aliases.text(name)
        if first not in tensors:
            raise aliases.refused(name, "the name of a tensor in the file")
        found[name] = tensors[first]
    return found


def _installed_kinds() -> dict[str, type[RestorableModule]]:
    """Return the module classes that installed packages offer in the group ``tico.modules``, by kind.

    Raises:
        UnsupportedError: two of them have the same kind.
    """
    kinds: dict[str, type[RestorableModule]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        offered: tuple[type[RestorableModule], ...] = point.load()
        for kind in offered:
            if kinds.setdefault(kind.kind, kind) is not kind:
                found = Found(f"{kind.kind!r} of {kinds[kind.kind].__qualname__} and {kind.__qualname__}")
                expected = "a kind of one class only"
                raise UnsupportedError(
                    Problem(field=f"entry point {point.name}", value=found, expected=expected)
                )
    return kinds


def _runs(about: Layout) -> tuple[Report, ...]:
    runs = about.values["runs"]
    if not isinstance(runs, list):
        raise about.refused("runs", "a list of reports")
    return tuple(Report.from_json(json.dumps(run)) for run in runs)
