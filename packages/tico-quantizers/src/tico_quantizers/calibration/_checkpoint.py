"""Finished blocks on disk, so that an interrupted conversion goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import attrs
from torch import Tensor, nn

from tico_config import ArtifactError, BaseConfig, Found, Problem, to_json
from tico_modules import Layout, PackedWeight, Report, library_versions, model_fingerprint, select_below
from tico_observers import read_sealed, tensor_digest, write_sealed
from tico_quantizers.calibration._activation_store import StoredTensor
from tico_quantizers.calibration._block_inputs import BlockInputs
from tico_quantizers.calibration._calls import Opaque, leaves_of
from tico_quantizers.calibration._snapshots import tensors_in
from tico_quantizers.layers import QuantizedWeight


@attrs.frozen(eq=False)
class Kept:
    """What a sealed file of a checkpoint holds, in memory: the file may be removed while the model lives."""

    path: str
    about: str
    tensors: Mapping[str, Tensor]


class Checkpoint:
    """A folder with a sealed file for each finished block, or nothing where `folder` is None.

    The folder is named after what its content follows from: config, model, data and library versions. Other
    work has another one beside it and starts anew.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @classmethod
    def of(cls, config: BaseConfig, model: nn.Module, inputs: BlockInputs) -> Checkpoint:
        """Return that of the work that is about to begin, in the folder that the options of `inputs` name.

        `config` holds those settings alone that the results follow from.
        """
        return cls(checkpoint_folder(config, model, inputs))

    def read(self, name: str) -> Kept | None:
        """Return what `save` has kept under `name`, or None where there is nothing.

        Raises:
            ArtifactError: the file was changed since.
        """
        path = self._path(name)
        if path is None or not path.exists():
            return None
        sealed = read_sealed(path)
        return Kept(str(path), sealed.about, {key: tensor.clone() for key, tensor in sealed.tensors.items()})

    def restored(self, kept: Kept, paths: Sequence[str]) -> list[QuantizedWeight]:
        """Return the weights of the layers at `paths`, as `read` has found them here or on another rank.

        Raises:
            ArtifactError: the file is about other layers.
        """
        about = Layout(kept.path, json.loads(kept.about))
        lines = Report.from_json(about.text("report")).layers
        if {line.path for line in lines} != set(paths):
            raise ArtifactError(
                Problem(
                    module=kept.path,
                    field="layers",
                    value=Found("other ones"),
                    expected="the layers of this block",
                    remedy="remove the file",
                    sentence="the file holds other layers than those of this block",
                )
            )
        layouts = about.child("weights")
        return [
            QuantizedWeight(
                PackedWeight.restore(layouts.child(line.path), select_below(kept.tensors, line.path)), line
            )
            for line in lines
        ]

    def save(self, name: str, weights: Sequence[QuantizedWeight]) -> None:
        """Keep the weights of a finished block: the whole file, or none of it.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self._path(name)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "report": Report(layers=tuple(weight.line for weight in weights)).to_json(),
            "weights": {weight.line.path: weight.packed.layout() for weight in weights},
        }
        tensors = {
            f"{weight.line.path}.{key}": buffer
            for weight in weights
            for key, buffer in weight.packed.named_buffers()
        }
        write_sealed(path, json.dumps(about, sort_keys=True), tensors)

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}.safetensors"


class Search(Protocol):
    """What looks for something in each block, and can go on where another one was interrupted."""

    def found(self) -> Mapping[str, Tensor]:
        """Return what was found so far, and what waits for more, by names that no later block changes."""

    def resume(self, found: Mapping[str, Tensor]) -> None:
        """Take over what `found` has returned."""


class SearchCheckpoint(Checkpoint):
    """A folder with what a `search` has found in each block, which leaves no weights in it."""

    def __init__(self, folder: Path | None, search: Search) -> None:
        super().__init__(folder)
        self._search = search
        self._kept: set[str] = set()

    def restored(self, kept: Kept, paths: Sequence[str]) -> list[QuantizedWeight]:
        """Let the search have found what is `kept`; there are no weights."""
        self._search.resume(kept.tensors)
        self._kept |= kept.tensors.keys()
        return []

    def save(self, name: str, weights: Sequence[QuantizedWeight]) -> None:
        """Keep what the search has found since it was last kept: the whole file, or none of it.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self._path(name)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = {key: tensor for key, tensor in self._search.found().items() if key not in self._kept}
            write_sealed(path, "{}", new)
            self._kept |= new.keys()


def checkpoint_folder(config: BaseConfig, model: nn.Module, inputs: BlockInputs) -> Path | None:
    """Return the folder for the work that is about to begin; None where the options of `inputs` name none.

    `config` holds those settings alone that the results follow from.
    """
    folder = inputs.options.checkpoint
    return None if folder is None else folder / work_digest(config, model, inputs)[:32]


def work_digest(config: BaseConfig, model: nn.Module, inputs: BlockInputs) -> str:
    """Return the SHA-256 of all that a conversion gives the same bits for, as 64 hexadecimal digits."""
    digest = hashlib.sha256(to_json(config).encode())
    kinds = [f"{path} {type(module).__qualname__}" for path, module in model.named_modules()]
    for text in (*kinds, model_fingerprint(model), repr(library_versions()), *_data(inputs)):
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()


def _data(inputs: BlockInputs) -> Iterator[str]:
    """Yield what tells calibration data apart: every call of a block, and what was read outside of them."""
    seen: dict[int, str] = {}
    for calls in inputs.calls.accepted:
        for call in calls:
            yield f"{call.autocast} {' '.join(_described(leaf, seen) for leaf in leaves_of(call))}"
            yield repr(sorted(call.kwargs))
    for grams in (inputs.outside, inputs.strays):
        for path, parts in sorted(grams.matrices()):
            yield f"{path} {' '.join(map(tensor_digest, parts))}"


def _described(leaf: object, seen: dict[int, str]) -> str:
    """Return a text for an argument; one that all blocks are given is read once."""
    match leaf:
        case Tensor() | StoredTensor() | Opaque():
            if id(leaf) not in seen:
                seen[id(leaf)] = _content(leaf)
            return seen[id(leaf)]
        case None | bool() | int() | float() | str() | bytes():
            return repr(leaf)
        case _:
            return type(leaf).__qualname__ if not attrs.has(type(leaf)) else repr(leaf)


def _content(leaf: Tensor | StoredTensor | Opaque) -> str:
    if isinstance(leaf, Opaque):
        return " ".join(_content(tensor) for tensor in tensors_in(leaf.copy))
    tensor = leaf if isinstance(leaf, Tensor) else leaf.tensor()
    return f"{tensor.dtype} {tuple(tensor.shape)} {tensor_digest(tensor)}"
