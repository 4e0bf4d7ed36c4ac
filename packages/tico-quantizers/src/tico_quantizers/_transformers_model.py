"""What a file keeps of a transformers model, so that its architecture can be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from tico_config import ArtifactError, Found, MissingExtraError, Problem
from tico_quantizers._layout import Layout

CONFIG_NAME = "config.json"


def described(model: nn.Module) -> Mapping[str, object] | None:
    """Return class, config and attention of a transformers model, as JSON values; None for any other."""
    with TemporaryDirectory() as folder:
        if not _saved_config(model, Path(folder)):
            return None
        config: object = json.loads((Path(folder) / CONFIG_NAME).read_text(encoding="utf-8"))
    attention: object = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return {
        "architecture": type(model).__name__,
        "attention": attention if isinstance(attention, str) else None,
        "config": config,
    }


def write_config(model: nn.Module, folder: Path) -> None:
    """Write the config of a transformers model to `folder`, each file as a whole."""
    with TemporaryDirectory(dir=folder, prefix=".config.") as temporary:
        _saved_config(model, Path(temporary))
        for path in Path(temporary).iterdir():
            path.replace(folder / path.name)


def _saved_config(model: nn.Module, folder: Path) -> bool:
    save: object = getattr(getattr(model, "config", None), "save_pretrained", None)
    if callable(save):
        save(folder)
    return (folder / CONFIG_NAME).exists()


def skeleton(about: Layout) -> nn.Module:
    """Return the transformers model that `described` tells of, without weights.

    Raises:
        ArtifactError: there is none, or transformers makes another one of its config.
        MissingExtraError: transformers is not installed.
    """
    known = about.optional_child("transformers")
    if known is None:
        found = Found("None, and the file is not of a transformers model")
        remedy = "load_quantized(directory, model)"
        problem = Problem(module=about.where, field="model", value=found, expected="given", remedy=remedy)
        raise ArtifactError(problem)
    architecture = known.text("architecture")
    model = _from_config(known)
    if type(model).__name__ != architecture:
        found = Found(f"None, for which transformers makes a {type(model).__name__}")
        remedy = f"pass a float {architecture} as model"
        expected = f"a {architecture}"
        problem = Problem(module=about.where, field="model", value=found, expected=expected, remedy=remedy)
        raise ArtifactError(problem)
    return model


def _from_config(known: Layout) -> nn.Module:
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        remedy = "pip install 'tico-quantizers[transformers]', or pass model="
        problem = Problem(expected="the package transformers", value=Found("none"), remedy=remedy)
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
        return model
    except (OSError, ValueError, KeyError) as error:
        found = Found(f"one that transformers refuses ({error})")
        problem = Problem(
            module=known.where, field="config", value=found, expected="a config of transformers"
        )
        raise ArtifactError(problem) from error
