"""Where the tensors that go from block to block are kept until they are read again."""

from __future__ import annotations

import ctypes
import tempfile
import weakref
from pathlib import Path

import attrs
import torch
from torch import Tensor

_SMALLEST = 2**14


@attrs.frozen(eq=False)
class StoredTensor:
    """Stands for a tensor that is kept on disk or in fewer bits."""

    kept: Tensor | _Place
    dtype: torch.dtype
    device: torch.device

    def tensor(self) -> Tensor:
        """Return the tensor anew, in the dtype that it had.

        Raises:
            OSError: the file cannot be read.
        """
        kept = self.kept if isinstance(self.kept, Tensor) else self.kept.read()
        return kept.to(self.device, self.dtype, copy=isinstance(self.kept, Tensor))

    def __deepcopy__(self, memo: dict[int, object]) -> StoredTensor:
        """Return itself: nothing in it can change."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Return one with its tensor in memory, for another process."""
        kept = self.kept if isinstance(self.kept, Tensor) else self.kept.read()
        return StoredTensor, (kept, self.dtype, self.device)


class _File:
    """A temporary file without a name, closed with the last reference to it."""

    def __init__(self, folder: Path) -> None:
        self.raw = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115  # closed by what follows
        weakref.finalize(self, self.raw.close)


@attrs.frozen(eq=False)
class _Place:
    file: _File
    offset: int
    dtype: torch.dtype
    shape: torch.Size

    def read(self) -> Tensor:
        tensor = torch.empty(self.shape, dtype=self.dtype)
        self.file.raw.seek(self.offset)
        if self.file.raw.readinto(_bytes_of(tensor)) != tensor.nbytes:
            raise OSError("the temporary file of activations has been cut short")
        return tensor


class ActivationStore:
    """Keeps tensors as they are, on disk in the folder `offload`, in bfloat16 (`narrow`), or both.

    The file on disk has no name from the moment it is open: it is gone when the last tensor in it is, or the
    process ends, in whatever way.

    >>> ActivationStore(offload=Path(tempfile.gettempdir())).keep(torch.ones(3))  # too small
    tensor([1., 1., 1.])
    """

    def __init__(self, *, offload: Path | None = None, narrow: bool = False) -> None:
        self._offload = offload
        self._narrow = narrow
        self._file: _File | None = None
        self._end = 0

    def __deepcopy__(self, memo: dict[int, object]) -> ActivationStore:
        """Return one with a file of its own."""
        return self.another()

    def another(self) -> ActivationStore:
        """Return an empty one that keeps tensors in the same way."""
        return ActivationStore(offload=self._offload, narrow=self._narrow)

    def keep(self, tensor: Tensor, *, exactly: bool = False) -> Tensor | StoredTensor:
        """Return what to hold instead of `tensor`, which may be itself; `exactly` keeps all its bits.

        Raises:
            OSError: the disk is full.
        """
        plain = type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_meta
        narrow = self._narrow and not exactly and tensor.dtype in (torch.float32, torch.float64)
        if not plain or tensor.nbytes < _SMALLEST or not (narrow or self._offload is not None):
            return tensor
        kept = tensor.detach().to(torch.bfloat16) if narrow else tensor.detach()
        place = kept if self._offload is None else self._written(kept, self._offload)
        return StoredTensor(place, tensor.dtype, tensor.device)

    def taken(self, leaf: object) -> object:
        """Return `leaf`, if it is a stored tensor of another process, as this one keeps it."""
        if not isinstance(leaf, StoredTensor) or not isinstance(leaf.kept, Tensor) or self._offload is None:
            return leaf
        return attrs.evolve(leaf, kept=self._written(leaf.kept, self._offload))

    def _written(self, tensor: Tensor, folder: Path) -> _Place:
        content = tensor.cpu().contiguous()
        self._file = self._file or _File(folder)
        place = _Place(self._file, self._end, content.dtype, content.shape)
        self._file.raw.seek(self._end)
        waiting = _bytes_of(content)
        while waiting:
            waiting = waiting[self._file.raw.write(waiting) :]
        self._end += content.nbytes
        return place


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, to be read or written to while it lives."""
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
