"""The tokenizer of a model as llama.cpp reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tico_config import Found, Problem
from tico_export.gguf_files._byte_level import ByteLevel
from tico_export.gguf_files._container import Value
from tico_export.gguf_files._sentence_pieces import SentencePieces
from tico_export.gguf_files._tokenizer_files import TokenizerFiles

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-F]{2}>")
_SPECIAL: Final = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def tokenizer_problems(files: TokenizerFiles, rows: int) -> Iterator[Problem]:
    """Yield where llama.cpp would make other tokens of text; the model has an embedding of so many `rows`."""
    kind = files.model.get("type")
    if kind != "BPE":
        yield _problem(f"a model of type {kind}", "BPE")
        return
    for found, expected in _reading(files).misfits():
        yield _problem(found, expected)
    for token, name in zip(files.around(), ("bos_token", "eos_token"), strict=True):
        if token is not None and files.numbers.get(token) != files.special(name):
            yield _problem(f"{token} around every text", f"its {name} there, or nothing")
    if files.tokens and max(files.tokens) >= rows:
        yield _problem(f"token {max(files.tokens)}", f"no more tokens than the {rows} of the model")


def tokenizer_notes(files: TokenizerFiles) -> Iterator[str]:
    """Yield what has to be known of the tokenizer in the file."""
    return _reading(files).notes()


def tokenizer_metadata(files: TokenizerFiles, rows: int) -> dict[str, Value]:
    """Return the keys of the tokenizer, with unused tokens up to the `rows` of the embedding."""
    reading = _reading(files)
    found: dict[str, Value] = {
        **reading.keys(),
        "tokens": tuple(files.tokens.get(each, f"[PAD{each}]") for each in range(rows)),
        "token_type": tuple(_type_of(files, each) for each in range(rows)),
        **_special(files),
    }
    if isinstance(reading, SentencePieces):
        found["scores"] = reading.scores(rows)
    keys = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
    return keys if files.template is None else keys | {"tokenizer.chat_template": files.template}


def _reading(files: TokenizerFiles) -> ByteLevel | SentencePieces:
    return SentencePieces(files) if files.model.get("byte_fallback") else ByteLevel(files)


def _type_of(files: TokenizerFiles, number: int) -> int:
    text = files.tokens.get(number)
    if text is None:
        return _UNUSED
    if text == files.model.get("unk_token"):
        return _UNKNOWN
    if number in files.added:
        return _CONTROL if files.added[number] else _USER_DEFINED
    return _BYTE if files.model.get("byte_fallback") and _BYTE_TOKEN.fullmatch(text) else _NORMAL


def _special(files: TokenizerFiles) -> dict[str, Value]:
    named = {key: files.special(name) for name, key in _SPECIAL.items()}
    found: dict[str, Value] = {key: number for key, number in named.items() if number is not None}
    first, last = files.around()
    return found | {"add_bos_token": first is not None, "add_eos_token": last is not None}


def _problem(found: str, expected: str) -> Problem:
    sentence = f"the tokenizer has {found}, and llama.cpp would make other tokens of text"
    remedy = "tokenizer=False leaves it out: llama.cpp then takes tokens by number"
    return Problem(field="tokenizer", value=Found(found), expected=expected, sentence=sentence, remedy=remedy)
