"""Memory that holds nothing any more goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Tensors of 256 KB with ones of 32 KB between them, all in the heap; then the large ones are gone.
HOLES = """
import re
from pathlib import Path
import torch
from torch import nn
from tico_modules import Offload

def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

pairs = [(torch.ones(2**16), torch.ones(2**13)) for _ in range(256)]
full = held()
small = [each for _, each in pairs]
del pairs
Offload(".").move(nn.Parameter(torch.ones(2**22)))
print(full - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked for it")
def test_moving_gives_the_holes_of_the_heap_back() -> None:
    """At least half of 64 MB, after a move of 16 MB, which are in the heap or not at either time."""
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 32
