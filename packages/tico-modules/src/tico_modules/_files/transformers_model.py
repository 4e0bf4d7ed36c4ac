"""The parts of a transformers model besides its tensors: configs, generation settings, tokenizer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Final, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from tico_config import ArtifactError, Found, MissingExtraError, Problem
from tico_modules._files.companions import (
    CONFIG_NAME,
    GENERATION_NAME,
    Tokenizer,
    dtype_name,
    read_json,
    save_configs,
    write_companions,
)
from tico_modules._files.shards import INDEX_NAME
from tico_modules._record.run import Run
from tico_modules._storage.layout import Layout
from tico_modules._tree.module_tree import named_modules

QUANT_METHOD: Final = "tico"
_QUANTIZATION: Final = "quantization_config"
# transformers refuses a file of weights that is none of safetensors, and quotes its name. So its error is
# this sentence where the method is not registered; it would make a float model with random weights otherwise.
_WEIGHTS: Final = "transformers_weights"
_UNREGISTERED: Final = (
    "this model is quantized: `import tico.quantization.integrations` before from_pretrained"
    " (pip install 'tico-api[hf]'), or call tico.quantization.load_quantized"
)
_VERSION: Final = "transformers_version"
_LONGEST: Final = 200
_INITIALIZED: Final = "_is_hf_initialized"
# Fields of a config that make no difference to what a converted model computes.
_INDIFFERENT: Final = (
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "finetuning_task", "id2label", "label2id"),
    *("output_attentions", "output_hidden_states", "problem_type", "return_dict", "task_specific_params"),
    *("transformers_version", "use_cache", "initializer_range", "tie_word_embeddings"),
)
_TEMPORARY: Final = ".quantized-beside-"


def describe_model(model: nn.Module) -> Mapping[str, object] | None:
    """Return class, configs and attention of a transformers model, for JSON; None for any other model."""
    with TemporaryDirectory() as folder:
        save_configs(model, Path(folder))
        config, generation = (read_json(Path(folder) / name) for name in (CONFIG_NAME, GENERATION_NAME))
    if not isinstance(config, dict):
        return None
    config.pop(_QUANTIZATION, None)
    return {
        "architecture": type(model).__name__,
        "package": type(model).__module__.partition(".")[0],
        "attention": _attention_of(getattr(model, "config", None)),
        "config": config,
        "generation": generation,
    }


Attention: TypeAlias = "str | Mapping[str, Attention] | None"
"""The attention of a config and of the configs in it: by their names where they differ, its own as ``""``."""


def _attention_of(config: object) -> Attention:
    own: object = getattr(config, "_attn_implementation", None)
    attention = own if isinstance(own, str) else None
    names: Iterable[str] = getattr(config, "sub_configs", ())
    inner = {name: part for name in names if (part := getattr(config, name, None)) is not None}
    parts = {name: _attention_of(part) for name, part in inner.items()}
    return attention if all(each == attention for each in parts.values()) else {"": attention, **parts}


def write_beside(
    model: nn.Module, tokenizer: Tokenizer | None, folder: Path, index: str, runs: tuple[Run, ...]
) -> None:
    """Write what other tools read to `folder`, each file as a whole: the index, and configs and tokenizer.

    Files that an interrupted save has left there are removed first. The caller keeps other writers out.
    """
    for orphan in folder.glob(f"{_TEMPORARY}*"):
        rmtree(orphan, ignore_errors=True)
    with TemporaryDirectory(dir=folder, prefix=_TEMPORARY) as temporary:
        (Path(temporary) / INDEX_NAME).write_text(index, encoding="utf-8")
        write_companions(model, temporary, config=_marks(model, runs), tokenizer=tokenizer)
        for path in Path(temporary).iterdir():
            path.replace(folder / path.name)


def _marks(model: nn.Module, runs: tuple[Run, ...]) -> Mapping[str, object]:
    """Return what says in the config of a transformers model what transformers has to load it by."""
    quantization: dict[str, object] = {
        "quant_method": QUANT_METHOD,
        "attention": _attention_of(getattr(model, "config", None)),
        "dtype": dtype_name(model),
        "conversions": [json.loads(run.config) for run in runs if run.config],
    }
    return {_QUANTIZATION: quantization, _WEIGHTS: _UNREGISTERED}


def makes_by_itself(model: nn.Module) -> bool:
    """Tell whether the class of `model` is one that `make_skeleton` finds: one of transformers."""
    transformers = sys.modules.get("transformers")
    return getattr(transformers, type(model).__name__, None) is type(model)


def mark_initialized(model: nn.Module) -> None:
    """Mark modules and tensors as transformers marks what it has loaded: it initializes all others.

    It does so as soon as the model becomes a part of a transformers model of one's own.
    """
    for _, module in named_modules(model):
        setattr(module, _INITIALIZED, True)
        parameters: dict[str, nn.Parameter | None] = module._parameters
        buffers: dict[str, Tensor | None] = module._buffers
        for tensor in (*parameters.values(), *buffers.values()):
            if tensor is not None:
                setattr(tensor, _INITIALIZED, True)


def require_config(about: Layout, model: nn.Module) -> None:
    """Refuse a transformers model whose config says something else than that of the model in the file.

    Fields that make no difference to a converted model are not compared, nor are configs of two versions
    of transformers, which name things in other ways.

    Raises:
        ArtifactError: with every field that differs.
    """
    known, current = about.optional_child("transformers"), describe_model(model)
    if known is None or current is None:
        return
    saved, found = known.child("config").values, current["config"]
    if isinstance(found, dict) and saved.get(_VERSION) == found.get(_VERSION):
        remedy = "pass a float model made from the saved config"
        problems = [
            Problem(
                module=about.where,
                field=f"config.{name}",
                value=value,
                expected=f"{expected!r}, as in the saved model",
                remedy=remedy,
            )
            for name, value, expected in _find_differences(saved, found)
        ]
        if problems:
            raise ArtifactError(*problems)


def _find_differences(
    saved: Mapping[str, object], found: Mapping[str, object]
) -> Iterator[tuple[str, object, object]]:
    """Yield name, value and expected value of the fields that both have and that differ."""
    for name in sorted(saved.keys() & found.keys()):
        one, other = saved[name], found[name]
        if isinstance(one, dict) and isinstance(other, dict) and name not in _INDIFFERENT:
            yield from (
                (f"{name}.{part}", value, want) for part, value, want in _find_differences(one, other)
            )
        elif one != other and name not in _INDIFFERENT and "drop" not in name:
            yield name, other, one


def make_skeleton(about: Layout) -> nn.Module:
    """Return the transformers model that the manifest `about` describes, without weights.

    Raises:
        ArtifactError: the manifest describes none, or its class is none of transformers.
        MissingExtraError: transformers is not installed.
    """
    known = about.optional_child("transformers")
    if known is None:
        expected = "a float model of the saved architecture, which transformers cannot make"
        remedy = "call load_quantized(directory, model)"
        problem = Problem(module=about.where, field="model", expected=expected, remedy=remedy)
        raise ArtifactError(problem)
    architecture = known.text("architecture")
    model = _make_model(known, _find_class(about, known, architecture))
    if type(model).__name__ != architecture:
        raise _class_error(
            about, architecture, f"None, from which transformers makes a {type(model).__name__}"
        )
    return model


def _find_class(about: Layout, known: Layout, architecture: str) -> type[nn.Module]:
    """Return the class of transformers with the name `architecture`."""
    try:
        import transformers
    except ImportError:
        remedy = "pip install 'tico-modules[transformers]', or pass model="
        expected, found = "the package transformers to be installed", Found("no such package")
        problem = Problem(expected=expected, value=found, remedy=remedy)
        raise MissingExtraError(problem) from None
    package = known.text("package") if "package" in known.values else transformers.__name__
    kind: object = getattr(transformers, architecture, None) if package == transformers.__name__ else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise _class_error(about, architecture, f"None, and a class of the package {package}")
    return kind


def _class_error(about: Layout, architecture: str, found: str) -> ArtifactError:
    remedy = f"pass a float {architecture} as model"
    expected = f"a float {architecture}, which transformers does not make"
    return ArtifactError(
        Problem(module=about.where, field="model", value=Found(found), expected=expected, remedy=remedy)
    )


class _FromConfig(Protocol):
    def __call__(self, config: object, *, attn_implementation: object) -> nn.Module:
        """Return a model without weights."""


def _make_model(known: Layout, kind: type[nn.Module]) -> nn.Module:
    from transformers import GenerationConfig

    make: _FromConfig = getattr(kind, "_from_config")  # noqa: B009  # what the Auto classes call
    try:
        config = _make_config(known.child("config").values, kind)
        with torch.device("meta"):
            model = make(config, attn_implementation=known.values.get("attention"))
        generation = known.optional_child("generation")
        if generation is not None:
            made: object = GenerationConfig(**generation.values)  # type: ignore[no-untyped-call]
            vars(model)["generation_config"] = made
        return model
    except Exception as error:  # each class checks its config in its own way
        reason = " ".join(str(error).split())
        found = Found(
            f"one that it refuses ({reason if len(reason) < _LONGEST else f'{reason[:_LONGEST]} …'})"
        )
        expected, remedy = "a config that transformers accepts", f"pass a float {kind.__name__} as model"
        problem = Problem(module=known.where, field="config", value=found, expected=expected, remedy=remedy)
        raise ArtifactError(problem) from error


class _ConfigClass(Protocol):
    """What a class of configs is."""

    def get_config_dict(self, folder: Path, /) -> tuple[dict[str, object], object]:
        """Return the values that are saved in `folder`."""

    def from_dict(self, values: dict[str, object], /) -> object:
        """Return the config with `values`."""


def _make_config(values: Mapping[str, object], kind: type[nn.Module]) -> object:
    """Return the config of transformers with `values`, read from a file: that is how it knows infinity."""
    config_class: _ConfigClass = getattr(kind, "config_class")  # noqa: B009
    with TemporaryDirectory() as folder:
        (Path(folder) / CONFIG_NAME).write_text(json.dumps(dict(values)), encoding="utf-8")
        read, _ = config_class.get_config_dict(Path(folder))
    return config_class.from_dict({name: each for name, each in read.items() if name in values})
