"""Import some modules, and fail if others are installed: `import_alone.py "A B" "C D"`."""

from __future__ import annotations

import importlib
import importlib.util
import sys


def main(wanted: str, absent: str) -> str | None:
    """Import the modules in `wanted`; return what is wrong, if anything is."""
    found = [name for name in absent.split() if importlib.util.find_spec(name.partition(".")[0])]
    for name in wanted.split():
        importlib.import_module(name)
    return f"with {wanted} came {', '.join(found)}" if found else None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
