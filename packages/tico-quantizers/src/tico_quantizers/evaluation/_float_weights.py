"""The float weights that the codes of a converted model stand for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from tico_config import Found, Problem, UnsupportedError
from tico_modules import PackedWeight, RestorableModule, all_tensors, child_path, named_modules, runs_of

_KINDS: Final = re.compile(r'"kind":\s*"(\w+)"')
_MOVING: Final = frozenset({"AWQConfig", "CLEConfig", "RotationConfig", "SmoothQuantConfig"})
"""The configs of algorithms that move scales or rotations from one layer to another."""

_REMEDY: Final = (
    "pass a copy of the model that the last prepare was given; where scales move, let one stage move them "
    "(SmoothQuantConfig, AWQConfig(round_weights=False), …), keep what it leaves, and round in the next one"
)


def float_weights(
    model: nn.Module, float_model: nn.Module | None, wanted: Mapping[str, Sequence[PackedWeight]]
) -> dict[PackedWeight, Tensor]:
    """Return what in `float_model` the weights `wanted`, by the path of their layer in `model`, stand for.

    They are views where that is possible, on the device of the codes.

    Raises:
        UnsupportedError: there is no float model, it lacks a weight, or `model` was made of another one.
    """
    if float_model is None:
        sentence = f"{_listed(list(wanted))} keeps codes, and no float weight to go back to"
        remedy = "pass float_model=, the model before convert, or select kind='activations'"
        problem = Problem(
            field="float_model",
            value=None,
            expected="the model before convert",
            sentence=sentence,
            remedy=remedy,
        )
        raise UnsupportedError(problem)
    _require_same_floats(model, float_model)
    found = _all_weights(model, float_model)
    problems = [
        Problem(
            module=path,
            field="float_model",
            value=Found("none that fits" if each in found else "none"),
            expected=f"a float weight of shape {each.shape}",
            remedy=_REMEDY,
        )
        for path, weights in wanted.items()
        for each in weights
        if each not in found or found[each].shape != each.shape
    ]
    if problems:
        raise UnsupportedError(*problems)
    return {each: found[each].to(each.codes.device) for weights in wanted.values() for each in weights}


def _listed(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1:,} more"


def _all_weights(model: nn.Module, float_model: nn.Module) -> dict[PackedWeight, Tensor]:
    originals = dict(named_modules(float_model, every_path=True))
    found: dict[PackedWeight, Tensor] = {}
    for path, module in named_modules(model):
        if isinstance(module, RestorableModule):
            original = originals.get(path.rpartition(".")[0] if module.stands_beside else path)
            found |= {} if original is None else module.rounded_from(original)
    return found


def _require_same_floats(model: nn.Module, float_model: nn.Module) -> None:
    """Refuse a float model that `model` was not made of, or from which scales were moved since.

    Raises:
        UnsupportedError: saying what tells.
    """
    problems = [*_moved(model, float_model), *_folded(model, float_model), *_other_floats(model, float_model)]
    if problems:
        raise UnsupportedError(*problems)


def _moved(model: nn.Module, float_model: nn.Module) -> Iterator[Problem]:
    moving = _configs(model) - _configs(float_model)
    for name in sorted({kind for text in moving for kind in _KINDS.findall(text)} & _MOVING):
        sentence = f"{name} has moved scales between layers since, so that these weights no longer fit"
        yield _problem(type(model).__name__, f"one from before {name}", sentence)


def _configs(model: nn.Module) -> set[str]:
    return {run.config for _, module in named_modules(model) for run in runs_of(module)}


def _folded(model: nn.Module, float_model: nn.Module) -> Iterator[Problem]:
    before = dict(named_modules(float_model, every_path=True))
    for path, module in named_modules(model):
        if getattr(type(module), "is_folded", False) and type(before.get(path)) is not type(module):
            sentence = "it was folded into the layer before it, whose weight in this model is another one"
            yield _problem(path, "one from before that", sentence)


def _other_floats(model: nn.Module, float_model: nn.Module) -> Iterator[Problem]:
    """Yield a problem for each float tensor that both models have and that differs."""
    own = dict(_floats(model))
    for name, tensor in all_tensors(float_model):
        other = own.get(name)
        if other is not None and not _is_same(tensor, other):
            yield _problem(name, "a model in which it is another tensor", "it differs from that of the model")


def _floats(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the float tensors by the names that they had before modules were put into others."""
    for path, module in named_modules(model):
        inner = module.stands_for if isinstance(module, RestorableModule) else module
        for name, tensor in (*inner._parameters.items(), *inner._buffers.items()):
            if tensor is not None and tensor.is_floating_point():
                yield child_path(path, name), tensor


def _is_same(one: Tensor, other: Tensor) -> bool:
    if one.is_meta or other.is_meta or one is other:
        return one is other
    return torch.equal(one.detach(), other.detach().to(one.device))


def _problem(module: str, found: str, sentence: str) -> Problem:
    expected = "the model that was converted"
    return Problem(
        module=module,
        field="float_model",
        value=Found(found),
        expected=expected,
        sentence=sentence,
        remedy=_REMEDY,
    )
