"""Memory that is free, but still the process's own."""

from __future__ import annotations

import ctypes
import sys


def return_free_memory() -> None:
    """Give pages of the heap that hold nothing back to the system, where the C library can: glibc can.

    By itself glibc returns only what is free at the end of the heap. With small objects in between, such as
    the modules of a model, tensors of up to 32 MB leave holes behind that count as memory of the process.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
