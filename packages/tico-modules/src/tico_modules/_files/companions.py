"""What stands beside the tensors of a model from transformers: configs, generation settings, tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile
from typing import Final, Protocol

import torch
from torch import nn

CONFIG_NAME: Final = "config.json"
GENERATION_NAME: Final = "generation_config.json"
_TOKENIZER_FILES: Final = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


class Tokenizer(Protocol):
    """A tokenizer that can write itself to a folder, as those of transformers can."""

    def save_pretrained(self, save_directory: str, /) -> object:
        """Write the files of the tokenizer."""


def write_companions(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    config: Mapping[str, object],
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write the configs and the tokenizer of a transformers model to `folder`; of other models, nothing.

    The files are ``config.json``, ``generation_config.json`` and those of the tokenizer. The config names the
    class of the model and its dtype as ``architectures`` and ``dtype``.

    Args:
        model: its ``config`` and ``generation_config`` are saved, where it has them.
        folder: exists; files of these names are replaced.
        config: further fields of ``config.json``, such as ``quantization_config``.
        tokenizer: has ``save_pretrained``; by default, the files of the tokenizer in the folder that the
            model was loaded from are copied, if there are any.

    Raises:
        OSError: the folder cannot be written.
    """
    place = Path(folder)
    save_configs(model, place)
    saved = read_json(place / CONFIG_NAME)
    if isinstance(saved, dict):
        named = {"architectures": [type(model).__name__], "dtype": dtype_name(model)}
        text = json.dumps(saved | named | dict(config), sort_keys=True, indent=2)
        (place / CONFIG_NAME).write_text(f"{text}\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(str(place))
    elif isinstance(saved, dict):
        _copy_tokenizer(model, place)


def save_configs(model: nn.Module, folder: Path) -> None:
    """Save the config and the generation settings of `model`, where it has them."""
    for name in ("config", "generation_config"):
        save: object = getattr(getattr(model, name, None), "save_pretrained", None)
        if callable(save):
            save(folder)


def dtype_name(model: nn.Module) -> str:
    """Return the dtype of the first parameter of floats, as configs name it; ``float32`` if there is none."""
    dtypes = (each.dtype for each in model.parameters() if each.is_floating_point())
    return str(next(dtypes, torch.float32)).removeprefix("torch.")


def read_json(path: Path) -> object:
    """Return what the file `path` holds; None if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _copy_tokenizer(model: nn.Module, folder: Path) -> None:
    """Copy the tokenizer from the folder that the model was loaded from, if there are both."""
    origin: object = getattr(model, "name_or_path", None)
    if isinstance(origin, str) and origin:
        for name in _TOKENIZER_FILES:
            if (Path(origin) / name).is_file():
                copyfile(Path(origin) / name, folder / name)
