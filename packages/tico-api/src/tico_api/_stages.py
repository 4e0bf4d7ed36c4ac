"""What a run of `quantize_checkpoint` has finished, in files that the next run goes on from."""

from __future__ import annotations

import copy
import hashlib
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tico_config import BaseConfig, to_json
from tico_modules import Offload, empty_copy, library_versions, load_stage, model_fingerprint, save_stage
from tico_observers import tensor_digest
from tico_quantizers import Registry

_PREFIX = "stage-"


class Stages:
    """The model that each config of a run has left, in the folder of what is unfinished.

    The name of a file is made from everything that its content depends on: the model, the data, the configs
    up to this one, and the versions of the libraries. So runs with other arguments do not find it.

    Args:
        folder: is for this run alone.
        model: the float model.
        keys: one for each config, see `stage_keys`; the last one is that of the whole run, `key`.
    """

    def __init__(self, folder: Path, model: nn.Module, keys: Sequence[str]) -> None:
        self._paths = [folder / f"{_PREFIX}{number:05d}-{key}.safetensors" for number, key in enumerate(keys)]
        self._empty = empty_copy(model)
        self._folder = folder
        self.count, self.key = len(keys), keys[-1]

    @property
    def finished(self) -> int:
        """How many of the configs need not be run again."""
        return max((number for number, path in enumerate(self._paths, 1) if path.is_file()), default=0)

    def load(self, finished: int) -> tuple[nn.Module, Offload]:
        """Return the model that the last of so many `finished` configs has left, and what holds its tensors.

        Raises:
            ArtifactError: its file is damaged.
        """
        offload = Offload(self._folder)
        return load_stage(self._paths[finished - 1], copy.deepcopy(self._empty), offload), offload

    def keep(self, number: int, model: nn.Module) -> None:
        """Write what config `number` has left, and remove what then is of no use any more.

        Raises:
            OSError: the file cannot be written.
        """
        save_stage(model, self._paths[number])
        clear(self._folder, [self._paths[number]])


def clear(folder: Path, kept: Iterable[Path] = ()) -> None:
    """Remove what is in `folder` but `kept`; what a next run begins with goes last."""
    there = set(folder.iterdir()) - set(kept)
    for path in sorted(there, key=lambda path: path.name.startswith(_PREFIX)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def finished_text(folder: Path) -> str:
    """Return in words what the unfinished runs in `folder` have finished."""
    configs = max((int(path.name.split("-")[1]) + 1 for path in folder.glob(f"{_PREFIX}*-*")), default=0)
    blocks = len(list(folder.glob("*/block-*.safetensors")))
    if not configs and not blocks:
        return "nothing was finished yet"
    return f"kept in {folder} are finished configs ({configs}) and blocks of the next one ({blocks})"


def source_digest(source: Path, model: nn.Module) -> str:
    """Return a text that tells apart what runs begin with: the float `model`, mapped from `source`."""
    digest = hashlib.sha256((source / "config.json").read_bytes())
    kinds = [f"{path} {type(module).__qualname__}" for path, module in model.named_modules()]
    for text in (*kinds, model_fingerprint(model)):
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()


def config_text(config: BaseConfig, registry: Registry) -> str:
    """Return a text that tells `config` apart, with what `registry` has for it."""
    kind = type(registry.quantizer(config))
    return f"{to_json(config)} {kind.__module__}.{kind.__qualname__}"


def batch_digests(batches: Iterable[object]) -> list[str]:
    """Return a text for each batch that tells it apart; another one each time where it cannot be told."""
    found = []
    for batch in batches:
        digest = hashlib.sha256()
        for text in _described(batch):
            digest.update(f"{text}\0".encode())
        found.append(digest.hexdigest())
    return found


def stage_keys(source: str, configs: Iterable[str], batches: Iterable[str]) -> list[str]:
    """Return for each of `configs` a text that tells apart all that the model which it leaves follows from.

    It does not matter which process has run which of `batches`.
    """
    digest, keys = hashlib.sha256(), []
    for text in (source, repr(library_versions()), *batches):
        digest.update(f"{text}\0".encode())
    for config in configs:
        digest.update(f"{config}\0".encode())
        keys.append(digest.hexdigest()[:32])
    return keys


def _described(value: object) -> Iterator[str]:
    """Yield texts that tell `value`, a batch or what is in one, from others."""
    match value:
        case Tensor() if type(value) is Tensor and value.layout is torch.strided and not value.is_meta:
            yield f"{value.dtype} {tuple(value.shape)} {tensor_digest(value)}"
        case None | bool() | int() | float() | str() | bytes() | torch.dtype():
            yield repr(value)
        case Mapping():
            yield f"{len(value)} named"
            for name, item in value.items():
                yield repr(name)
                yield from _described(item)
        case Iterable():
            yield type(value).__name__
            for item in value:
                yield from _described(item)
            yield "end"
        case _:
            yield secrets.token_hex()
