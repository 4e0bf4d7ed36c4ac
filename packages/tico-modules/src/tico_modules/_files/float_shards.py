"""The tensors of a checkpoint in the safetensors layout, mapped from its shards."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs
import torch
from torch import Tensor

from tico_config import ArtifactError, Found, Problem
from tico_modules._tree.offload import Offload
from tico_observers import mapped_bytes

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_MAX_HEADER_BYTES: Final = 2**26
_DTYPES: Final[Mapping[object, torch.dtype]] = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "I8": torch.int8,
    "U8": torch.uint8,
}


def map_shards(folder: Path, offload: Offload) -> dict[str, Tensor]:
    """Return the tensors of the checkpoint in `folder`, mapped from its files, which `offload` holds then.

    They can be read only: writing to one of them ends the process.

    Raises:
        ArtifactError: with every file that is missing or damaged, and every tensor that the index names and
            no file holds.
        OSError: a file cannot be read.
    """
    listed = _listed(folder)
    tensors: dict[str, Tensor] = {}
    problems: list[Problem] = []
    for name in sorted(set(listed.values())):
        try:
            tensors |= _mapped(folder / name, offload)
        except ArtifactError as error:
            problems += error.problems
    if not problems:
        lacking = [name for name, file in listed.items() if name and name not in tensors]
        problems += [
            _problem(folder / listed[name], f"one without {name}", "as the index says") for name in lacking
        ]
    if problems:
        raise ArtifactError(*problems)
    return tensors


def _listed(folder: Path) -> dict[str, str]:
    """Return the file of each tensor by the index; of a checkpoint without one, the single file as ``""``.

    Raises:
        ArtifactError: the folder holds no checkpoint, or the index is damaged or names what is no file in it.
    """
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return {"": SINGLE}
        found = "a folder without them" if folder.is_dir() else "no folder"
        remedy = "pass the folder of a float model that save_pretrained has written"
        raise ArtifactError(_problem(folder, found, f"a folder with {SINGLE} or {INDEX}", remedy))
    try:
        listing: object = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        listing = None
    named = listing if isinstance(listing, dict) else {}
    files = {
        str(name): file for name, file in named.items() if isinstance(file, str) and Path(file).name == file
    }
    if not files or len(files) != len(named):
        raise ArtifactError(_problem(index, "a damaged one", "an index with the file of each tensor"))
    return files


@attrs.frozen
class _Place:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def _mapped(path: Path, offload: Offload) -> dict[str, Tensor]:
    """Return the tensors of one file.

    Raises:
        ArtifactError: it is missing, or its header does not fit its size.
    """
    if not path.is_file():
        raise ArtifactError(_problem(path, "no such file", "there, as the index names it"))
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ArtifactError(_problem(path, f"one of {size} bytes", "a whole file of safetensors"))
        places = list(_places(path, file.read(length), size - 8 - length))
        content = mapped_bytes(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    offload.hold(content)
    body = content[8 + length :]
    return {place.name: _tensor(body[place.start : place.end], place, offload) for place in places}


def _places(path: Path, header: bytes, size: int) -> Iterator[_Place]:
    """Yield where the tensors lie in the `size` bytes after the header.

    Raises:
        ArtifactError: the header is none, or names bytes that are not there, or too many or too few of them.
    """
    try:
        entries: object = json.loads(header)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise ArtifactError(_problem(path, "one with a damaged header", "a whole file of safetensors"))
    for name, entry in entries.items():
        if name != "__metadata__":
            yield _place(path, str(name), entry, size)


def _place(path: Path, name: str, entry: object, size: int) -> _Place:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(end)]} if (
            kind in _DTYPES and all(type(each) is int and each >= 0 for each in shape)
        ):
            place = _Place(name, _DTYPES[kind], tuple(shape), start, end)
        case _:
            expected = "a dtype, a shape and offsets for each tensor"
            raise ArtifactError(_problem(path, f"{entry!r} for {name!r}", expected))
    if start < 0 or end > size:
        found = f"a file whose {size} bytes of tensors end before {name!r}"
        raise ArtifactError(_problem(path, found, f"at least {end} bytes", "copy or download the file again"))
    if end - start != math.prod(place.shape) * place.dtype.itemsize:
        found = f"{end - start} bytes for {name!r}, of shape {place.shape} and dtype {kind}"
        raise ArtifactError(_problem(path, found, "as many bytes as the shape asks for"))
    return place


def _tensor(content: Tensor, place: _Place, offload: Offload) -> Tensor:
    aligned = content.storage_offset() % place.dtype.itemsize == 0
    return (content if aligned else offload.copied(content)).view(place.dtype).view(place.shape)


def _problem(path: Path, found: str, expected: str, remedy: str | None = None) -> Problem:
    return Problem(module=str(path), field="file", value=Found(found), expected=expected, remedy=remedy)
