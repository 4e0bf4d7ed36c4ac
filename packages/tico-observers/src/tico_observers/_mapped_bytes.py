"""The bytes of a file that is mapped to be read only, as a tensor."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor


class _Buffer(ctypes.Structure):
    """What `PyObject_GetBuffer` fills in, see the C API of Python."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("owner", ctypes.py_object),
        ("length", ctypes.c_ssize_t),
        ("item_bytes", ctypes.c_ssize_t),
        ("is_read_only", ctypes.c_int),
        ("axes", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )
    address: int
    length: int


def mapped_bytes(file: mmap.mmap) -> Tensor:
    """Return the bytes of a file that is mapped to be read only; writing to them ends the process.

    `torch.frombuffer` warns of such a buffer. A private map that can be written to would count as memory of
    the process, all of it, where that is limited (``ulimit -d``, strict accounting of overcommitment).
    """
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(file), ctypes.byref(buffer), 0)
    view = (ctypes.c_char * buffer.length).from_address(buffer.address)
    setattr(view, "owner", file)  # noqa: B010  # as long as the tensor lives, the map does
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return torch.frombuffer(view, dtype=torch.uint8)
