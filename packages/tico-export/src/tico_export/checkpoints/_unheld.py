"""What a checkpoint of integer layers has no place for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from torch import nn

from tico_config import Found, Problem
from tico_export.source import Source
from tico_modules import KeyValueCache

_INPUTS: Final = 'quantize these only: PTQConfig(activation=no_quant(), overrides={"*_proj.act_in": …})'


def unheld_problems(
    source: Source, model: nn.Module, format_name: str, *, cache: bool = False
) -> Iterator[Problem]:
    """Yield the grids and modules of `source` that are no parts of layers, and tensors of another name.

    `model` is the float model, whose names a reader looks for: it would leave out all others, and make up
    those that are not there. Where `cache` is true, what keeps keys and values as codes is no problem.
    """
    yield from _points(source, format_name)
    yield from _modules(source, format_name, cache=cache)
    yield from _names(source, model)


def _points(source: Source, format_name: str) -> Iterator[Problem]:
    outputs = {
        f"{path}.act_out": each.act_out for path, each in source.weights.items() if each.act_out is not None
    }
    for path, grid in {**source.points, **outputs}.items():
        yield Problem(
            module=path,
            field="activation",
            value=Found(grid.label),
            expected="left in float",
            sentence=f"{format_name} holds grids of the inputs of layers only, and this one is {grid.label}",
            remedy=_INPUTS,
        )


def _modules(source: Source, format_name: str, *, cache: bool) -> Iterator[Problem]:
    for path, module in source.others.items():
        if cache and isinstance(module, KeyValueCache):
            continue
        if not any(point.startswith(f"{path}.") for point in source.points):
            name = type(module).__name__
            yield Problem(
                module=path or None,
                field="module",
                value=Found(name),
                expected="linear layers and embeddings",
                sentence=f"{format_name} has no place for what a {name} computes",
                remedy="leave this part of the model as it was",
            )


def _names(source: Source, model: nn.Module) -> Iterator[Problem]:
    known = dict(model.state_dict())
    given = {*source.floats, *source.aliases}
    for path, weight in source.weights.items():
        given |= {weight.name} | ({f"{path}.bias"} if weight.bias is not None else set())
    kind = type(model).__name__
    for name in sorted(known.keys() ^ given):
        one, other = (kind, "the model") if name in known else ("the model", kind)
        yield Problem(
            module=name,
            field="tensor",
            value=Found(f"one in {one} alone"),
            expected=f"the tensors of {kind}",
            sentence=f"{one} has such a tensor, and {other} has none",
            remedy=f"convert a model with the tensors of {kind}, or export its graph",
        )
