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

from tico_config import ConfigError, Found, Problem, UnsupportedError
from tico_modules._files.companions import Tokenizer
from tico_modules._files.descriptions import collect_runs, describe_module, name_tensors
from tico_modules._files.manifest import Manifest
from tico_modules._files.model_card import write_model_card
from tico_modules._files.restoring import find_restorable
from tico_modules._files.saved_model import SavedModel, as_path
from tico_modules._files.shards import describe_index, remove_others, write_shards
from tico_modules._files.structure import describe_structure
from tico_modules._files.transformers_model import (
    describe_model,
    makes_by_itself,
    mark_initialized,
    write_beside,
)
from tico_modules._files.wrapped_model import unwrap_model
from tico_modules._record.history import report
from tico_modules._tree.requirements import require_module
from tico_modules._tree.result_marks import mark_result
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
        model: has integer modules. Of what `torch.compile`, `DataParallel`, DDP or `AveragedModel` returned,
            the model inside is saved.
        directory: may hold an earlier model, which is replaced, and anything else, which is left alone.
        tokenizer: has ``save_pretrained``; by default the tokenizer in the folder that the model was loaded
            from, if there is one.
        shard_bytes: the most bytes of tensors in one file; a tensor that is larger has a file of its own.

    Raises:
        UnsupportedError: `model` is no module, has no integer one, or one that holds itself, a tensor has no
            data, or a part is compiled, sharded or has adapters of peft.
        ConfigError: `shard_bytes` is no positive integer, or `tokenizer` cannot save itself.
        OSError: the folder cannot be written.
    """
    require_module(model)
    model = unwrap_model(model)
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
    folder = as_path(directory)
    tensors, aliases = name_tensors(model)
    _require_values(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    runs = collect_runs(modules.values())
    with locked_folder(folder):
        shards = write_shards(folder, tensors, shard_bytes)
        manifest = Manifest(
            aliases=aliases,
            modules={path: describe_module(module, runs) for path, module in modules.items()},
            runs=tuple(runs),
            transformers=describe_model(model),
            shards=shards,
            structure=describe_structure(model),
        )
        write_beside(model, tokenizer, folder, describe_index(tensors, shard_bytes, shards), manifest.runs)
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
    if model is not None:
        require_module(model)
    saved = SavedModel.open(directory)
    skeleton = saved.make_skeleton() if model is None else model
    root = saved.put_into(skeleton, given=model is not None)
    mark_initialized(root)
    mark_result(root)
    return root.eval()


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
