"""Changes one guard at a time and runs the tests that should notice; lists the changes that none did.

`python tests/support/run_mutants.py [PART OF A PATH …]`, in the root of the repository. Each mutant lives
in a process of its own, forked from one that has run the tests already, where everything is imported: there,
only the code of one function is exchanged. No file is written to.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType

import pytest
import torch

from mutants import Mutant, mutants_of
from mutated_guards import EQUIVALENT, GUARDS


def outcome_of(
    mutant: Mutant, functions: Sequence[FunctionType], tests: Sequence[str], seconds: float
) -> str:
    """Return what becomes of `mutant`: killed, survived, or not ended after `seconds`."""
    child = os.fork()
    if child == 0:
        for function in functions:
            function.__code__ = mutant.code
        os._exit(_run(tests))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == pytest.ExitCode.OK else "killed"
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "not ended"


def _run(tests: Sequence[str]) -> int:
    """Run `tests` up to the first failure, without a word."""
    kept = os.dup(1), os.dup(2)
    silent = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(silent, number)
    result = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
    for number, old in zip((1, 2), kept, strict=True):
        os.dup2(old, number)
    return int(result)


def _functions_in(path: str) -> dict[str, list[FunctionType]]:
    """Return the functions of the file at `path` that are in memory, by qualified name."""
    found: dict[str, list[FunctionType]] = {}
    for each in gc.get_objects():
        if type(each) is FunctionType and each.__code__.co_filename.endswith(path):
            found.setdefault(each.__code__.co_qualname, []).append(each)
    return found


def survivors(path: str, tests: Sequence[str]) -> list[Mutant]:
    """Run every mutant of the file at `path`, and print what becomes of them."""
    start = time.monotonic()
    if _run(tests) != pytest.ExitCode.OK:
        sys.exit(f"the tests of {path} fail without any change")
    seconds = 3 * (time.monotonic() - start) + 10
    functions, found, counts = _functions_in(path), [], Counter[str]()
    for mutant in mutants_of(path, Path(path).read_text()):
        known = mutant.key in EQUIVALENT
        outcome = "equivalent" if known else outcome_of(mutant, functions[mutant.function], tests, seconds)
        counts[outcome] += 1
        if outcome == "survived":
            found.append(mutant)
            print(mutant, flush=True)  # noqa: T201  # a script reports by printing
    print(path, dict(counts), flush=True)  # noqa: T201
    return found


def main(parts: Sequence[str]) -> int:
    """Run the mutants of the files whose paths hold one of `parts`; return 1 if any survives, else 0."""
    torch.set_num_threads(1)
    os.environ["HYPOTHESIS_PROFILE"] = "mutation"
    chosen = [path for path in GUARDS if not parts or any(part in path for part in parts)]
    found = [mutant for path in chosen for mutant in survivors(path, GUARDS[path])]
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
