"""`write_imatrix`: what llama.cpp's own quantizer is told of the columns of weights."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tico.quantization import GPTQConfig, prepare, save_calibration
from tico_config import CalibrationError, UnsupportedError
from tico_export import write_imatrix

TOKENS = torch.arange(40).view(2, 20) % 31


def llama() -> nn.Module:
    """Return a small LLaMA, the same every time."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = LlamaForCausalLM(config)
    return model.eval()


def calibrated(model: nn.Module, path: Path) -> Path:
    """Write what the layers of `model` read of the tokens."""
    prepared = prepare(model, GPTQConfig(show_progress=False), inplace=False)
    with torch.no_grad():
        prepared(TOKENS)
    save_calibration(prepared, path)
    return path


def test_the_sums_of_squares_are_those_of_the_inputs(tmp_path: Path) -> None:
    """Each layer has its columns' sums and its number of tokens, as a hook on the float model sees them."""
    model, seen = llama(), dict[str, torch.Tensor]()
    for name in ("q_proj", "o_proj"):
        layer = model.get_submodule(f"model.layers.1.self_attn.{name}")
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    write_imatrix(model, calibrated(model, tmp_path / "seen"), tmp_path / "m.imatrix")
    with torch.no_grad():
        model(TOKENS)
    file = importlib.import_module("gguf").GGUFReader(tmp_path / "m.imatrix")
    found = {each.name: torch.from_numpy(each.data.copy()) for each in file.tensors}
    assert len(found) == 2 * 15  # the head too
    assert file.fields["general.type"].contents() == "imatrix"
    for name, named in (("q_proj", "attn_q"), ("o_proj", "attn_output")):
        expected = seen[name].flatten(0, 1).double().square().sum(0)
        # Sums of 40 products in float32 err by at most 40 half units in the last place.
        torch.testing.assert_close(
            found[f"blk.1.{named}.weight.in_sum2"][0].double(), expected, rtol=40 * 2.0**-24, atol=0
        )
        assert found[f"blk.1.{named}.weight.counts"].tolist() == [[40.0]]


def test_other_models_and_files_are_refused(tmp_path: Path) -> None:
    """An architecture without names, a file without Gram matrices of the model, and a path that exists."""
    model = llama()
    seen = calibrated(model, tmp_path / "seen")
    with pytest.raises(UnsupportedError, match="llama, mistral, qwen2, qwen3"):
        write_imatrix(nn.Linear(2, 2), seen, tmp_path / "m.imatrix")
    with pytest.raises(CalibrationError, match=r"lacks: those of layers.0.*save_calibration"):
        write_imatrix(model, calibrated(model.get_submodule("model"), tmp_path / "inner"), tmp_path / "m")
    write_imatrix(model, seen, tmp_path / "m.imatrix")
    with pytest.raises(FileExistsError):
        write_imatrix(model, seen, tmp_path / "m.imatrix")
