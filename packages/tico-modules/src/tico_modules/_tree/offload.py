"""Tensors kept in files that are mapped into memory, so that a model may be larger than it."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from tico_modules._tree.free_memory import return_free_memory
from tico_modules._tree.module_tree import named_modules

_SMALLEST: Final = 2**9
_ALIGNMENT: Final = 64
_SEGMENT: Final = 2**24
_RETURNED_EVERY: Final = 2**20


class Offload:
    """A folder on disk for what a model holds, in files without a name.

    Tensors are moved into pages of mapped files, which the system writes to disk and drops where memory is
    short. The files are gone when the last tensor in them is, or the process ends, in whatever way. Such
    tensors are like others; only that a copy of a model is in memory again.

    Args:
        folder: exists, and has room for what is moved to it; best not in memory, as ``/tmp`` may be.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     layer, offload = nn.Linear(64, 64), Offload(folder)
    ...     offload.move(layer)
    ...     offload.holds(layer.weight), layer(torch.ones(1, 64)).shape
    (True, torch.Size([1, 64]))
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._maps: dict[int, Tensor] = {}
        self._free = torch.empty(0, dtype=torch.uint8)
        self._total = 0
        self._moved = 0

    def __reduce__(self) -> tuple[type[Offload], tuple[Path]]:
        """Let a copy of a model, which is in memory, have one that holds nothing."""
        return Offload, (self.folder,)

    def another(self) -> Offload:
        """Return one of the same folder that holds nothing, to be dropped earlier."""
        return Offload(self.folder)

    def hold(self, content: Tensor) -> None:
        """Take `content`, bytes of a file that is mapped, for tensors that need not be moved."""
        self._maps[content.untyped_storage().data_ptr()] = content

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether the memory of `tensor` is that of a mapped file."""
        return tensor.untyped_storage().data_ptr() in self._maps

    def move(self, value: object) -> None:
        """Move a tensor, or all that a module holds, into files; the objects stay what they are.

        Small tensors stay in memory, and so does what is on another device or has no elements of its own.
        The memory that moving has freed goes back to the system, now and then.

        Raises:
            OSError: the disk is full.
        """
        match value:
            case nn.Module():
                for _, module in named_modules(value):
                    parameters: dict[str, nn.Parameter | None] = module._parameters
                    buffers: dict[str, Tensor | None] = module._buffers
                    for tensor in (*parameters.values(), *buffers.values()):
                        self.move(tensor)
            case Tensor() if _is_movable(value) and not self.holds(value):
                value.data = self.copied(value)
                self._count(value.nbytes)
            case _:
                return

    def _count(self, size: int) -> None:
        """Note that so many bytes were moved; large models would keep what is free between small objects."""
        self._moved += size
        if self._moved >= _RETURNED_EVERY:
            self._moved = 0
            return_free_memory()

    def copied(self, tensor: Tensor) -> Tensor:
        """Return a copy of a contiguous tensor in a file.

        Raises:
            OSError: the disk is full.
        """
        room = -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        if room > self._free.numel():
            self._free = self._segment(max(room, _SEGMENT, self._total // 8))
            self.hold(self._free)
        place, self._free = self._free[: tensor.nbytes], self._free[room:]
        copy = place.view(tensor.dtype).view(tensor.shape)
        copy.copy_(tensor.detach())
        return copy

    def _segment(self, size: int) -> Tensor:
        """Return `size` bytes of a new file, for which there is room on the disk."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            if sys.platform == "linux":
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # a full disk shows only when pages are written
                file.truncate(size)
            content = mmap.mmap(file.fileno(), size)
        self._total += size
        return torch.frombuffer(content, dtype=torch.uint8)


def _is_movable(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    dense = plain and tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_inference()
    return dense and tensor.nbytes >= _SMALLEST
