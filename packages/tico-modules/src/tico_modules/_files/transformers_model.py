"""The parts of a transformers model besides its tensors: configs, generation settings, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile, rmtree
from tempfile import TemporaryDirectory
from typing import Final, Protocol

import torch
from torch import nn

from tico_config import ArtifactError, Found, MissingExtraError, Problem
from tico_modules._storage.layout import Layout

CONFIG_NAME: Final = "config.json"
GENERATION_NAME: Final = "generation_config.json"
_TEMPORARY: Final = ".quantized-beside-"
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


def describe_model(model: nn.Module) -> Mapping[str, object] | None:
    """Return class, configs and attention of a transformers model, for JSON; None for any other model."""
    with TemporaryDirectory() as folder:
        _save_configs(model, Path(folder))
        config, generation = (_read_json(Path(folder) / name) for name in (CONFIG_NAME, GENERATION_NAME))
    if config is None:
        return None
    attention: object = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return {
        "architecture": type(model).__name__,
        "attention": attention if isinstance(attention, str) else None,
        "config": config,
        "generation": generation,
    }


def write_beside(model: nn.Module, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Write configs and tokenizer of a transformers model to `folder` for other tools, each file as a whole.

    Files that an interrupted save has left there are removed first. The caller keeps other writers out.
    """
    for orphan in folder.glob(f"{_TEMPORARY}*"):
        rmtree(orphan, ignore_errors=True)
    with TemporaryDirectory(dir=folder, prefix=_TEMPORARY) as temporary:
        _save_configs(model, Path(temporary))
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        elif (Path(temporary) / CONFIG_NAME).exists():
            _copy_tokenizer(model, Path(temporary))
        for path in Path(temporary).iterdir():
            path.replace(folder / path.name)


def _save_configs(model: nn.Module, folder: Path) -> None:
    for name in ("config", "generation_config"):
        save: object = getattr(getattr(model, name, None), "save_pretrained", None)
        if callable(save):
            save(folder)


def _copy_tokenizer(model: nn.Module, folder: Path) -> None:
    """Copy the tokenizer from the folder that the model was loaded from, if there are both."""
    origin: object = getattr(model, "name_or_path", None)
    if isinstance(origin, str) and origin:
        for name in _TOKENIZER_FILES:
            if (Path(origin) / name).is_file():
                copyfile(Path(origin) / name, folder / name)


def _read_json(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def make_skeleton(about: Layout) -> nn.Module:
    """Return the transformers model that the manifest `about` describes, without weights.

    Raises:
        ArtifactError: the manifest describes none, or transformers makes another class from its config.
        MissingExtraError: transformers is not installed.
    """
    known = about.optional_child("transformers")
    if known is None:
        expected = "a float model of the saved architecture, which transformers cannot make"
        remedy = "call load_quantized(directory, model)"
        problem = Problem(module=about.where, field="model", expected=expected, remedy=remedy)
        raise ArtifactError(problem)
    architecture = known.text("architecture")
    model = _make_model(known)
    if type(model).__name__ != architecture:
        found = Found(f"None, from which transformers makes a {type(model).__name__}")
        remedy = f"pass a float {architecture} as model"
        expected = f"a float {architecture}"
        problem = Problem(module=about.where, field="model", value=found, expected=expected, remedy=remedy)
        raise ArtifactError(problem)
    return model


def _make_model(known: Layout) -> nn.Module:
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    except ImportError:
        remedy = "pip install 'tico-modules[transformers]', or pass model="
        expected, found = "the package transformers to be installed", Found("no such package")
        problem = Problem(expected=expected, value=found, remedy=remedy)
        raise MissingExtraError(problem) from None
    attention = known.values.get("attention")
    try:
        with TemporaryDirectory() as folder:
            text = json.dumps(known.child("config").values)
            (Path(folder) / CONFIG_NAME).write_text(text, encoding="utf-8")
            config: object = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, attn_implementation=attention, trust_remote_code=False
            )
        generation = known.optional_child("generation")
        if generation is not None:
            made: object = GenerationConfig(**generation.values)  # type: ignore[no-untyped-call]
            vars(model)["generation_config"] = made
        return model
    except (OSError, ValueError, KeyError) as error:
        found = Found(f"one that it refuses ({error})")
        problem = Problem(
            module=known.where, field="config", value=found, expected="a config that transformers accepts"
        )
        raise ArtifactError(problem) from error
