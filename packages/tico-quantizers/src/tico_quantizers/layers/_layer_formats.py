"""Layers as deployment profiles see them, and what of a plan the target of a config does not take."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final, TypeVar

import attrs
from torch import nn

from tico_config import DeploymentProfile, Found, GridFormat, LayerFormat, ModuleConfig, Problem
from tico_modules import (
    ActivationGrid,
    ChangedInput,
    QuantizedModule,
    ScaledInput,
    TransposedLinear,
    child_path,
    named_modules,
)
from tico_quantizers.layers._expert_linear import ExpertLinear
from tico_quantizers.layers._matrix import Layer, columns, shape
from tico_quantizers.layers._selection import output_embeddings

C = TypeVar("C", bound=ModuleConfig)

_KINDS: Final[Mapping[type[nn.Module], str]] = {
    ExpertLinear: "experts",
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.Embedding: "embedding",
}

_FIELDS: Final[Mapping[str, str]] = {"dtype": "bits", "granularity": "group_size", "groups": "group_size"}
"""What configs with `bits` call the properties of a format."""


def layer_kind(module: nn.Module, heads: Collection[nn.Module] = ()) -> str:
    """Return what profiles call a layer, float or integer; ``head`` for one of `heads`.

    >>> layer_kind(nn.Conv2d(1, 1, 1)), layer_kind(nn.LayerNorm(4))
    ('conv2d', 'LayerNorm')
    """
    if any(module is head for head in heads):
        return "head"
    if isinstance(module, QuantizedModule):
        return module.kind.rpartition(".")[2]
    if isinstance(module, TransposedLinear):
        return "transposed_linear"
    found = (kind for base, kind in _KINDS.items() if isinstance(module, base))
    return next(found, type(module).__name__)


def integer_formats(model: nn.Module) -> dict[str, LayerFormat]:
    """Return the formats of the layers of `model` that are integer already, by path."""
    heads = output_embeddings(model)
    return {
        path: format_of(path, module, layer_kind(module, heads))
        for path, module in named_modules(model)
        if isinstance(module, QuantizedModule)
    }


def format_of(path: str, module: QuantizedModule, kind: str) -> LayerFormat:
    """Return the format of an integer layer; of inputs in float it is not known whether they stay so."""
    return LayerFormat(
        path=path,
        kind=kind,
        weight=module.packed.grid_format(),
        inputs=None if module.act_in is None else module.act_in.grid_format(),
        inputs_known=module.act_in is not None,
        rows=module.packed.shape[0],
        columns=module.packed.columns,
    )


def target_problems(
    model: nn.Module, config: C, asked: Mapping[str, C], layers: Mapping[str, Layer]
) -> Iterator[Problem]:
    """Yield what the target of `config` does not take of a model whose layers get what is `asked` by path.

    `layers` are all that the model has. Those that are not asked for stay as they are: float, or integer.
    """
    target = config.target
    if target is None:
        return
    if type(config).weight_format is ModuleConfig.weight_format:
        yield _silent(type(config).__name__, target)
        return
    name, heads = type(config).__name__, output_embeddings(model)
    found = integer_formats(model)
    for path, layer in layers.items():
        kind, known = layer_kind(layer, heads), found.get(path)
        if path in asked:
            found[path] = _asked_format(path, layer, kind, asked[path].weight_format(), known)
        elif known is None:
            found[path] = LayerFormat(path=path, kind=kind)
    remedy = (
        f"choose that for all or by an override, leave it out by no_quant(), or start from what"
        f" target.configs({name}) gives"
    )
    yield from multiplication_problems(model, target)
    for problem in target.problems(found.values(), _points(model, found), remedy):
        field = problem.field or ""
        yield attrs.evolve(problem, field=_FIELDS.get(field, field)) if problem.module in asked else problem


def _points(model: nn.Module, layers: Collection[str]) -> dict[str, GridFormat]:
    """Return the grids that an earlier run has left, but those of what `layers` read, by path."""
    read = {child_path(path, "act_in") for path in layers}
    return {
        path.removesuffix(".fixed"): module.grid_format()
        for path, module in named_modules(model)
        if isinstance(module, ActivationGrid) and path not in read
    }


def multiplication_problems(model: nn.Module, target: DeploymentProfile) -> Iterator[Problem]:
    """Yield the multiplications and rotations of inputs left by earlier runs that `target` can't run."""
    for path, module in named_modules(model):
        if isinstance(module, ChangedInput) and not target.multiplications:
            scaled = isinstance(module, ScaledInput)
            field, made = ("insert_mul", "smooth") if scaled else ("online_inputs", "rotate")
            yield Problem(
                module=path or None,
                field=field,
                value=Found(type(module).__name__),
                expected="no multiplication",
                sentence=f"{target.runtime} has no place for the multiplication in front of this layer",
                remedy=f"{made} the float model with {field}=False",
            )


def _asked_format(
    path: str, layer: Layer, kind: str, weight: GridFormat | None, known: LayerFormat | None
) -> LayerFormat:
    """Return the format that a layer will have; its inputs keep the grid that they have."""
    size = getattr(weight and weight.granularity, "size", 1)
    even = weight is not None and weight.even and columns(layer) % size == 0
    return LayerFormat(
        path=path,
        kind=kind,
        weight=None if weight is None else attrs.evolve(weight, even=even),
        inputs=None if known is None else known.inputs,
        inputs_known=known is not None and known.inputs_known,
        rows=shape(layer)[0],
        columns=columns(layer),
    )


def _silent(name: str, target: DeploymentProfile) -> Problem:
    return Problem(
        field="target",
        value=target,
        expected="None",
        sentence=f"{name} does not say which format its weights get, so it cannot be compared with what"
        f" {target.runtime} takes",
        remedy="leave target out, or define weight_format in the class of the config",
    )
