"""The files of a fast tokenizer of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

import attrs

from tico_config import ConfigError, Problem

TOKENIZER_NAME: Final = "tokenizer.json"
_SETTINGS_NAME: Final = "tokenizer_config.json"
_TEMPLATE_NAME: Final = "chat_template.jinja"


@attrs.define(eq=False, slots=False)
class TokenizerFiles:
    """What stands in a folder: the tokenizer, its settings, and the template of chats."""

    tokenizer: Mapping[str, object]
    settings: Mapping[str, object]
    template: str | None

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """Return the files of `folder`.

        Raises:
            ConfigError: there is no fast tokenizer in it.
        """
        if not (folder / TOKENIZER_NAME).is_file():
            expected, remedy = f"a folder with a {TOKENIZER_NAME}", "save a fast tokenizer there"
            raise ConfigError(Problem(field="tokenizer", value=str(folder), expected=expected, remedy=remedy))
        template, settings = folder / _TEMPLATE_NAME, _read(folder / _SETTINGS_NAME)
        text = template.read_text(encoding="utf-8") if template.is_file() else settings.get("chat_template")
        return cls(_read(folder / TOKENIZER_NAME), settings, text if isinstance(text, str) else None)

    @property
    def model(self) -> Mapping[str, object]:
        """What makes tokens of words."""
        return child(self.tokenizer, "model")

    @cached_property
    def added(self) -> Mapping[int, bool]:
        """The tokens that are found in text before it is split, by number, and whether they are special."""
        return {number: bool(each.get("special")) for number, each in self._listed()}

    @cached_property
    def tokens(self) -> Mapping[int, str]:
        """All tokens by number."""
        known = {
            number: text for text, number in child(self.model, "vocab").items() if isinstance(number, int)
        }
        return known | {number: str(each["content"]) for number, each in self._listed()}

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The numbers of all tokens."""
        return {text: number for number, text in self.tokens.items()}

    @cached_property
    def merges(self) -> Sequence[tuple[str, str]]:
        """The pairs that are merged, the first ones first."""
        listed = _list(self.model.get("merges"))
        pairs = [each.split(" ") if isinstance(each, str) else _list(each) for each in listed]
        return [(str(each[0]), str(each[1])) for each in pairs]

    def special(self, name: str) -> int | None:
        """Return the number of the token that the settings have under a name such as ``bos_token``."""
        token = self.settings.get(name)
        text = token.get("content") if isinstance(token, Mapping) else token
        return self.numbers.get(text) if isinstance(text, str) else None

    def around(self) -> tuple[str | None, str | None]:
        """Return the tokens that the tokenizer puts before and after a text."""
        for each in self.steps("post_processor", "processors"):
            pieces = _list(each.get("single"))
            if pieces:
                first, last = (child(piece, "SpecialToken").get("id") for piece in (pieces[0], pieces[-1]))
                return first if isinstance(first, str) else None, last if isinstance(last, str) else None
        return None, None

    def steps(self, part: str, inner: str) -> Sequence[Mapping[str, object]]:
        """Return the steps of a part of the tokenizer, which is none, one, or a sequence of them."""
        found = child(self.tokenizer, part)
        if found.get("type") != "Sequence":
            return [found] if found else []
        return [each for each in _list(found.get(inner)) if isinstance(each, Mapping)]

    def _listed(self) -> Iterator[tuple[int, Mapping[str, object]]]:
        for each in _list(self.tokenizer.get("added_tokens")):
            if isinstance(each, Mapping):
                yield int(each["id"]), each


def child(values: object, name: str) -> Mapping[str, object]:
    """Return what stands under `name`, which is none where there is nothing or something else."""
    found: object = values.get(name) if isinstance(values, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _list(found: object) -> list[object]:
    return found if isinstance(found, list) else []


def _read(path: Path) -> Mapping[str, object]:
    found: object = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if isinstance(found, Mapping) else {}
