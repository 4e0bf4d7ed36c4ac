"""Each step that can take long shows how far it is, on a terminal alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import nn

from tico.quantization import (
    AWQConfig,
    BlockTuneConfig,
    GPTQConfig,
    HQQConfig,
    PTQConfig,
    RotationConfig,
    ScaleTuneConfig,
    SmoothQuantConfig,
    ablation,
    calibrate,
    compare,
    convert,
    load_quantized,
    perplexity,
    prepare,
    save_quantized,
)
from tico.quantization.config import BaseConfig
from tico_quantizers.evaluation import Comparison
from tiny_models import TOKENS, tiny_llama


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


CONFIGS: Final[Mapping[str, BaseConfig]] = {
    "AWQ": AWQConfig(group_size=8),
    "BLOCK_TUNE": BlockTuneConfig(group_size=8, steps=1),
    "GPTQ": GPTQConfig(),
    "HQQ": HQQConfig(group_size=8),
    "PTQ": PTQConfig(),
    "ROTATION": RotationConfig(),
    "SCALE TUNE": ScaleTuneConfig(base=GPTQConfig(group_size=8), steps=1),
    "SMOOTHQUANT": SmoothQuantConfig(alpha="auto"),
}


def quantized(config: BaseConfig) -> nn.Module:
    """Return a tiny model that was calibrated and converted."""
    return convert(calibrate(prepare(tiny_llama(), config), [TOKENS]))


def _save_and_load(folder: Path) -> nn.Module:
    save_quantized(quantized(GPTQConfig()), folder)
    return load_quantized(folder)


def _compared(folder: Path) -> Comparison:
    return compare(tiny_llama(), quantized(GPTQConfig()), [TOKENS])


STEPS: Final[Mapping[str, Callable[[Path], object]]] = {
    "calibration": lambda folder: quantized(GPTQConfig()),
    "saving": _save_and_load,
    "loading": _save_and_load,
    "COMPARE": _compared,
    "ABLATION": lambda folder: ablation(tiny_llama(), quantized(GPTQConfig()), [TOKENS]),
    "PERPLEXITY": lambda folder: perplexity(tiny_llama(), TOKENS),
}


def drawn(work: Callable[[], object]) -> str:
    """Return what is drawn on a terminal meanwhile."""
    terminal = Terminal()
    with redirect_stderr(terminal):
        work()
    return terminal.getvalue()


@pytest.mark.parametrize("label", CONFIGS)
def test_conversions_have_a_bar(label: str) -> None:
    """The label is that of the algorithm; the line is gone in the end."""
    torch.manual_seed(0)
    text = drawn(lambda: quantized(CONFIGS[label]))
    assert f"\r{label}:" in text
    assert text.endswith("\r")


@pytest.mark.parametrize("label", STEPS)
def test_other_steps_have_a_bar(label: str, tmp_path: Path) -> None:
    """Of what reads, writes and measures."""
    assert f"\r{label}:" in drawn(lambda: STEPS[label](tmp_path / "model"))


def test_nothing_is_drawn_where_standard_error_is_no_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither bars nor what they leave."""
    _save_and_load(tmp_path / "model")
    assert capfd.readouterr() == ("", "")
