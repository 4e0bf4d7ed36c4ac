"""Each package imports where the layers above it can't be found."""

from __future__ import annotations

from subprocess import CompletedProcess
from typing import Final

import pytest

from distributions import LAYERS, MODULES, modules_above
from hidden_modules import run_without

# What an environment need not hold for any package to import.
EXTRAS: Final = ("hypothesis", "numpy", "pytest", "scipy", "torchao", "tqdm", "transformers")

IMPORT: Final = """
import importlib
for name in sys.argv[2].split():
    importlib.import_module(name)
"""


@pytest.mark.parametrize("name", LAYERS)
def test_imports_without_the_layers_above(name: str) -> None:
    """No import leads up, and none leads to an extra."""
    hidden = (*modules_above(name), *EXTRAS, *(("torch",) if name == "tico-config" else ()))
    finished = _import_without(MODULES[name], hidden)
    assert finished.returncode == 0, finished.stderr


def test_hiding_a_module_works() -> None:
    """The test above would notice an import that leads up."""
    finished = _import_without(MODULES["tico-observers"], MODULES["tico-config"])
    assert "tico_config is hidden" in finished.stderr


def _import_without(names: tuple[str, ...], hidden: tuple[str, ...]) -> CompletedProcess[str]:
    """Import `names` in a fresh interpreter that can't find the modules `hidden`."""
    return run_without(hidden, IMPORT, " ".join(names))
