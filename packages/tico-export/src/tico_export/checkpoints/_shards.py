"""Files of safetensors that hold the tensors of a checkpoint, with an index where there are several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from torch import Tensor

from tico_observers import write_sealed

ONE_FILE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_ABOUT: Final = '{"kind":"checkpoint"}'
SHARD_BYTES: Final = 5 * 10**9


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], limit: int) -> None:
    """Write `tensors` to `folder`, up to `limit` bytes of them in a file, but at least one tensor.

    They are taken one at a time, so that no more than a file's worth is held. The same tensors in the same
    order give the same bytes in every process.

    Raises:
        UnsupportedError: a tensor has no data.
        OSError: a file cannot be written.
    """
    held: list[tuple[str, ...]] = []
    total = 0
    for part in _parts(tensors, limit):
        write_sealed(folder / _name(len(held)), _ABOUT, part)
        held.append(tuple(part))
        total += sum(_size(each) for each in part.values())
    if len(held) == 1:
        (folder / _name(0)).rename(folder / ONE_FILE)
        return
    names = [f"model-{number:05}-of-{len(held):05}.safetensors" for number in range(1, len(held) + 1)]
    for number, name in enumerate(names):
        (folder / _name(number)).rename(folder / name)
    files = {tensor: name for name, part in zip(names, held, strict=True) for tensor in part}
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _name(number: int) -> str:
    """Return the name of a file while it is not known how many there will be."""
    return f".model-{number:05}.safetensors"


def _parts(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if part and size + _size(tensor) > limit:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += _size(tensor)
    yield part


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
