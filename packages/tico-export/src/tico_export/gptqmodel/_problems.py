"""The layers that the formats of GPTQ and AWQ have no place for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from torch import nn

from tico_config import Found, LayerBlocks, Problem
from tico_export.source import QuantizedWeight, Source
from tico_modules import TransposedLinear

_MULTIPLE: Final = 32
_SIZES: Final = (16, 32, 64, 128, 256, 512, 1024)  # of groups, which GPTQModel 7.7 has kernels for
_AWQ_SIZES: Final = _SIZES[:4]
_FLOAT: Final = "leave it in float, by an override of its path with no_quant()"
_Misfit: TypeAlias = tuple[str, str, str, str]  # field, what was found, what is legal, a way out
_SCALED: Final = (
    "bloom",
    "falcon",
    "gpt_bigcode",
    "gpt_neox",
    "gptj",
    "mpt",
    "RefinedWebModel",
    "starcoder2",
)
"""Types of models in which readers of AWQ expect activations that are divided by scales of their own."""


GPTQ_LAYERS: Final[tuple[type[nn.Module], ...]] = (nn.Linear, TransposedLinear, nn.Conv2d)
"""The float layers that optimum 2.3 replaces where it loads a folder in the format of GPTQ."""


def gptq_problems(source: Source, model: nn.Module, version: int) -> Iterator[Problem]:
    """Yield everything of the layers of `source` that the format of GPTQ cannot hold; `model` is in float."""
    name = f"GPTQ's format, version {version},"
    for path, weight in source.weights.items():
        misfits = [*_of_layer(weight, model, path, (2, 3, 4, 8), _SIZES), *_of_zero_points(weight, version)]
        yield from _problems(name, path, misfits)
    yield from _mixed(name, source)
    layers = {path for path, each in model.named_modules() if isinstance(each, GPTQ_LAYERS)}
    if source.weights and LayerBlocks.of(source.weights, layers - source.weights.keys()) is None:
        yield Problem(
            field="layers",
            value=Found("others"),
            expected="the same layers in every block, and none outside of the blocks",
            sentence=f"{name} takes the same layers of every block of one list, and none outside of it",
            remedy="leave the others in float, such as the head by overrides={'lm_head': no_quant()}",
        )


def awq_problems(source: Source, model: nn.Module) -> Iterator[Problem]:
    """Yield everything of the layers of `source` that the format of AWQ cannot hold; `model` is in float."""
    name = "AWQ's format"
    for path, weight in source.weights.items():
        misfits = [*_of_layer(weight, model, path, (4,), _AWQ_SIZES), *_of_order(weight)]
        yield from _problems(name, path, misfits)
    yield from _mixed(name, source)
    kind: object = getattr(source.config, "model_type", None)
    if kind in _SCALED:
        expected, remedy = "a model without scales of activations", "use GPTQFormat() or CompressedTensors()"
        sentence = f"readers of {name} expect scales of the activations of a model of the type {kind}"
        yield Problem(
            field="model", value=Found(str(kind)), expected=expected, sentence=sentence, remedy=remedy
        )


def _problems(name: str, path: str, misfits: list[_Misfit]) -> Iterator[Problem]:
    for field, found, expected, remedy in misfits:
        sentence = f"{name} takes {expected}, and this one has {found}"
        yield Problem(
            module=path or None,
            field=field,
            value=Found(found),
            expected=expected,
            sentence=sentence,
            remedy=remedy,
        )


def _of_layer(
    weight: QuantizedWeight, model: nn.Module, path: str, bits: tuple[int, ...], sizes: tuple[int, ...]
) -> Iterator[_Misfit]:
    place = dict(model.named_modules()).get(path)
    if not isinstance(place, nn.Linear):
        yield "module", f"a {type(place).__name__} in its place", "layers of Linear", _FLOAT
        return
    if weight.dtype.bits not in bits:
        legal = ", ".join(map(str, bits))
        yield "dtype", f"{weight.dtype}", f"weights of {legal} bits", "choose one of these"
    if weight.act_in is not None:
        yield "act_in", weight.act_in.label, "inputs in float", "leave it in float, by activation=no_quant()"
    size = weight.group_size or weight.columns
    if weight.columns % size or weight.columns % _MULTIPLE or weight.shape[0] % _MULTIPLE:
        found = f"{weight.shape[0]} rows and {weight.columns} columns in groups of {size}"
        expected = f"multiples of {_MULTIPLE} rows and columns in groups of one length"
        yield "group_size", found, expected, "choose another group size, or leave the layer in float"
    elif weight.group_size is not None and size not in sizes:
        legal = f"groups of {', '.join(map(str, sizes))} columns"
        yield "group_size", f"groups of {size}", legal, "choose one of these, or group_size=None"
    if bool((weight.scale.half().float() - weight.scale).abs().gt(weight.scale.abs() * 2**-10).any()):
        yield "scale", "some that are not", "scales within the range of float16", _FLOAT
    outside = (weight.zero_point < weight.dtype.qmin) | (weight.zero_point > weight.dtype.qmax)
    if bool(outside.any()):
        yield "zero_point", f"ones beyond {weight.dtype}", "zero points that are codes", "use symmetric=True"


def _of_zero_points(weight: QuantizedWeight, version: int) -> Iterator[_Misfit]:
    if version == 1 and bool((weight.zero_point == weight.dtype.qmin).any()):
        yield "zero_point", "some that are", "zero points that are not the first code", "use version=2"


def _of_order(weight: QuantizedWeight) -> Iterator[_Misfit]:
    if weight.group_index is not None:
        found, remedy = "columns in an order of their own", "use static_groups=True or act_order=False"
        yield "group_index", found, "groups that are runs of columns", remedy


def _mixed(name: str, source: Source) -> Iterator[Problem]:
    schemes: Mapping[tuple[int, int], str] = {
        (each.dtype.bits, each.group_size or -1): path for path, each in source.weights.items()
    }
    if len(schemes) > 1:
        found = ", ".join(
            f"{bits} bits in groups of {size} at {path}" for (bits, size), path in schemes.items()
        )
        expected, remedy = "the same bits and groups in all layers", "use CompressedTensors()"
        sentence = f"{name} takes {expected}, and there are {found.replace('groups of -1', 'whole rows')}"
        yield Problem(field="layers", value=Found(found), expected=expected, sentence=sentence, remedy=remedy)
