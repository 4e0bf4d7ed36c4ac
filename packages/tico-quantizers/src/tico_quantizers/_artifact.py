"""Quantized models on disk: one sealed file, and what transformers needs beside it.

The sealed file holds every tensor of the model under its name, and as text the layout of every integer
module, the runs that made them, and a fingerprint of the config. Loading puts the integer modules into a
float skeleton of the model, which needs no weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path

import torch
from torch import Tensor, nn

from tico_config import ArtifactError, Found, MissingExtraError, Problem, UnsupportedError
from tico_observers import read_sealed, write_sealed
from tico_quantizers._layout import Layout, below
from tico_quantizers._module_tree import Edit, child_path, named_modules
from tico_quantizers._report import Report, remember, runs_of
from tico_quantizers._restorable import RestorableModule

FILE_NAME = "quantized.safetensors"
ENTRY_POINT_GROUP = "tico.modules"


def save_quantized(model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Write a converted model to `directory`, made if it is missing; return the path of its file.

    For a transformers model its config goes beside it, so that `load_quantized` needs the folder only.
    The file is complete or not there: a crash leaves what was there before.

    Raises:
        UnsupportedError: the model holds no integer module, or a tensor has no data.
        OSError: the folder cannot be written.
    """
    modules = dict(_restorable(model))
    if not modules:
        remedy = "convert the model first"
        expected = "a model with integer modules"
        found = Found("one without")
        raise UnsupportedError(Problem(field="model", value=found, expected=expected, remedy=remedy))
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, aliases = _named_tensors(model)
    about = {
        "aliases": aliases,
        "modules": {path: {"kind": m.kind, "layout": dict(m.layout())} for path, m in modules.items()},
        "runs": [json.loads(run.to_json()) for run in _all_runs(modules)],
    }
    write_sealed(folder / FILE_NAME, json.dumps(about, sort_keys=True, separators=(",", ":")), tensors)
    config: object = getattr(model, "config", None)
    save_config = getattr(config, "save_pretrained", None)
    if callable(save_config):
        save_config(folder)
    return folder / FILE_NAME


def load_quantized(directory: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Return the model that `save_quantized` wrote to `directory`, in evaluation mode.

    `model` is a float model of the same architecture; its weights are not used, and it becomes the result.
    Without it the folder must hold a transformers config. The tensors are mapped from the file.

    Raises:
        ArtifactError: the file is damaged, foreign, or does not fit `model`, which is then unchanged.
        MissingExtraError: `model` is left out and transformers is not installed.
        OSError: the file cannot be read.
    """
    folder = Path(directory)
    sealed = read_sealed(folder / FILE_NAME)
    about = Layout(str(folder / FILE_NAME), _json_object(folder, sealed.about))
    kinds = _installed_kinds()
    with Edit() as edit:
        root = _skeleton(folder) if model is None else model
        tensors = dict(sealed.tensors) | _aliased(about.child("aliases"), sealed.tensors)
        for path, entry in sorted(about.child("modules").children(), key=lambda item: item[0].count(".")):
            root = _put(root, path, entry, kinds, tensors, edit)
        _fill(root, tensors, edit, str(folder / FILE_NAME))
        runs = _runs(about)
        for run in runs:
            remember((module for _, module in _restorable(root)), run)
    return root.eval()


def _restorable(model: nn.Module) -> Iterator[tuple[str, RestorableModule]]:
    """Yield every path at which an integer module stands, shared ones under each."""
    return (
        (path, module)
        for path, module in named_modules(model, every_path=True)
        if isinstance(module, RestorableModule)
    )


def _all_runs(modules: Mapping[str, nn.Module]) -> list[Report]:
    unique: dict[int, Report] = {}
    for module in modules.values():
        unique |= {id(run): run for run in runs_of(module)}
    return list(unique.values())


def _named_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return every parameter and buffer by its first name, and the other names of those that are shared."""
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in _all_tensors(model):
        key = (id(tensor), tensor.shape, tensor.stride())
        if key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor
    return tensors, aliases


def _all_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer, also the buffers that a state dict leaves out."""
    for path, module in named_modules(model, every_path=True):
        parameters: dict[str, nn.Parameter | None] = module._parameters
        buffers: dict[str, Tensor | None] = module._buffers
        for name, tensor in (*parameters.items(), *buffers.items()):
            if tensor is not None:
                yield child_path(path, name), tensor


def _json_object(folder: Path, text: str) -> Mapping[str, object]:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not {"aliases", "modules", "runs"} <= set(value):
        problem = Problem(
            module=str(folder / FILE_NAME),
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
    """Return the module classes that installed packages offer in the group ``tico.modules``, by kind."""
    kinds: dict[str, type[RestorableModule]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        offered: tuple[type[RestorableModule], ...] = point.load()
        kinds |= {kind.kind: kind for kind in offered}
    return kinds


def _put(
    root: nn.Module,
    path: str,
    entry: Layout,
    kinds: Mapping[str, type[RestorableModule]],
    tensors: Mapping[str, Tensor],
    edit: Edit,
) -> nn.Module:
    kind = entry.text("kind")
    if kind not in kinds:
        raise entry.refused("kind", f"one of {', '.join(sorted(kinds))}")
    original = dict(named_modules(root, every_path=True)).get(path)
    if original is None:
        raise ArtifactError(
            Problem(
                module=path,
                field="model",
                value=Found("one without such a module"),
                expected="a model of the architecture that was saved",
            )
        )
    if isinstance(original, RestorableModule):
        return root  # a shared module that another of its paths has already restored
    new = kinds[kind].restore(original, entry.child("layout"), below(tensors, path) if path else tensors)
    return edit.replace(root, original, new)


def _fill(root: nn.Module, tensors: Mapping[str, Tensor], edit: Edit, where: str) -> None:
    """Give every float parameter and buffer its saved value; the skeleton's own values go."""
    expected = dict(_all_tensors(root))
    problems = [
        Problem(module=where, field=name, value=Found("none"), expected="a tensor of that name")
        for name in expected.keys() - tensors.keys()
    ] + [
        Problem(module=where, field=name, value=Found("one"), expected="no tensor that the model lacks")
        for name in tensors.keys() - expected.keys()
    ]
    for name in expected.keys() & tensors.keys():
        if expected[name].shape != tensors[name].shape:
            found = Found(f"one of shape {tuple(tensors[name].shape)}")
            shape = f"of shape {tuple(expected[name].shape)}"
            problems.append(Problem(module=where, field=name, value=found, expected=shape))
    if problems:
        raise ArtifactError(*sorted(problems, key=lambda problem: str(problem.field)))
    for path, module in named_modules(root, every_path=True):
        _assign(module, path, tensors, edit)


def _assign(module: nn.Module, path: str, tensors: Mapping[str, Tensor], edit: Edit) -> None:
    parameters: dict[str, nn.Parameter | None] = module._parameters
    for name, old in parameters.items():
        if old is not None:
            value = nn.Parameter(tensors[child_path(path, name)], requires_grad=old.requires_grad)
            edit.put(parameters, name, value)
    buffers: dict[str, Tensor | None] = module._buffers
    for name, buffer in buffers.items():
        if buffer is not None:
            edit.put(buffers, name, tensors[child_path(path, name)])


def _runs(about: Layout) -> tuple[Report, ...]:
    runs = about.values["runs"]
    if not isinstance(runs, list):
        raise about.refused("runs", "a list of reports")
    return tuple(Report.from_json(json.dumps(run)) for run in runs)


def _skeleton(folder: Path) -> nn.Module:
    """Return the transformers model that the config in `folder` describes, without weights."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        remedy = "pip install 'tico-api[transformers]', or pass model="
        problem = Problem(expected="the package transformers", value=Found("none"), remedy=remedy)
        raise MissingExtraError(problem) from None
    config: object = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model
