"""What the tests of the program run it on: a small float model with its tokenizer, and texts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final, Protocol

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import Result


class Run(Protocol):
    """What runs the program in the process of the tests."""

    def __call__(self, *arguments: str | Path) -> Result:
        """Return what came of a command with these arguments."""


WORDS: Final = (
    "river",
    "stone",
    "light",
    "under",
    "morning",
    "walks",
    "slowly",
    "over",
    "the",
    "a",
    "old",
    "town",
)
CHAT: Final = "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}{% endfor %}"
LIMIT: Final = 32


def text_of(words: int, seed: int = 0) -> str:
    """Return a text of so many words, always the same one for a seed."""
    drawn = torch.randint(len(WORDS), (words,), generator=torch.Generator().manual_seed(seed))
    return " ".join(WORDS[int(number)] for number in drawn)


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Train a tokenizer of byte pairs on a text, and save it to `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text_of(500)], trainer)
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    )
    wrapped.chat_template = CHAT
    wrapped.save_pretrained(str(folder))
    return wrapped


def save_float_model(folder: Path) -> Path:
    """Save a random LLaMA of two layers, with a tokenizer, to `folder`, and return that."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=LIMIT,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def run_program(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `tico` in a process of its own, without a terminal."""
    command = [sys.executable, "-m", "tico_cli", *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **variables}
    )
