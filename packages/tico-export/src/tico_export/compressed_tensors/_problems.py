"""The layers that compressed-tensors has no place for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

import torch
from torch import nn

from tico_config import (
    FP8,
    MXFP4,
    MXFP6,
    MXFP8,
    NVFP4,
    FloatFormat,
    Found,
    NumberFormat,
    PerTensor,
    PerToken,
    Problem,
)
from tico_export.compressed_tensors._scheme import Scheme, is_made_bfloat16, needs_floats
from tico_export.source import Grid, QuantizedWeight, Source

_BITS: Final = 8
_NAME: Final = "compressed-tensors"
_ELEMENTS: Final[tuple[FloatFormat, ...]] = (FP8("e4m3"), MXFP8("e4m3"), MXFP6("e2m3"), MXFP4(), NVFP4())
_BFLOAT16: Final = "cast the model before the export: model.to(torch.bfloat16)"
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
        if needs_floats(weight, schemes[path]):
            misfits += _of_floats(weight, schemes[path], mixed=mixed)
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


def _of_weight(weight: QuantizedWeight) -> Iterator[_Misfit]:
    if _is_other_element(weight.dtype):
        legal = ", ".join(map(str, _ELEMENTS))
        yield "dtype", f"{weight.dtype}", f"elements of {legal}", "use one of these"
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
    if isinstance(grid.dtype, FloatFormat) and grid.dtype != FP8("e4m3"):
        expected = "inputs of integers or fp8_e4m3, as it gives blocks scales by another rule"
        yield "act_in", str(grid.dtype), expected, 'use FP8("e4m3"), or leave it in float'
    elif not isinstance(grid.granularity, PerTensor | PerToken):
        expected = "inputs with one fixed grid or a grid a token"
        yield "act_in", f"grids {grid.granularity}", expected, "use PerTensor() or PerToken()"


def _is_other_element(dtype: NumberFormat) -> bool:
    return isinstance(dtype, FloatFormat) and dtype not in _ELEMENTS


def _of_floats(weight: QuantizedWeight, scheme: Scheme, *, mixed: bool) -> Iterator[_Misfit]:
    """Yield the problem of a layer that transformers loads only as floats, where that loads others wrongly.

    So it is where there are several schemes, or grids of inputs, which are left out.
    """
    if not (mixed or scheme.inputs is not None):
        return
    if is_made_bfloat16(weight) and weight.float_dtype != torch.bfloat16:
        found = f"{weight.dtype} in {str(weight.float_dtype).removeprefix('torch.')}"
        expected = "blocks of elements beside other schemes or grids of inputs in bfloat16 only"
        yield "dtype", found, expected, _BFLOAT16
    elif weight.kind == "embedding":
        expected = "embeddings of 8 bits, or quantized as all other layers are"
        yield "dtype", str(weight.dtype), expected, "use one of these, or leave it in float"
    else:
        expected = "zero points of fewer than 8 bits where all layers have one scheme"
        yield "zero_point", "one of several", expected, "use symmetric=True, or one scheme for all layers"
