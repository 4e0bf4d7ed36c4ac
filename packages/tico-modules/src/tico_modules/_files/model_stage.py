"""A model between two conversions, in one sealed file: integer modules, floats, and what was done so far."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from tico_modules._files.descriptions import collect_runs, describe_module, name_tensors, number_runs
from tico_modules._files.module_kinds import load_kinds
from tico_modules._files.restoring import Restoring, find_restorable
from tico_modules._files.saved_model import resolve_aliases
from tico_modules._layers.restorable import RestorableModule
from tico_modules._record.fingerprint import all_tensors
from tico_modules._record.history import remember, runs_of
from tico_modules._record.run import Run
from tico_modules._storage.layout import Layout
from tico_modules._tree.edit import Edit
from tico_modules._tree.module_tree import named_modules
from tico_modules._tree.offload import Offload
from tico_modules._tree.result_marks import mark_result
from tico_modules._tree.ties import drop_stale_ties
from tico_observers import read_sealed, write_sealed

_SMALLEST: Final = 2**12


def empty_copy(model: nn.Module) -> nn.Module:
    """Return a copy of `model` whose parameters and buffers are on the meta device, but for small ones.

    >>> empty_copy(nn.Linear(64, 64)).weight.device
    device(type='meta')
    """
    # A small buffer, such as the frequencies of positions, may be an attribute too, which no file fills.
    large = [tensor for _, tensor in all_tensors(model, empty=True) if tensor.nbytes >= _SMALLEST]
    return copy.deepcopy(model, {id(tensor): _emptied(tensor) for tensor in large})


def _emptied(tensor: Tensor) -> Tensor:
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta


def save_stage(model: nn.Module, path: Path) -> None:
    """Write what conversions have made of `model` to `path`, for `load_stage`: the whole file or none of it.

    Unlike `save_quantized` it takes models that are float still, as SmoothQuant leaves them.

    Raises:
        UnsupportedError: a tensor has no data, or a dtype or name that the layout lacks.
        OSError: the file cannot be written.
    """
    tensors, aliases = name_tensors(model)
    write_sealed(path, _described(model, aliases), tensors)


def _described(model: nn.Module, aliases: Mapping[str, str]) -> str:
    """Return in JSON what a file holds of `model` besides tensors."""
    modules = dict(named_modules(model))
    runs = collect_runs(modules.values())
    float_runs = {
        place: number_runs(module, runs)
        for place, module in modules.items()
        if runs_of(module) and not isinstance(module, RestorableModule)
    }
    about = {
        "aliases": aliases,
        "float_runs": float_runs,
        "modules": {place: describe_module(module, runs) for place, module in find_restorable(model)},
        "runs": [run.to_values() for run in runs],
    }
    return json.dumps(about, sort_keys=True, allow_nan=False)


@torch.inference_mode(mode=False)
def load_stage(path: Path, empty: nn.Module, offload: Offload) -> nn.Module:
    """Put what `save_stage` has written into `empty`, a copy of the float model; return its root.

    Tensors are mapped to be read only, and held by `offload`.

    Raises:
        ArtifactError: the file is damaged, or does not fit the model.
        OSError: the file cannot be read.
    """
    sealed = read_sealed(path, read_only=True)
    about = Layout(str(path), json.loads(sealed.about))
    for tensor in sealed.tensors.values():
        offload.hold(tensor)
    tensors = {**sealed.tensors, **resolve_aliases(about.child("aliases"), sealed.tensors)}
    runs = tuple(map(Run.from_layout, about.objects("runs")))
    with Edit() as edit:
        restoring = Restoring(root=empty, where=str(path), tensors=tensors, edit=edit)
        restoring.put_modules(about.child("modules"), load_kinds(), runs)
        restoring.fill()
        restoring.tie_weights()
        drop_stale_ties(restoring.root, edit)
    root, known = restoring.root, about.child("float_runs")
    for place in known.values:
        for number in known.integers(place):
            remember((root.get_submodule(place),), runs[number])
    offload.move(root)
    mark_result(root)
    return root.eval()
