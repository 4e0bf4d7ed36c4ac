"""Tokenizers that come from SentencePiece: spaces are letters, and unknown letters are bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Final, final

import attrs

from tico_export.gguf_files._container import Value
from tico_export.gguf_files._tokenizer_files import TokenizerFiles, child

_SPACE: Final = "\u2581"
_NEVER: Final = -1e9  # of tokens that nothing is merged into


@final
@attrs.frozen(eq=False)
class SentencePieces:
    """Such a tokenizer as llama.cpp reads it: of all pairs, it merges the one whose token scores most."""

    files: TokenizerFiles

    def misfits(self) -> Iterator[tuple[str, str]]:
        """Yield what the tokenizer has that llama.cpp has not, and what that would be."""
        if self._prefix() is None:
            types = " and ".join(str(each.get("type")) for each in self._parts())
            yield f"text prepared by {types or 'nothing'}", "spaces that become letters"
        ranked = self._ranked()
        if len(ranked) != len(set(ranked)):
            yield "merges into one token that are not of one rank", "a rank for each token"
        elif (missing := next(self._missing(), None)) is not None:
            yield f"no merge of {missing[0]!r} and {missing[1]!r}", "all merges into a token"

    def notes(self) -> Iterator[str]:
        """Yield what llama.cpp does otherwise."""
        if self._prefix() == "first":
            yield "llama.cpp puts a space after every special token, the tokenizer before a text only"

    def keys(self) -> dict[str, Value]:
        """Return the keys of the file besides the tokens."""
        return {"model": "llama", "pre": "default", "add_space_prefix": self._prefix() != "never"}

    def scores(self, rows: int) -> tuple[float, ...]:
        """Return how early each token is merged into: 0 for the first, and falling."""
        ranks = {token: -float(rank) for rank, token in enumerate(self._ranked())}
        return tuple(ranks.get(self.files.tokens.get(number, ""), _NEVER) for number in range(rows))

    def _ranked(self) -> list[str]:
        """Return the tokens that others are merged into, the first ones first."""
        return [token for token, _ in groupby(map("".join, self.files.merges))]

    def _missing(self) -> Iterator[tuple[str, str]]:
        """Yield the halves of a token that are tokens, and that the tokenizer does not merge."""
        merges, added = set(self.files.merges), self.files.added
        known = {text: number for number, text in self.files.tokens.items() if number not in added}
        for text in known:
            halves = ((text[:end], text[end:]) for end in range(1, len(text)))
            yield from (each for each in halves if known.keys() >= set(each) and each not in merges)

    def _parts(self) -> list[Mapping[str, object]]:
        before = self.files.steps("normalizer", "normalizers")
        return [*before, *self.files.steps("pre_tokenizer", "pretokenizers")]

    def _prefix(self) -> str | None:
        """Return where a space is put before text: always, first, or never; None where text becomes other."""
        prefix, replaced = "never", False
        for each in self._parts():
            match each.get("type"):
                case "Prepend" if each.get("prepend") == _SPACE:
                    prefix = "always"
                case "Replace" if child(each, "pattern") == {"String": " "} and each.get("content") == _SPACE:
                    replaced = True
                case "Metaspace" if each.get("replacement") == _SPACE and each.get("split") is False:
                    prefix, replaced = str(each.get("prepend_scheme")), True
                case _:
                    return None
        return prefix if replaced else None
