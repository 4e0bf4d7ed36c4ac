"""The tokenizer of a model, from the files of a fast tokenizer of transformers, as llama.cpp reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from tico_config import ConfigError, Found, Problem
from tico_export.gguf_files._container import Value

TOKENIZER_NAME: Final = "tokenizer.json"
_SETTINGS_NAME: Final = "tokenizer_config.json"
_TEMPLATE_NAME: Final = "chat_template.jinja"
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_SPECIAL: Final = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}

# llama.cpp knows ways to split text by a name. A byte-level tokenizer says the same in regular expressions.
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS: Final = r"\p{N}"
_QWEN2: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3: Final = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
SPLITTERS: Final[Mapping[tuple[str, ...], str]] = {
    (_GPT2,): "gpt-2",
    (_DIGITS, _GPT2): "smollm",
    (_QWEN2,): "qwen2",
    (_LLAMA3,): "llama-bpe",
}
"""By the regular expressions, one after the other, that text is split by."""
_WHOLE_FIRST: Final = {"llama-bpe"}  # words that are tokens are not merged


@attrs.frozen(eq=False)
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
            remedy = "save a fast tokenizer there"
            expected = f"a folder with a {TOKENIZER_NAME}"
            raise ConfigError(Problem(field="tokenizer", value=str(folder), expected=expected, remedy=remedy))
        template = folder / _TEMPLATE_NAME
        settings = _read(folder / _SETTINGS_NAME)
        inline = settings.get("chat_template")
        text = template.read_text(encoding="utf-8") if template.is_file() else inline
        return cls(_read(folder / TOKENIZER_NAME), settings, text if isinstance(text, str) else None)

    def problems(self, rows: int) -> Iterator[Problem]:
        """Yield what llama.cpp would do otherwise; the model has an embedding of so many `rows`."""
        model = _child(self.tokenizer, "model")
        if model.get("type") != "BPE" or self._splitter() is None:
            found = f"{model.get('type')} split by {_short(self.tokenizer.get('pre_tokenizer'))}"
            yield _problem(found, f"byte-level BPE split as {', '.join(SPLITTERS.values())} split")
        elif bool(model.get("ignore_merges")) != (self._splitter() in _WHOLE_FIRST):
            yield _problem(f"ignore_merges={model.get('ignore_merges')}", "what its way to split goes with")
        normalizer = self.tokenizer.get("normalizer")
        if isinstance(normalizer, Mapping) and normalizer.get("type") != "NFC":
            yield _problem(f"the normalizer {normalizer.get('type')}", "no normalizer, or NFC")
        if len(self._tokens()) and max(self._tokens()) >= rows:
            yield _problem(f"token {max(self._tokens())}", f"no more tokens than the {rows} of the model")

    def notes(self) -> Iterator[str]:
        """Yield what has to be known of the tokenizer in the file."""
        if self.tokenizer.get("normalizer") is not None:
            yield "llama.cpp does not normalize text: the tokenizer does, by NFC"

    def metadata(self, rows: int) -> dict[str, Value]:
        """Return the keys of the tokenizer, with unused tokens up to the `rows` of the embedding."""
        known, added = self._tokens(), {number: special for number, _, special in self._added()}
        kinds = {number: _CONTROL if special else _USER_DEFINED for number, special in added.items()}
        numbers = range(rows)
        found: dict[str, Value] = {
            "model": "gpt2",
            "pre": self._splitter() or "default",
            "tokens": tuple(known.get(each, f"[PAD{each}]") for each in numbers),
            "token_type": tuple(kinds.get(each, _NORMAL) if each in known else _UNUSED for each in numbers),
            "merges": tuple(self._merges()),
            **self._special(),
        }
        if not found["merges"]:
            del found["merges"]
        keys = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
        return keys if self.template is None else keys | {"tokenizer.chat_template": self.template}

    def _tokens(self) -> dict[int, str]:
        vocabulary = _child(_child(self.tokenizer, "model"), "vocab")
        tokens = {number: text for text, number in vocabulary.items() if isinstance(number, int)}
        return tokens | {number: text for number, text, _ in self._added()}

    def _added(self) -> Iterator[tuple[int, str, bool]]:
        listed = self.tokenizer.get("added_tokens")
        for each in listed if isinstance(listed, list) else []:
            if isinstance(each, Mapping):
                yield int(each["id"]), str(each["content"]), bool(each.get("special"))

    def _merges(self) -> Iterator[str]:
        listed = _child(self.tokenizer, "model").get("merges")
        for each in listed if isinstance(listed, list) else []:
            yield each if isinstance(each, str) else " ".join(each)

    def _special(self) -> dict[str, Value]:
        numbers = {text: number for number, text in self._tokens().items()}
        found: dict[str, Value] = {}
        for name, key in _SPECIAL.items():
            token = self.settings.get(name)
            text = token.get("content") if isinstance(token, Mapping) else token
            if isinstance(text, str) and text in numbers:
                found[key] = numbers[text]
        first, last = self._around()
        found["add_bos_token"] = first is not None and first == found.get("bos_token_id")
        found["add_eos_token"] = last is not None and last == found.get("eos_token_id")
        return found

    def _around(self) -> tuple[int | None, int | None]:
        """Return the tokens that the tokenizer puts before and after a text."""
        for each in _steps(self.tokenizer.get("post_processor"), "processors"):
            pieces = each.get("single")
            if isinstance(pieces, list) and pieces:
                numbers = {text: number for number, text in self._tokens().items()}
                names = [_child(piece, "SpecialToken").get("id") for piece in (pieces[0], pieces[-1])]
                first, last = (numbers.get(str(name)) for name in names)
                return first, last
        return None, None

    def _splitter(self) -> str | None:
        """Return llama.cpp's name of how text is split; None where it has none."""
        patterns: list[str] = []
        for each in _steps(self.tokenizer.get("pre_tokenizer"), "pretokenizers"):
            pattern = _pattern_of(each)
            if pattern is None:
                return None
            patterns += pattern
        return SPLITTERS.get(tuple(patterns))


def _pattern_of(step: Mapping[str, object]) -> list[str] | None:
    """Return the regular expressions of a step of a pre-tokenizer; None for any other step."""
    match step.get("type"):
        case "ByteLevel" if not step.get("add_prefix_space"):
            return [_GPT2] if step.get("use_regex", True) else []
        case "Digits" if step.get("individual_digits"):
            return [_DIGITS]
        case "Split" if step.get("behavior") == "Isolated" and not step.get("invert"):
            pattern = _child(step, "pattern").get("Regex")
            return [pattern] if isinstance(pattern, str) else None
        case _:
            return None


def _steps(part: object, inner: str) -> Sequence[Mapping[str, object]]:
    """Return the steps of a part of a tokenizer, which is one or a sequence."""
    if not isinstance(part, Mapping):
        return []
    listed = part.get(inner)
    return [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else [part]


def _child(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _read(path: Path) -> Mapping[str, object]:
    found: object = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if isinstance(found, Mapping) else {}


def _short(part: object) -> str:
    types = [str(each.get("type")) for each in _steps(part, "pretokenizers")]
    return " and ".join(types) or "nothing"


def _problem(found: str, expected: str) -> Problem:
    sentence = f"the tokenizer has {found}, and llama.cpp would split text otherwise"
    remedy = "tokenizer=False leaves it out: such a file takes tokens by number"
    return Problem(field="tokenizer", value=Found(found), expected=expected, sentence=sentence, remedy=remedy)
