"""Fresh interpreters in which some modules cannot be found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import Final

_HIDE: Final = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in sys.argv[1].split()):
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

sys.meta_path.insert(0, Hidden())
"""


def run_without(hidden: Iterable[str], script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `script`, with `arguments` from ``sys.argv[2]`` on, where the modules `hidden` cannot be found."""
    command = [sys.executable, "-c", _HIDE + script, " ".join(hidden), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)
