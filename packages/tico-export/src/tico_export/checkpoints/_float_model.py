"""The float model of transformers that an integer model was made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from tico_config import Found, Problem, UnsupportedError
from tico_export.source import Source
from tico_modules import write_companions

_TIES: Final = "tie_word_embeddings"


def float_model(source: Source) -> nn.Module:
    """Return the float model without values, on the meta device, as its class makes it from its config.

    Raises:
        UnsupportedError: the model is none of transformers, or its class does not take its config.
    """
    kind, config = type(source.model), source.config
    if config is None or not _is_of_transformers(kind):
        expected = "a model of transformers, which reads the folder"
        found, remedy = Found(f"a {kind.__name__}"), "export its graph, for example by Onnx() or PT2()"
        raise UnsupportedError(Problem(field="model", value=found, expected=expected, remedy=remedy))
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            made: nn.Module = kind(deepcopy(config))
    except Exception as error:
        found, expected = Found(f"one that it refuses ({error})"), f"a config that {kind.__name__} takes"
        remedy = "give the model the config that its class made it from"
        raise UnsupportedError(
            Problem(field="config", value=found, expected=expected, remedy=remedy)
        ) from error
    return made


def _is_of_transformers(kind: type) -> bool:
    names = ((each.__module__.partition(".")[0], each.__name__) for each in kind.__mro__)
    return ("transformers", "PreTrainedModel") in names


def left_in_float(source: Source) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of `source` that are no parts of integer layers, by their names in a checkpoint.

    Of tensors that are one, such as those of a tied head, the first stands for all where the config says so,
    as in any checkpoint of transformers.
    """
    yield from source.floats.items()
    if not has_tied_floats(source):
        for name, other in source.aliases.items():
            if other in source.floats:
                yield name, source.floats[other]


def has_tied_floats(source: Source) -> bool:
    """Tell whether the config ties a head to embeddings, and both are left in float."""
    config = source.config
    names: Iterable[str] = getattr(config, "sub_configs", ())
    parts = [config, *(getattr(config, name, None) for name in names)]
    asked = any(getattr(each, _TIES, False) for each in parts)
    return asked and any(other in source.floats for other in source.aliases.values())


def write_beside(source: Source, folder: Path, quantization: Mapping[str, object]) -> None:
    """Write configs and tokenizer to `folder`, with `quantization` as ``quantization_config``.

    A head of integers has codes of its own, so that the config says then that nothing is tied.

    Raises:
        OSError: the folder cannot be written.
    """
    write_companions(source.model, folder, config={"quantization_config": quantization})
    if not has_tied_floats(source):
        path = folder / "config.json"
        config: object = _untied(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(config, sort_keys=True, indent=2) + "\n", encoding="utf-8")


def _untied(config: object) -> object:
    """Return a config with all of its parts, in which no embeddings are tied."""
    if not isinstance(config, dict):
        return config
    return {name: False if name == _TIES else _untied(value) for name, value in config.items()}
