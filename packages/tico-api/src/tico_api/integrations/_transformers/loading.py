"""The time between the skeleton of a saved model and its tensors, which transformers reads itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import attrs
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from tico_config import ArtifactError, Problem
from tico_modules import (
    QuantizedModule,
    SavedModel,
    children,
    mark_initialized,
    named_modules,
    tensor_place,
)

_MANIFEST = "quantized.json"
_IGNORED = "_keys_to_ignore_on_load_unexpected"


class _Handle(Protocol):
    def remove(self) -> None:
        """Take the hook back."""


@attrs.define(kw_only=True, eq=False)
class Loading:
    """A model whose modules are in place, while its tensors are read.

    transformers fills what the state dict of the model names. Names without a tensor in the files are hidden
    from it: second names of shared tensors, formats, and the empty parameters that only have a dtype. What
    the files hold and the state dict does not name, such as buffers that are not persistent, is put in
    afterwards.
    """

    model: PreTrainedModel
    saved: SavedModel
    rest: Mapping[str, Tensor]
    handle: _Handle
    ignored: set[str] | None

    @classmethod
    def begin(cls, model: PreTrainedModel, files: Sequence[Path], dtype: torch.dtype | None) -> Loading:
        """Put the integer modules in `files` into `model`, without data; `dtype` is what to cast floats to.

        Raises:
            ArtifactError: the files are damaged, do not belong together, or do not fit `model`.
        """
        saved = _open(model, files)
        kinds = {path: type(module).__name__ for path, module in named_modules(model)}
        with torch.device("cpu"):  # transformers makes whatever is made on the meta device
            saved.put_into(model, given=False)
        _remove_data(model, saved)
        _keep_whole(model, kinds)
        if dtype is not None:
            nn.Module.to(model, dtype)
        second = saved.manifest.aliases.keys() - model.all_tied_weights_keys.keys()

        def hide(_: nn.Module, state: dict[str, object], prefix: str, metadata: object) -> None:
            for name in [*state]:
                if name in second or name not in saved.tensors:
                    del state[name]

        handle: _Handle = model.register_state_dict_post_hook(hide)  # type: ignore[no-untyped-call]
        rest = {name: tensor for name, tensor in saved.tensors.items() if name not in model.state_dict()}
        ignored: set[str] | None = getattr(model, _IGNORED, None)
        setattr(model, _IGNORED, (ignored or set()) | {rf"(^|\.){re.escape(name)}$" for name in rest})
        return cls(model=model, saved=saved, rest=rest, handle=handle, ignored=ignored)

    def finish(self) -> None:
        """Put in what transformers has not read, and take back what was only for the time of loading."""
        self.handle.remove()
        setattr(self.model, _IGNORED, self.ignored)
        aliases = self.saved.manifest.aliases
        for name, tensor in self.rest.items():
            if name in aliases:
                _share(self.model, name, aliases[name])
            else:
                _put(self.model, name, tensor)
        for _, module in named_modules(self.model):
            if isinstance(module, QuantizedModule):
                module.like.requires_grad_(False)  # transformers makes every parameter one to train
        mark_initialized(self.model)


def _open(model: PreTrainedModel, files: Sequence[Path]) -> SavedModel:
    """Return the saved model that consists of `files`.

    Raises:
        ArtifactError: another one does.
    """
    folder = files[0].parent
    if not (folder / _MANIFEST).exists():  # a cache of downloads, which are asked for one by one
        cached_file(str(model.config.name_or_path), _MANIFEST, revision=folder.name)
    saved = SavedModel.open(folder, follow_links=True)
    expected = sorted(shard.name for shard in saved.manifest.shards)
    found = sorted(file.name for file in files)
    if found != expected:
        where, remedy = str(folder), "save the model again"
        raise ArtifactError(
            Problem(module=where, field="index", value=found, expected=f"{expected}", remedy=remedy)
        )
    return saved.below(model.base_model_prefix) if _is_base_of(saved, model) else saved


def _is_base_of(saved: SavedModel, model: PreTrainedModel) -> bool:
    """Tell whether `model` is the base of the saved model, as a LLaMA is of one with a head."""
    prefix = model.base_model_prefix
    held = any(name.startswith(f"{prefix}.") for name in saved.tensors)
    return saved.architecture != type(model).__name__ and held and prefix not in children(model)


def _remove_data(model: nn.Module, saved: SavedModel) -> None:
    """Put the tensors of the files in `model` on the meta device; one that is shared stays one."""
    made: dict[int, Tensor] = {}
    for path, module in named_modules(model):
        prefix = f"{path}." if path else ""
        parameters: dict[str, Tensor | None] = module._parameters  # type: ignore[assignment]
        buffers: dict[str, Tensor | None] = module._buffers
        for held in (parameters, buffers):
            for name, tensor in held.items():
                if tensor is not None and prefix + name in saved.tensors:
                    held[name] = made.setdefault(id(tensor), _without_data(tensor))


def _without_data(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty


def _keep_whole(model: PreTrainedModel, kinds: Mapping[str, str]) -> None:
    """Let a device hold the whole of what replaces a layer that it had to hold as a whole; `kinds` were."""
    whole: frozenset[str] = frozenset(getattr(model, "_no_split_modules", None) or ())
    more = {type(module).__name__ for path, module in named_modules(model) if kinds.get(path) in whole}
    if not more <= whole:
        setattr(model, "_no_split_modules", sorted(whole | more))  # noqa: B010


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, last = name.rpartition(".")
    place = tensor_place(model.get_submodule(path), last)
    if place is not None:
        place[last] = tensor.to(place[last].device)


def _share(model: nn.Module, name: str, first: str) -> None:
    """Let the tensor `name` of `model` be the one that is called `first`."""
    (path, _, last), (other, _, origin) = name.rpartition("."), first.rpartition(".")
    place, source = (
        tensor_place(model.get_submodule(at), key) for at, key in ((path, last), (other, origin))
    )
    if place is not None and source is not None:
        place[last] = source[origin]
