"""Folders with models: float ones of transformers, and those that save_quantized has written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, cast

import torch
from torch import nn

from tico_api import load_quantized, map_checkpoint
from tico_cli._paths import require_folder
from tico_config import ArtifactError, ConfigError, Found, Problem, UnsupportedError

MANIFEST: Final = "quantized.json"
_CONFIG: Final = "config.json"


class Tokenizer(Protocol):
    """What is asked of a tokenizer of transformers."""

    bos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the numbers of the tokens of a text."""

    def apply_chat_template(self, messages: list[object], *, tokenize: bool) -> str:
        """Return a conversation as the text that the model is given."""

    def save_pretrained(self, save_directory: str, /) -> object:
        """Write the files of the tokenizer."""


def require_float(folder: Path) -> None:
    """Refuse what is no folder of a float model.

    Raises:
        ConfigError: there is no such folder, it holds no model, or one that is quantized already.
    """
    require_folder(folder, "model")
    if is_quantized(folder):
        raise _other(folder, "a quantized model", "pass the float model; `tico inspect` shows this one")
    if not (folder / _CONFIG).is_file():
        remedy = f"pass a folder that save_pretrained has written, with {_CONFIG} and *.safetensors"
        raise _other(folder, f"a folder without {_CONFIG}", remedy)


def require_quantized(folder: Path) -> None:
    """Refuse what is no folder of a quantized model.

    Raises:
        ConfigError: there is no such folder, or it holds something else.
    """
    require_folder(folder, "model")
    if not is_quantized(folder):
        remedy = "pass the folder that `tico quantize` was given as --out"
        raise _other(folder, f"a folder without {MANIFEST}", remedy)


def _other(folder: Path, found: str, remedy: str) -> ConfigError:
    expected = "another folder" if "quantized" in found else "the folder of a model"
    return ConfigError(
        Problem(
            module=str(folder),
            field="model",
            value=Found(found),
            expected=expected,
            sentence=f"this is {found}",
            remedy=remedy,
        )
    )


def is_quantized(folder: Path) -> bool:
    """Whether `folder` holds a quantized model."""
    return (folder / MANIFEST).is_file()


def load_model(folder: Path) -> nn.Module:
    """Return the model in `folder`, quantized or float, mapped from its files.

    Raises:
        ConfigError: there is none.
        TicoError: it cannot be loaded.
    """
    require_folder(folder, "model")
    with quiet_libraries():
        if is_quantized(folder):
            return load_quantized(folder)
        require_float(folder)
        return map_checkpoint(folder)


def skeleton(folder: Path) -> nn.Module:
    """Return the float model in `folder` on the meta device; its config is enough.

    Raises:
        ConfigError: there is none.
        UnsupportedError: transformers makes no causal language model of the config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    require_float(folder)
    try:
        config: object = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001  # each class checks its config in its own way
        reason = " ".join(str(error).split())[:200]
        expected = "the config of a causal language model of transformers"
        sentence = f"transformers makes no causal language model of it ({reason})"
        raise UnsupportedError(
            Problem(
                module=str(folder / _CONFIG), value=Found("another"), expected=expected, sentence=sentence
            )
        ) from None
    return model.eval()


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer in `folder`.

    Raises:
        ArtifactError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        found: object = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001  # as many kinds as there are tokenizers
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            Problem(
                module=str(folder),
                field="tokenizer",
                value=Found("none"),
                expected="the files of a tokenizer",
                sentence=f"the folder has no tokenizer that transformers can read ({reason})",
                remedy="copy tokenizer.json and tokenizer_config.json there, or pass --tokenizer FOLDER",
            )
        ) from None
    return cast("Tokenizer", found)


def longest_window(folder: Path) -> int | None:
    """Return how many tokens the model in `folder` takes at most, where its config says so."""
    try:
        found: object = json.loads((folder / _CONFIG).read_bytes())
    except (OSError, ValueError):
        found = None
    limit = found.get("max_position_embeddings") if isinstance(found, dict) else None
    return limit if isinstance(limit, int) and limit > 1 else None


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep transformers from drawing bars for what takes no time, such as mapping files."""
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
