"""A process that knows of saved models only what is installed: it loads and calls them, one after another."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tico.quantization import load_quantized
from tico_config import TicoError
from zoo._architecture import Architecture, outputs_of
from zoo._cell import RefusedError

_OUTPUTS: Final = "outputs.pt"
_DONE: Final = "done"
_REFUSED: Final = "refused: "


class OtherProcess:
    """Another process, started once and ended with this one."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    @classmethod
    @functools.cache
    def one(cls) -> OtherProcess:
        """Return the one that all ask."""
        return cls()

    def outputs(self, name: str, folder: str) -> tuple[Tensor, ...]:
        """Return what the model in `folder` gives, which is of the architecture `name`."""
        given, answers = self._process.stdin, self._process.stdout
        if given is None or answers is None:
            raise RuntimeError("the process has no pipes")
        given.write(f"{name}\t{folder}\n")
        given.flush()
        answer = answers.readline().strip()
        if answer.startswith(_REFUSED):
            raise RefusedError(answer.removeprefix(_REFUSED))
        if answer != _DONE:
            raise RuntimeError(f"in another process: {answer or 'it has ended'}")
        found: tuple[Tensor, ...] = torch.load(Path(folder, _OUTPUTS), weights_only=True)
        return found


def serve() -> None:
    """Load and call the models that are named on the standard input, and write what they give beside them."""
    from zoo import ARCHITECTURES  # its rooms import this one

    torch.set_num_threads(1)
    known = {each.name: each for each in ARCHITECTURES}
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            name, folder = line.rstrip("\n").split("\t")
            print(_answer(known[name], folder), file=out, flush=True)


def _answer(architecture: Architecture, folder: str) -> str:
    try:
        float_model = architecture.make() if architecture.family == "network" else None
        model = load_quantized(folder, float_model)
        found = outputs_of(architecture, model, architecture.call(1))
        torch.save(found, Path(folder, _OUTPUTS))
    except TicoError as error:
        return _REFUSED + " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001  # for the process that asked
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return _DONE
