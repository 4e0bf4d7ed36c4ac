"""Sealed files: tensors in the safetensors layout, with digests and a seal over all of it.

One metadata key of the header holds canonical JSON: a schema version, what the file is about, and name,
format, shape and SHA-256 of every tensor, sealed by the SHA-256 of that text. Format, order and offsets of
the tensors follow from it, so a reader rebuilds the whole header and accepts no other. Any
safetensors tool can read the tensors. Nothing in the file names code.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import mmap
import os
import stat
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from torch import Tensor

from tico_config import ArtifactError, Found, Problem, UnsupportedError
from tico_observers._mapped_bytes import mapped_bytes
from tico_observers._replaced_file import replaced_file

SCHEMA_VERSION = 1
_MAX_HEADER_BYTES = 2**26
_METADATA_KEY = "tico"
_DTYPES = {
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
_NAME = "a printable name in NFC, without slashes, two dots in a row or two underscores in front"
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@attrs.frozen
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize


@attrs.frozen(kw_only=True)
class SealedFile:
    """What a sealed file holds, or is going to: `about` is JSON text, `tensors` are by name.

    Two are equal if their seals are, the SHA-256 of all that they hold.

    >>> sealed = seal("{}", {"a": torch.zeros(2)})
    >>> sealed.tensors["a"].shape, len(sealed.seal), sealed == seal("{}", {"a": torch.ones(2)})
    (torch.Size([2]), 64, False)
    """

    about: str = attrs.field(eq=False)
    tensors: Mapping[str, Tensor] = attrs.field(eq=False)
    seal: str
    _header: bytes = attrs.field(eq=False, repr=False)

    @property
    def bytes(self) -> int:
        """Bytes of the whole file."""
        return len(self._header) + sum(t.numel() * t.element_size() for t in self.tensors.values())

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file to `path` under a temporary name beside it, sync it, and rename it.

        Raises:
            OSError: it cannot be written; what was at `path` before is still there.
        """
        with replaced_file(Path(path)) as file:
            file.write(self._header)
            for tensor in self.tensors.values():
                file.write(_view(tensor))


def seal(about: str, tensors: Mapping[str, Tensor]) -> SealedFile:
    """Return the file that holds `tensors` and the JSON text `about`, not written yet.

    The same content gives the same bytes in every process.

    Raises:
        UnsupportedError: a tensor has no data, or a dtype or name that the layout lacks.
    """
    contiguous = {name: _storable(name, tensor) for name, tensor in tensors.items()}
    entries = _ordered(
        [_Entry(n, _NAMES[t.dtype], tuple(t.shape), tensor_digest(t)) for n, t in contiguous.items()]
    )
    ordered = {entry.name: contiguous[entry.name] for entry in entries}
    return SealedFile(
        about=about, tensors=ordered, seal=_seal(about, entries), header=_header(about, entries)
    )


def write_sealed(path: str | os.PathLike[str], about: str, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` and the JSON text `about` to `path`: the whole new file or none of it.

    Raises:
        UnsupportedError: a tensor has no data, or a dtype or name that the layout lacks.
        OSError: the file cannot be written; what was at `path` before is still there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_sealed(f"{folder}/a", "{}", {"x": torch.tensor([1.0])})
    ...     read_sealed(f"{folder}/a").tensors["x"].tolist()
    [1.0]
    """
    seal(about, tensors).write(path)


def read_sealed(path: str | os.PathLike[str], *, read_only: bool = False) -> SealedFile:
    """Return what the sealed file at `path` holds; the tensors are private maps of the file.

    With `read_only`, writing to one of them ends the process. They then count as no memory of it, where
    private maps do (``ulimit -d``).

    Raises:
        ArtifactError: the file is not a sealed file of this version, or any bit of it was changed.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_sealed(f"{folder}/a", '{"what":"an example"}', {})
    ...     read_sealed(f"{folder}/a").about
    '{"what":"an example"}'
    """
    target = Path(path)
    with target.open("rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _refused(target, "a folder or device", "a regular file")
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise _refused(target, f"{size} bytes, {length} of them header", "a whole sealed file")
        header = size_prefix(length) + file.read(length)
        about, entries = _parsed_header(target, header[8:])
        if header not in (_header(about, entries), _header(about, entries, framework=False)):
            raise _refused(target, "another one", "the header that its own list of tensors gives")
        if size != 8 + length + sum(entry.bytes for entry in entries):
            raise _refused(target, f"{size} bytes", "the size that its header gives")
        body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ if read_only else mmap.ACCESS_COPY)
    tensors = _mapped(target, body, 8 + length, entries, read_only=read_only)
    return SealedFile(about=about, tensors=tensors, seal=_seal(about, entries), header=header)


def size_prefix(length: int) -> bytes:
    """Return the eight bytes in front of a header of `length` bytes."""
    return length.to_bytes(8, "little")


def _refused(path: Path, found: str, expected: str) -> ArtifactError:
    return ArtifactError(Problem(module=str(path), field="file", value=Found(found), expected=expected))


def _storable(name: str, tensor: Tensor) -> Tensor:
    problem = None
    if not _is_name(name):
        problem = Problem(module=name, field="name", value=name, expected=_NAME)
    elif tensor.is_meta or tensor.layout is not torch.strided or tensor.dtype not in _NAMES:
        found = Found(f"{tensor.dtype} on {tensor.device}")
        problem = Problem(module=name, field="tensor", value=found, expected="a dense tensor with data")
    if problem:
        raise UnsupportedError(problem)
    return tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()


def _is_name(name: str) -> bool:
    plain = bool(name) and name.isprintable() and unicodedata.is_normalized("NFC", name)
    return plain and not name.startswith("__") and not any(part in name for part in ("/", "\\", ".."))


def _view(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor without copying them."""
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())) if size else memoryview(b"")


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of the elements of a dense tensor, in order, as 64 hexadecimal digits.

    >>> tensor_digest(torch.zeros(2, 2)) == tensor_digest(torch.zeros(4))
    True
    """
    dense = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    return hashlib.sha256(_view(dense)).hexdigest()


def _ordered(entries: list[_Entry]) -> list[_Entry]:
    """Return the entries with the widest elements first, so that every tensor is aligned."""
    return sorted(entries, key=lambda entry: (-_DTYPES[entry.dtype].itemsize, entry.name))


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _listing(about: str, entries: list[_Entry]) -> dict[str, object]:
    listing = {entry.name: [entry.dtype, list(entry.shape), entry.digest] for entry in entries}
    return {"about": about, "schema": SCHEMA_VERSION, "tensors": listing}


def _seal(about: str, entries: list[_Entry]) -> str:
    return hashlib.sha256(_canonical(_listing(about, entries)).encode()).hexdigest()


def _header(about: str, entries: list[_Entry], *, framework: bool = True) -> bytes:
    """Return the header; earlier releases did not write the framework, which some readers ask for."""
    sealed = _listing(about, entries) | {"seal": _seal(about, entries)}
    metadata = {_METADATA_KEY: _canonical(sealed)} | ({"format": "pt"} if framework else {})
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for entry in entries:
        span = [offset, offset + entry.bytes]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": span}
        offset += entry.bytes
    text = _canonical(header).encode()
    padded = text + b" " * (-len(text) % 8)
    return size_prefix(len(padded)) + padded


def _parsed_header(path: Path, header: bytes) -> tuple[str, list[_Entry]]:
    """Return what the header says; the caller checks that it says so in the only accepted way."""
    try:
        sealed: object = json.loads(json.loads(header)["__metadata__"][_METADATA_KEY])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _refused(path, f"one that is not ({type(error).__name__})", "a sealed file") from None
    match sealed:
        case {"schema": int(version)} if version != SCHEMA_VERSION:
            raise _refused(path, f"version {version}", f"of version {SCHEMA_VERSION}")
        case {"about": str(about), "tensors": dict(listing)}:
            return about, _ordered([_entry(path, name, item) for name, item in listing.items()])
        case _:
            raise _refused(path, "one without its list of tensors", "a sealed file")


def _entry(path: Path, name: str, item: object) -> _Entry:
    match item:
        case [str(dtype), list(shape), str(digest)] if (
            _is_name(name) and dtype in _DTYPES and _is_shape(shape)
        ):
            return _Entry(name, dtype, tuple(shape), digest)
        case _:
            raise _refused(path, f"{item!r} for {name!r}", "one with a format, a shape and a digest a tensor")


def _is_shape(shape: list[object]) -> bool:
    return len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**48 for n in shape)


def _mapped(
    path: Path, body: mmap.mmap, offset: int, entries: list[_Entry], *, read_only: bool
) -> dict[str, Tensor]:
    tensors = {}
    view = memoryview(body)
    content = mapped_bytes(body) if read_only else None
    for entry in entries:
        end, dtype = offset + entry.bytes, _DTYPES[entry.dtype]
        part = view[offset:end]
        if hashlib.sha256(part).hexdigest() != entry.digest:
            raise _refused(path, f"other bytes for {entry.name!r}", "the bytes that were written")
        if not entry.bytes:
            flat = torch.empty(0, dtype=dtype)
        elif content is not None:
            flat = content[offset:end].view(dtype)
        else:
            flat = torch.frombuffer(part, dtype=dtype)
        tensors[entry.name] = flat.view(entry.shape)
        offset = end
    return tensors
