"""The layers that compressed-tensors has no place for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from torch import nn

from tico_config import Found, PerTensor, PerToken, Problem
from tico_export.compressed_tensors._scheme import Scheme, needs_floats
from tico_export.source import Grid, IntegerWeight, Source

_BITS: Final = 8
_NAME: Final = "compressed-tensors"
_FLOAT: Final = "leave it in float, by an override of its path with no_quant()"
_Misfit: TypeAlias = tuple[str, str, str, str]  # field, what was found, what is legal, a way out


def layer_problems(source: Source, model: nn.Module, schemes: Mapping[str, Scheme]) -> Iterator[Problem]:
    """Yield every layer of `source` that the format or what loads it has no place for.

    `model` is the float model.
    """
    modules = dict(model.named_modules())
    mixed = len(set(schemes.values())) > 1
    for path, weight in source.weights.items():
        misfits = [*_of_kind(modules.get(path)), *_of_weight(weight), *_of_input(weight.act_in)]
        if mixed and needs_floats(weight, schemes[path]):
            misfits.append(_of_mixed(weight))
        for field, found, expected, remedy in misfits:
            yield Problem(
                module=path or None,
                field=field,
                value=Found(found),
                expected=expected,
                sentence=f"{_NAME} takes {expected}, and this one has {found}",
                remedy=remedy,
            )


def _of_kind(module: nn.Module | None) -> Iterator[_Misfit]:
    if not isinstance(module, nn.Linear | nn.Embedding):
        yield "module", f"a {type(module).__name__} in its place", "layers of Linear and Embedding", _FLOAT


def _of_weight(weight: IntegerWeight) -> Iterator[_Misfit]:
    if weight.dtype.bits > _BITS:
        yield "dtype", f"{weight.dtype}", f"weights of at most {_BITS} bits", f"use {_BITS} bits"
    if weight.group_index is not None:
        found, remedy = "columns in an order of their own", "use static_groups=True or act_order=False"
        yield "group_index", found, "groups that are runs of columns", remedy
    elif weight.columns % (weight.group_size or 1):
        found = f"{weight.columns} columns in groups of {weight.group_size}"
        yield "group_size", found, "groups of one length", "choose one that divides the columns"
    outside = (weight.zero_point < weight.dtype.qmin) | (weight.zero_point > weight.dtype.qmax)
    if bool(outside.any()):
        yield "zero_point", f"ones beyond {weight.dtype}", "zero points that are codes", "use symmetric=True"


def _of_input(grid: Grid | None) -> Iterator[_Misfit]:
    if grid is None:
        return
    if grid.dtype.bits > _BITS:
        yield "act_in", str(grid.dtype), f"inputs of at most {_BITS} bits", "use 8 bits, or leave it in float"
    if not isinstance(grid.granularity, PerTensor | PerToken):
        expected = "inputs with one fixed grid or a grid a token"
        yield "act_in", f"grids {grid.granularity}", expected, "use PerTensor() or PerToken()"


def _of_mixed(weight: IntegerWeight) -> _Misfit:
    """Return the problem of a packed layer that transformers loads only where all layers have one scheme."""
    if weight.kind == "embedding":
        expected = "embeddings of 8 bits, or quantized as all other layers are"
        return "dtype", str(weight.dtype), expected, "use one of these, or leave it in float"
    expected = "zero points of fewer than 8 bits where all layers have one scheme"
    return "zero_point", "one of several", expected, "use symmetric=True, or one scheme for all layers"
