"""Loading saved models in a process that knows of them only what is installed."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tico_modules import load_quantized, save_quantized
from tico_wrapq.testing._quantized_models import calibrated, convert, output_of
from tico_wrapq.testing._wrapper_case import WrapperCase

_OUTPUTS = "outputs.pt"


@functools.cache
def outputs_elsewhere(owner: type) -> Mapping[str, Tensor]:
    """Return what the saved models of the cases of `owner` give in a process of its own, by case.

    That process imports the file that defines the class `owner`, and is started once for all cases.
    """
    cases: Mapping[str, WrapperCase] = vars(owner)["cases"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, case in enumerate(cases.values()):
            save_quantized(convert(calibrated(case)), folder / str(number))
        script = f"import {__name__} as reload; reload.main()"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        arguments = (str(folder), inspect.getfile(owner), owner.__qualname__)
        subprocess.run([sys.executable, "-c", script, *arguments], check=True, env=environment)
        outputs: dict[str, Tensor] = torch.load(folder / _OUTPUTS, weights_only=True)
    return outputs


def main() -> None:
    """Load every model of the folder named on the command line, and write what it gives."""
    folder, source, owner = sys.argv[1:]
    outputs = {}
    for number, (name, case) in enumerate(_cases(source, owner).items()):
        model = load_quantized(Path(folder, str(number)), case.model())
        outputs[name] = output_of(model, *case.inputs)
    torch.save(outputs, Path(folder, _OUTPUTS))


def _cases(source: str, owner: str) -> Mapping[str, WrapperCase]:
    spec = importlib.util.spec_from_file_location("promised", source)
    if spec is None or spec.loader is None:
        raise ImportError(source)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found: object = module
    for name in owner.split("."):
        found = getattr(found, name)
    cases: Mapping[str, WrapperCase] = vars(found)["cases"]
    return cases
