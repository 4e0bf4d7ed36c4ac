"""The worked examples of CONTRIBUTING.md, installed as the packages that they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from distributions import ROOT

BLOCK: Final = re.compile(r"```(?:python|toml)\n# file: (?P<path>\S+)\n(?P<text>.*?)```", re.DOTALL)

USE_CLIPPING: Final = """
import torch
from tico.quantization import convert, prepare, report
from tico_clipping import ClippingConfig

model = torch.nn.Sequential(torch.nn.Linear(8, 8)).eval()
prepared = prepare(model, ClippingConfig(bits=3))
prepared(torch.randn(32, 8))
quantized = convert(prepared)
assert quantized[0].bits == 3
assert report(quantized).layers[0].algorithm == "clipping"
"""

USE_GATES: Final = """
import torch
from tico.quantization import PTQConfig, convert, coverage, load_quantized, prepare, save_quantized
from tico_gates import Gate

x = torch.randn(16, 8)
model = prepare(torch.nn.Sequential(Gate(8)).eval(), PTQConfig())
model(x)
model = convert(model)
assert [line.module for line in coverage(model).lines if line.path == "0"] == ["QuantGate"]
save_quantized(model, "saved")
restored = load_quantized("saved", torch.nn.Sequential(Gate(8)))
assert torch.equal(restored(x), model(x))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that both packages are installed in, and their sources beside it."""
    folder = tmp_path_factory.mktemp("third-party")
    for block in BLOCK.finditer((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        path = folder / block["path"]
        path.parent.mkdir(exist_ok=True)
        path.write_text(block["text"], encoding="utf-8")
    packages = [str(folder / name) for name in ("tico-clipping", "tico-gates")]
    pip = (sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-build-isolation")
    subprocess.run([*pip, "--target", str(folder / "site"), *packages], check=True)
    return folder


def _run(site: Path, *arguments: str) -> None:
    """Run Python where the two packages are installed."""
    environment = os.environ | {"PYTHONPATH": str(site / "site")}
    subprocess.run([sys.executable, "-W", "error", *arguments], check=True, cwd=site, env=environment)


@pytest.mark.parametrize("script", [USE_CLIPPING, USE_GATES], ids=["algorithm", "wrapper"])
def test_installed_package_is_found_through_its_entry_point(site: Path, script: str) -> None:
    """`prepare`, `convert` and `load_quantized` serve a package that is only installed."""
    _run(site, "-c", script)


@pytest.mark.parametrize("name", ["tico-clipping/test_clipping.py", "tico-gates/test_gates.py"])
def test_tests_of_the_example_pass(site: Path, name: str) -> None:
    """The tests that the guide shows pass."""
    _run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", name)


def test_types_of_the_examples_are_strict(site: Path) -> None:
    """The guide's code passes the type checks that the library's own code passes."""
    config = ("--config-file", str(ROOT / "pyproject.toml"))
    environment = os.environ | {"MYPYPATH": str(site / "site")}
    sources = [str(site / "tico-clipping/tico_clipping.py"), str(site / "tico-gates/tico_gates.py")]
    subprocess.run([sys.executable, "-m", "mypy", *config, *sources], check=True, cwd=ROOT, env=environment)
