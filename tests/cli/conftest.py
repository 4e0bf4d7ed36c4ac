"""A float model, a quantized one, and the program in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from program_runs import Run, save_float_model, text_of
from tico.quantization import GPTQConfig, quantize_checkpoint
from tico_cli import _program


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a float model, which no test changes."""
    return save_float_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def quantized(source: Path) -> Path:
    """Return the folder of that model in 4 bits, which no test changes."""
    import torch

    config = GPTQConfig(group_size=16, show_progress=False)
    out = source.with_name("tiny-w4")
    quantize_checkpoint(source, out, config, [torch.arange(64).view(2, 32)])
    return out


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Return a file with a text of some 40 windows."""
    path = tmp_path / "text.txt"
    path.write_text(text_of(1200), encoding="utf-8")
    return path


@pytest.fixture
def tico() -> Run:
    """Return what runs the program in this process."""

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(_program._app, [*map(str, arguments)])

    return run
