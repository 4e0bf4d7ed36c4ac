"""`save_pretrained` of transformers for models with integer modules: it does what `save_quantized` does."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Final, ParamSpec

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tico_config import ConfigError, Found, Problem, UnsupportedError
from tico_modules import RestorableModule, named_modules, save_quantized

_OWN: Final = "__tico__"
_UNITS: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE: Final = re.compile(r"([0-9]+)(KB|MB|GB|TB)")
_PUSH: Final = "call model.push_to_hub(repository)"
_WHOLE: Final = "leave it out, and save on one process a model that holds all its tensors"
# What save_pretrained can be asked for and a folder of integers can't have, with the way out.
_REFUSED: Final = {
    "push_to_hub": _PUSH,
    "variant": "save to a folder of its own",
    "distributed_checkpoint": _WHOLE,
}

P = ParamSpec("P")


def install_saving() -> None:
    """Let `save_pretrained` of transformers write models with integer modules as `save_quantized` does.

    For all other models it stays what it was.
    """
    original = PreTrainedModel.save_pretrained
    if not getattr(original, _OWN, False):
        saving = _knowing_integers(original)
        setattr(saving, _OWN, True)
        setattr(PreTrainedModel, "save_pretrained", saving)  # noqa: B010


def _knowing_integers(original: Callable[P, None]) -> Callable[P, None]:
    signature = inspect.signature(original)

    @wraps(original)
    def save_pretrained(*args: P.args, **kwargs: P.kwargs) -> None:
        given = signature.bind(*args, **kwargs).arguments
        model: object = given["self"]
        if isinstance(model, nn.Module) and _is_converted(model):
            _save(model, given)
        else:
            original(*args, **kwargs)

    return save_pretrained


def _is_converted(model: nn.Module) -> bool:
    """Tell whether `model` has integer modules and no adapters, of which transformers saves nothing else."""
    adapters: object = getattr(model, "_hf_peft_config_loaded", False)
    return not adapters and any(isinstance(each, RestorableModule) for _, each in named_modules(model))


def _save(model: nn.Module, given: Mapping[str, object]) -> None:
    for name, remedy in _REFUSED.items():
        if given.get(name):
            expected = "left out for a model with integer layers"
            raise UnsupportedError(Problem(field=name, value=given[name], expected=expected, remedy=remedy))
    state = given.get("state_dict")
    if state is not None and not _is_own(model, state):
        expected, found = "the state dict of the model itself", Found("another one")
        raise UnsupportedError(Problem(field="state_dict", value=found, expected=expected, remedy=_WHOLE))
    limit = _parse_size(given.get("max_shard_size", "50GB"))
    folder = given["save_directory"]
    if given.get("is_main_process", True) and isinstance(folder, str | os.PathLike):
        save_quantized(model, folder, shard_bytes=limit)


def _is_own(model: nn.Module, state: object) -> bool:
    own: Mapping[str, Tensor] = model.state_dict()
    if not isinstance(state, Mapping) or own.keys() != state.keys():
        return False
    return all(isinstance(state[name], Tensor) and torch.equal(state[name], own[name]) for name in own)


def _parse_size(size: object) -> int:
    """Return the number of bytes that a limit like ``"5GB"`` is."""
    found = _SIZE.fullmatch(size.upper()) if isinstance(size, str) else None
    if found is not None:
        return int(found[1]) * _UNITS[found[2]]
    if type(size) is not int:
        expected = 'a number of bytes, or a text like "5GB"'
        raise ConfigError(Problem(field="max_shard_size", value=size, expected=expected))
    return size
