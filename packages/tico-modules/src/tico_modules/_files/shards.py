"""The sealed files that hold the tensors of a saved model, each up to a number of bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs
from torch import Tensor

from tico_config import ArtifactError, Found, Problem
from tico_modules._storage.layout import Layout
from tico_modules._tree.progress import Progress
from tico_observers import read_sealed, seal

_NAME: Final = re.compile(r"quantized-[0-9]{5}-of-[0-9]{5}-[0-9a-f]{16}\.safetensors")
# What a writer of such a file leaves if it is stopped: `replaced_file` gives these names.
_ORPHAN: Final = re.compile(rf"\.{_NAME.pattern}\.[0-9a-f]+\.tmp")
INDEX_NAME: Final = "quantized.safetensors.index.json"
_ABOUT: Final = '{"kind":"shard of a quantized model","manifest":"quantized.json"}'


@attrs.frozen(kw_only=True)
class Shard:
    """One of the sealed files: its name, its size in bytes, and its seal, a SHA-256 in hexadecimal digits."""

    name: str
    bytes: int
    seal: str


def parse_shard(layout: Layout) -> Shard:
    """Return the shard that `layout` describes.

    Raises:
        ArtifactError: a value is missing or wrong; a path, for example, is no name of a shard.
    """
    layout.require_keys(("bytes", "name", "seal"))
    name = layout.text("name")
    if not _NAME.fullmatch(name):
        raise layout.make_error("name", "a name like quantized-00001-of-00001-0123456789abcdef.safetensors")
    return Shard(name=name, bytes=layout.integer("bytes"), seal=layout.text("seal"))


def write_shards(folder: Path, tensors: Mapping[str, Tensor], limit: int) -> tuple[Shard, ...]:
    """Write `tensors` to `folder`, up to `limit` bytes of them in a file, but at least one.

    The names of the files depend on their content only.

    Raises:
        UnsupportedError: a tensor has no data, or a dtype or name that the layout lacks.
        OSError: a file cannot be written.
    """
    parts = list(_split_tensors(tensors, limit))
    shards = []
    with Progress("saving", total=2 * len(parts), unit="step") as bar:
        for number, part in enumerate(parts, start=1):
            sealed = seal(_ABOUT, part)
            name = f"quantized-{number:05}-of-{len(parts):05}-{sealed.seal[:16]}.safetensors"
            bar.step(f"{name} sealed")
            sealed.write(folder / name)
            bar.step(f"{name} written")
            shards.append(Shard(name=name, bytes=sealed.bytes, seal=sealed.seal))
    return tuple(shards)


def describe_index(tensors: Mapping[str, Tensor], limit: int, shards: tuple[Shard, ...]) -> str:
    """Return the index that other tools read: which of the `shards` holds which of the `tensors`."""
    parts = zip(_split_tensors(tensors, limit), shards, strict=True)
    files = {name: shard.name for part, shard in parts for name in part}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"format": "pt", "total_size": size}, "weight_map": files}
    return f"{json.dumps(index, sort_keys=True, indent=2)}\n"


def _split_tensors(tensors: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in sorted(tensors.items()):
        own = tensor.numel() * tensor.element_size()
        if part and size + own > limit:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += own
    yield part


def read_shards(folder: Path, shards: tuple[Shard, ...], *, follow_links: bool = False) -> dict[str, Tensor]:
    """Return the tensors of all `shards`, mapped from the files; sizes are checked before any is opened.

    Raises:
        ArtifactError: a file is missing, a link, damaged, or another one than the manifest names.
    """
    problems = [
        problem for shard in shards for problem in _find_misfits(folder / shard.name, shard, follow_links)
    ]
    if problems:
        raise ArtifactError(*problems)
    tensors: dict[str, Tensor] = {}
    with Progress("loading", total=len(shards), unit="file") as bar:
        for shard in shards:
            sealed = read_sealed(folder / shard.name)
            twice = sorted(tensors.keys() & sealed.tensors.keys())
            if sealed.seal != shard.seal or twice:
                found = f"one that also holds {twice[0]!r}" if twice else f"one with the seal {sealed.seal}"
                raise ArtifactError(
                    _make_problem(folder / shard.name, found, f"the one with the seal {shard.seal}")
                )
            tensors |= sealed.tensors
            bar.step(shard.name)
    return tensors


def _find_misfits(path: Path, shard: Shard, follow_links: bool) -> Iterator[Problem]:
    if path.is_symlink() and not follow_links:
        yield _make_problem(path, "a link", "a regular file")
    elif not path.is_file():
        yield _make_problem(path, "no such file", "there, as the manifest names it")
    elif path.stat().st_size != shard.bytes:
        found = f"one of {path.stat().st_size} bytes"
        yield _make_problem(path, found, f"of {shard.bytes} bytes, as the manifest says")


def _make_problem(path: Path, found: str, expected: str) -> Problem:
    return Problem(module=str(path), field="file", value=Found(found), expected=expected)


def remove_others(folder: Path, shards: tuple[Shard, ...]) -> None:
    """Remove the files of earlier models in `folder`, and those that an interrupted save has left.

    The caller keeps other writers out.
    """
    kept = {shard.name for shard in shards}
    for path in folder.iterdir():
        ours = _NAME.fullmatch(path.name) or _ORPHAN.fullmatch(path.name)
        if ours and path.name not in kept:
            path.unlink(missing_ok=True)
