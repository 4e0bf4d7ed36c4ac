"""accelerate offloads the tensors of a converted model, and brings them back for each call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from transformers import LlamaForCausalLM

from client_models import TOKENS, both, codes_of, generated
from references import same_bits

CLIENT = "accelerate"
with_buffers = pytest.mark.parametrize("offload_buffers", [False, True])


def _share_on_meta(model: LlamaForCausalLM) -> float:
    tensors = [*model.parameters(), *model.buffers()]
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors if tensor.is_meta]
    return sum(sizes) / sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@with_buffers
def test_cpu_offload(kind: str, offload_buffers: bool) -> None:
    """The bits stay. Codes are buffers, which are offloaded where that is asked for."""
    for model in both(kind):
        expected = model(TOKENS).logits
        cpu_offload(model, execution_device="cpu", offload_buffers=offload_buffers)
        assert same_bits(model(TOKENS).logits, expected)
        assert same_bits(model(TOKENS).logits, expected)
        assert not offload_buffers or _share_on_meta(model) > 0.9


@with_buffers
def test_disk_offload(kind: str, offload_buffers: bool, tmp_path: Path) -> None:
    """The bits that come back from files are those that went there; generation works."""
    for number, model in enumerate(both(kind)):
        expected = model(TOKENS).logits
        tokens = generated(model, TOKENS[:, :4], max_new_tokens=4, do_sample=False)
        disk_offload(
            model, str(tmp_path / str(number)), execution_device="cpu", offload_buffers=offload_buffers
        )
        assert same_bits(model(TOKENS).logits, expected)
        assert torch.equal(generated(model, TOKENS[:, :4], max_new_tokens=4, do_sample=False), tokens)
        assert not offload_buffers or _share_on_meta(model) > 0.9


@with_buffers
def test_dispatch(kind: str, offload_buffers: bool, tmp_path: Path) -> None:
    """A map of devices can leave some blocks in files."""
    cpu = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    device_map = dict.fromkeys(cpu, "cpu") | {"model.layers.1": "disk"}
    for number, model in enumerate(both(kind)):
        expected = model(TOKENS).logits
        dispatch_model(
            model,
            device_map,
            main_device="cpu",
            offload_dir=str(tmp_path / str(number)),
            offload_buffers=offload_buffers,
            force_hooks=True,
        )
        assert same_bits(model(TOKENS).logits, expected)


def test_offload_is_undone(kind: str) -> None:
    """Without the hooks the tensors are where they were."""
    for model in both(kind):
        expected, codes = model(TOKENS).logits, codes_of(model)
        cpu_offload(model, execution_device="cpu", offload_buffers=True)
        remove_hook_from_submodules(model)
        assert same_bits(model(TOKENS).logits, expected)
        assert all(same_bits(value, codes[name]) for name, value in codes_of(model).items())
