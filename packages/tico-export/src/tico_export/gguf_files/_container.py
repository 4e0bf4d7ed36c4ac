"""Files of GGUF, version 3: metadata, what tensors there are, and their bytes at aligned places.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, in little-endian order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import attrs

from tico_export.gguf_files._tensor_types import TensorType

Value: TypeAlias = bool | int | float | str | tuple[str, ...] | tuple[int, ...] | tuple[float, ...]
"""What stands under a key; integers are uint32, those in arrays int32, floats float32."""

_MAGIC: Final = b"GGUF"
_VERSION: Final = 3
_ALIGNMENT: Final = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@attrs.frozen(eq=False, kw_only=True)
class FileTensor:
    """A tensor of a file: its `shape` has the rows first, and `content` makes its bytes when they are due."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    content: Callable[[], bytes]

    @property
    def bytes(self) -> int:
        """The number of its bytes."""
        return self.type.bytes_of(self.shape)


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[FileTensor]) -> None:
    """Write a file at `path`, its keys and tensors in the order given, one tensor in memory at a time."""
    head = [_MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    head += [_string(key) + _typed(value) for key, value in metadata.items()]
    offset = 0
    for each in tensors:
        head.append(_information(each, offset))
        offset += _aligned(each.bytes)
    with path.open("wb") as file:
        file.write(_padded(b"".join(head)))
        for each in tensors:
            file.write(_padded(each.content()))


def _information(tensor: FileTensor, offset: int) -> bytes:
    """Return what the file says of a tensor, whose axes it names from the last to the first."""
    axes = tensor.shape[::-1]
    numbers = struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, tensor.type.number, offset)
    return _string(tensor.name) + numbers


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _padded(content: bytes) -> bytes:
    return content.ljust(_aligned(len(content)), b"\0")


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _typed(value: Value) -> bytes:
    if isinstance(value, tuple):
        first = value[0]
        kind = _STRING if isinstance(first, str) else _FLOAT32 if isinstance(first, float) else _INT32
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(_items(kind, value))
    kind = _kind_of(value)
    return struct.pack("<I", kind) + b"".join(_items(kind, (value,)))


def _kind_of(value: bool | float | str) -> int:
    if isinstance(value, str):
        return _STRING
    if isinstance(value, bool):
        return _BOOL
    return _UINT32 if isinstance(value, int) else _FLOAT32


def _items(kind: int, values: Iterable[bool | float | str]) -> Iterable[bytes]:
    if kind == _STRING:
        return (_string(str(each)) for each in values)
    form = {_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f", _BOOL: "<?"}[kind]
    return (struct.pack(form, each) for each in values)
