"""Texts as token numbers: windows of a text file, or one sample for each record of a JSONL file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tico_cli._model_folders import Tokenizer
from tico_cli._paths import require_file
from tico_config import CalibrationError, Found, Problem

_RECORD: Final = '{"text": "…"}, {"messages": […]} or a text'


def read_samples(path: Path, tokenizer: Tokenizer, length: int) -> list[Tensor]:
    """Return what `path` holds, each sample (1, tokens) of at most `length` tokens.

    A file whose name ends in .jsonl has a text or a conversation on each line, which becomes a sample of its
    own, cut at `length`; conversations go through the tokenizer's chat template. Any other file is one text,
    cut into windows of `length` one after the other; what is left at its end is left out, unless it is all
    there is. No sample is padded, and no special tokens are added but those of the chat template.

    Raises:
        ConfigError: there is no such file.
        CalibrationError: it is empty or no UTF-8, or a record is none.
    """
    require_file(path, "data")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _refused(path, f"a file that is no UTF-8 (byte {error.start})", "save it as UTF-8") from None
    if not text.strip():
        raise _refused(path, "an empty file", "pass a text file, or a JSONL file of texts or chats")
    if path.suffix == ".jsonl":
        return [*_records(path, text, tokenizer, length)]
    return _windows(path, tokenizer.encode(text, add_special_tokens=False), length)


def spread(samples: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return at most `count` of `samples`, from all over them.

    >>> [int(each) for each in spread([torch.tensor(number) for number in range(10)], 4)]
    [0, 2, 5, 7]
    """
    count = min(count, len(samples))
    return [samples[number * len(samples) // count] for number in range(count)]


def _windows(path: Path, tokens: list[int], length: int) -> list[Tensor]:
    if len(tokens) < 2:
        raise _refused(path, f"a text of {len(tokens)} tokens", "pass a longer text")
    row = torch.tensor(tokens)
    return [*row[: len(row) // length * length].view(-1, 1, length)] or [row[None]]


def _records(path: Path, text: str, tokenizer: Tokenizer, length: int) -> Iterator[Tensor]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            tokens = tokenizer.encode(_record_text(path, number, line, tokenizer), add_special_tokens=False)
            if len(tokens) < 2:
                raise _refused(
                    path, f"a record of {len(tokens)} tokens in line {number}", "leave the line out"
                )
            yield torch.tensor(tokens[:length])[None]


def _record_text(path: Path, number: int, line: str, tokenizer: Tokenizer) -> str:
    try:
        record: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"line {number}, which is no JSON ({error})", f"write {_RECORD}") from None
    match record:
        case str(text) | {"text": str(text)}:
            return text
        case {"messages": list(messages)}:
            return _chat_text(path, number, messages, tokenizer)
        case _:
            raise _refused(path, f"line {number}, which has neither text nor messages", f"write {_RECORD}")


def _chat_text(path: Path, number: int, messages: list[object], tokenizer: Tokenizer) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # noqa: BLE001  # templates raise what they like
        reason = " ".join(str(error).split())[:200]
        found = f"line {number}, of which the chat template makes nothing ({reason})"
        raise _refused(path, found, 'mend the line, or write {"text": "…"}') from None


def _refused(path: Path, found: str, remedy: str) -> CalibrationError:
    return CalibrationError(
        Problem(
            module=str(path),
            field="data",
            value=Found(found),
            expected="a text, or records of JSON",
            sentence=f"this is {found}" if found.startswith("a") else f"this has {found}",
            remedy=remedy,
        )
    )
