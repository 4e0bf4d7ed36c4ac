"""A tokenizer of whole words, ``w0`` to ``w63``, which needs no file."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from client_models import VOCABULARY

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose token 5 is the word ``w5``; the first four are special."""
    words = {word: number for number, word in enumerate(SPECIAL)}
    words |= {f"w{number}": number for number in range(len(SPECIAL), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, start, end, unknown = SPECIAL
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=tokenizer, pad_token=pad, bos_token=start, eos_token=end, unk_token=unknown
    )
