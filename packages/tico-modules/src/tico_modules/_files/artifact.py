"""Quantized models on disk: a manifest, sealed files with the tensors, and files for other tools.

The manifest describes everything but the tensors: the layout of every integer module, the conversions that
made them, the config of a transformers model, and the files that hold the tensors. Loading puts the integer
modules into a float skeleton of the model, which needs no weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tico_config import ArtifactError, ConfigError, Found, Problem, UnsupportedError
from tico_modules._files.manifest import Manifest, read_manifest
from tico_modules._files.model_card import write_model_card
from tico_modules._files.module_kinds import load_kinds, package_of
from tico_modules._files.restoring import Restoring, find_restorable
from tico_modules._files.shards import read_shards, remove_others, write_shards
from tico_modules._files.structure import describe_structure, require_structure
from tico_modules._files.transformers_model import (
    Tokenizer,
    describe_model,
    make_skeleton,
    makes_by_itself,
    require_config,
    write_beside,
)
from tico_modules._layers.restorable import RestorableModule
from tico_modules._record.fingerprint import all_tensors
from tico_modules._record.history import report, runs_of
from tico_modules._record.run import Run
from tico_modules._storage.layout import Layout
from tico_modules._tree.edit import Edit
from tico_modules._tree.requirements import require_module
from tico_observers import locked_folder


def save_quantized(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | None = None,
    shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a converted model to `directory`, made if it is missing, and return the path of the manifest.

    The manifest is written last and names the files that hold the tensors: a crash leaves the model that was
    there before, or the new one. Beside them stand a model card and, for a transformers model, its configs
    and its tokenizer, for other tools; these are replaced one by one.

    Args:
        model: has integer modules.
        directory: may hold an earlier model, which is replaced, and anything else, which is left alone.
        tokenizer: has ``save_pretrained``; by default the tokenizer in the folder that the model was loaded
            from, if there is one.
        shard_bytes: the most bytes of tensors in one file; a tensor that is larger has a file of its own.

    Raises:
        UnsupportedError: `model` is no module, has no integer one, or one that holds itself, or a tensor has
            no data.
        ConfigError: `shard_bytes` is no positive integer, or `tokenizer` cannot save itself.
        OSError: the folder cannot be written.
    """
    require_module(model)
    modules = dict(find_restorable(model))
    if not modules:
        is_graph = isinstance(model, torch.fx.GraphModule)
        remedy = "use torch.export.save for a graph" if is_graph else "convert the model first"
        expected = "a model with integer modules"
        found = Found("one without any")
        raise UnsupportedError(Problem(field="model", value=found, expected=expected, remedy=remedy))
    if type(shard_bytes) is not int or shard_bytes < 1:
        expected = "an integer of at least 1"
        raise ConfigError(Problem(field="shard_bytes", value=shard_bytes, expected=expected))
    if tokenizer is not None and not callable(getattr(tokenizer, "save_pretrained", None)):
        expected = "one that has save_pretrained"
        raise ConfigError(Problem(field="tokenizer", value=tokenizer, expected=expected))
    folder = _as_path(directory)
    tensors, aliases = _name_tensors(model)
    _require_values(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    runs = _collect_runs(modules)
    with locked_folder(folder):
        manifest = Manifest(
            aliases=aliases,
            modules={path: _describe_module(module, runs) for path, module in modules.items()},
            runs=tuple(runs),
            transformers=describe_model(model),
            shards=write_shards(folder, tensors, shard_bytes),
            structure=describe_structure(model),
        )
        write_beside(model, tokenizer, folder)
        lines = report(model).without_times()
        call = f"load_quantized(folder{'' if makes_by_itself(model) else ', model'})"
        write_model_card(folder, type(model).__name__, manifest, lines, call)
        written = manifest.write(folder)
        remove_others(folder, manifest.shards)
    return written


@torch.inference_mode(mode=False)  # tensors made in this mode are of no use outside of it
def load_quantized(directory: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Return the model that `save_quantized` wrote to `directory`, in evaluation mode.

    `model` is a float model of the same architecture. Its weights are not used, and it becomes the result;
    where the root itself is an integer module, that is returned instead. A model with other modules of
    torch.nn, other settings of these, or another config of transformers is refused. Without `model`, the
    class of the saved model must be one of transformers. The tensors are mapped from the files and take no
    other memory.

    A module from another package can be loaded where that package is installed; the manifest names it.

    Raises:
        ArtifactError: a file is missing, damaged or foreign, no installed package has a module, or the files
            do not fit `model`; `model` is then unchanged.
        UnsupportedError: two installed packages have modules of the same kind, `model` is no module, or
            a module of it holds itself.
        MissingExtraError: `model` is left out and transformers is not installed.
        OSError: a file cannot be read.
    """
    folder = _as_path(directory)
    if model is not None:
        require_module(model)
    if folder.exists() and not folder.is_dir():
        problem = Problem(field="directory", value=Found(f"the file {folder}"), expected="a folder")
        raise ArtifactError(problem)
    with locked_folder(folder, shared=True):
        manifest, about = read_manifest(folder)
        tensors = read_shards(folder, manifest.shards)
    kinds = load_kinds()
    with Edit() as edit:
        restoring = Restoring(
            root=make_skeleton(about) if model is None else model,
            where=about.where,
            tensors=tensors | _resolve_aliases(about.child("aliases"), tensors),
            edit=edit,
        )
        restoring.put_modules(about.child("modules"), kinds, manifest.runs)
        restoring.fill()
        _require_alike(about, restoring.root, given=model is not None)
        restoring.tie_weights()
    return restoring.root.eval()


def _as_path(directory: object) -> Path:
    if not isinstance(directory, str | os.PathLike):
        raise UnsupportedError(Problem(field="directory", value=directory, expected="the path of a folder"))
    return Path(directory)


def _require_values(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors on the meta device, naming each of them."""
    remedy = "load the weights before the model is converted and saved, for example without device_map"
    problems = [
        Problem(
            module=name,
            field="tensor",
            value=Found("one on the meta device"),
            expected="a tensor with values",
            remedy=remedy,
        )
        for name, tensor in tensors.items()
        if tensor.is_meta
    ]
    if problems:
        raise UnsupportedError(*problems)


def _require_alike(about: Layout, root: nn.Module, *, given: bool) -> None:
    """Refuse a model that computes something else than the one that was saved, as far as that can be told.

    Raises:
        ArtifactError: with every difference in modules and in the config of transformers.
    """
    structure = about.optional_child("structure") if "structure" in about.values else None
    if structure is not None:
        require_structure(structure, root)
    if given:
        require_config(about, root)


def _collect_runs(modules: Mapping[str, nn.Module]) -> list[Run]:
    unique: dict[int, Run] = {}
    for module in modules.values():
        unique |= {id(run): run for run in runs_of(module)}
    return list(unique.values())


def _describe_module(module: RestorableModule, runs: list[Run]) -> dict[str, object]:
    numbers = {id(run): number for number, run in enumerate(runs)}
    return {
        "kind": module.kind,
        "package": package_of(module),
        "layout": dict(module.layout()),
        "runs": [numbers[id(run)] for run in runs_of(module)],
    }


def _name_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return parameters and buffers by their first names, and the first name for each further name."""
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


def _resolve_aliases(aliases: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in aliases.values:
        first = aliases.text(name)
        if first not in tensors:
            raise aliases.make_error(name, "the name of a tensor in the file")
        found[name] = tensors[first]
    return found
