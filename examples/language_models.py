"""Causal language models from a folder: loading, token windows, logits."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs
import torch
from torch import Tensor, nn

WIKI_LLAMA: Final = Path(__file__).parent / "wiki_llama"


@attrs.frozen(eq=False)
class LanguageModel:
    """A causal language model with its tokenizer, in evaluation mode."""

    folder: Path
    model: nn.Module
    window: int

    def windows(self, text: str, limit: int) -> Tensor:
        """Return rows of `window` tokens, at most `limit` tokens in all, spread evenly over `text`."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
        every = torch.tensor(tokens[: len(tokens) // self.window * self.window]).view(-1, self.window)
        rows = min(len(every), limit // self.window)
        return every[torch.arange(rows) * len(every) // rows]


def load(folder: Path, window: int) -> LanguageModel:
    """Return the language model in `folder`, in float32."""
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return LanguageModel(folder, model.eval(), window)


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits (batch, tokens, vocabulary) for `tokens` (batch, tokens)."""
    with torch.no_grad():
        logits: Tensor = model(tokens, use_cache=False).logits
    return logits


def text_of(name: str) -> str:
    """Return ``calibration`` or ``heldout``: articles that the embedded model has and has not seen."""
    return (WIKI_LLAMA / f"{name}.txt").read_text(encoding="utf-8")
