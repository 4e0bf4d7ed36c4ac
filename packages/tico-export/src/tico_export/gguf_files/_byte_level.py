"""Tokenizers that split text by regular expressions and merge its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, final

import attrs

from tico_export.gguf_files._container import Value
from tico_export.gguf_files._tokenizer_files import TokenizerFiles, child

_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS: Final = r"\p{N}"
_QWEN2: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3: Final = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTERS: Final[Mapping[tuple[str, ...], str]] = {
    (_GPT2,): "gpt-2",
    (_DIGITS, _GPT2): "smollm",
    (_QWEN2,): "qwen2",
    (_LLAMA3,): "llama-bpe",
    (_TEKKEN,): "tekken",
}
"""llama.cpp's names of ways to split text, by the regular expressions that do it one after the other."""

_WHOLE_FIRST: Final = ("llama-bpe", "tekken")  # words that are tokens are not merged there


@final
@attrs.frozen(eq=False)
class ByteLevel:
    """Such a tokenizer as llama.cpp reads it."""

    files: TokenizerFiles

    def misfits(self) -> Iterator[tuple[str, str]]:
        """Yield what the tokenizer has that llama.cpp has not, and what that would be."""
        splitter = self._splitter()
        if splitter is None:
            types = [str(each.get("type")) for each in self._pre_tokenizer()]
            known = ", ".join(SPLITTERS.values())
            yield f"text split by {' and '.join(types) or 'nothing'}", f"text split as {known} do"
        elif bool(self.files.model.get("ignore_merges")) != (splitter in _WHOLE_FIRST):
            wanted = f"what goes with {splitter}"
            yield f"ignore_merges={self.files.model.get('ignore_merges')}", wanted
        for each in self.files.steps("normalizer", "normalizers"):
            if each.get("type") != "NFC":
                yield f"the normalizer {each.get('type')}", "no normalizer, or NFC"

    def notes(self) -> Iterator[str]:
        """Yield what llama.cpp does otherwise."""
        if self.files.steps("normalizer", "normalizers"):
            yield "llama.cpp does not normalize text, and the tokenizer does, by NFC"

    def keys(self) -> dict[str, Value]:
        """Return the keys of the file besides the tokens."""
        merges = tuple(" ".join(pair) for pair in self.files.merges)
        known: dict[str, Value] = {"model": "gpt2", "pre": self._splitter() or "default"}
        return known | {"merges": merges} if merges else known

    def _pre_tokenizer(self) -> list[Mapping[str, object]]:
        return list(self.files.steps("pre_tokenizer", "pretokenizers"))

    def _splitter(self) -> str | None:
        """Return llama.cpp's name of how text is split; None where it has none."""
        patterns: list[str] = []
        for each in self._pre_tokenizer():
            found = _patterns_of(each)
            if found is None:
                return None
            patterns += found
        return SPLITTERS.get(tuple(patterns))


def _patterns_of(step: Mapping[str, object]) -> list[str] | None:
    """Return the regular expressions of a step of a pre-tokenizer; None for any other step."""
    match step.get("type"):
        case "ByteLevel" if not step.get("add_prefix_space"):
            return [_GPT2] if step.get("use_regex", True) else []
        case "Digits" if step.get("individual_digits"):
            return [_DIGITS]
        case "Split" if step.get("behavior") == "Isolated" and not step.get("invert"):
            pattern = child(step, "pattern").get("Regex")
            return [pattern] if isinstance(pattern, str) else None
        case _:
            return None
