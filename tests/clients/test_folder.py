"""transformers loads the folder of a converted model by itself, and saves it so that it loads again."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, pipeline

from client_models import TOKENS, both, generated
from client_tokenizer import word_tokenizer
from references import same_bits
from tico.quantization import load_quantized, save_quantized
from tico_modules import QuantizedModule

CLIENT = "transformers"


def _is_integer(model: nn.Module) -> bool:
    return any(isinstance(module, QuantizedModule) for module in model.modules())


def save(model: LlamaForCausalLM, folder: Path) -> str:
    """Write a model as it is written, with a tokenizer, and return the folder."""
    tokenizer = word_tokenizer()
    if _is_integer(model):
        save_quantized(model, folder, tokenizer=tokenizer)
    else:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def test_from_pretrained(kind: str, tmp_path: Path) -> None:
    """It gives the bits of the model, and of `load_quantized`."""
    for number, model in enumerate(both(kind)):
        folder = save(model, tmp_path / str(number))
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert same_bits(loaded(TOKENS).logits, model(TOKENS).logits)
        if _is_integer(model):
            assert same_bits(load_quantized(folder)(TOKENS).logits, loaded(TOKENS).logits)


def test_save_pretrained(kind: str, tmp_path: Path) -> None:
    """What it writes is read to the same bits."""
    for number, model in enumerate(both(kind)):
        model.save_pretrained(tmp_path / str(number))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(number))
        assert same_bits(loaded(TOKENS).logits, model(TOKENS).logits)


def test_pipeline(kind: str, tmp_path: Path) -> None:
    """A pipeline made from the folder generates what the model does."""
    for number, model in enumerate(both(kind)):
        folder = save(model, tmp_path / str(number))
        generate = pipeline("text-generation", model=folder)
        made = generate("w5 w9 w11", max_new_tokens=4, do_sample=False, return_tensors=True)
        prompt = AutoTokenizer.from_pretrained(folder)("w5 w9 w11", return_tensors="pt").input_ids
        expected = generated(model, prompt, max_new_tokens=4, do_sample=False)
        found: object = made[0]["generated_token_ids"]
        assert found == expected[0].tolist()


def test_pickle_of_a_loaded_model(kind: str, tmp_path: Path) -> None:
    """Also after its hidden states were recorded once."""
    for number, model in enumerate(both(kind)):
        loaded = AutoModelForCausalLM.from_pretrained(save(model, tmp_path / str(number)))
        copied: nn.Module = pickle.loads(pickle.dumps(loaded))  # noqa: S301  # our own bytes
        assert same_bits(copied(TOKENS).logits, model(TOKENS).logits)
        assert len(copied(TOKENS, output_hidden_states=True).hidden_states) == 3


def _call(model: nn.Module) -> Tensor:
    torch.set_num_threads(1)
    logits: Tensor = model(TOKENS).logits.detach()
    return logits


def test_spawned_process(kind: str, tmp_path: Path) -> None:
    """A process that is spawned gets the model, and computes the same bits."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for number, model in enumerate(both(kind)):
            loaded = AutoModelForCausalLM.from_pretrained(save(model, tmp_path / str(number)))
            assert same_bits(pool.apply(_call, (loaded,)), model(TOKENS).logits.detach())
