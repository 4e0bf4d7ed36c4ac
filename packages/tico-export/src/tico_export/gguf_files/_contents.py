"""What of a converted model stands in a file of GGUF, and under which names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

import attrs
import torch
from torch import Tensor

from tico_config import Found, Problem
from tico_export.gguf_files._architectures import ARCHITECTURES, Architecture
from tico_export.gguf_files._blocks import block_problem, blocks_of
from tico_export.gguf_files._container import FileTensor
from tico_export.gguf_files._hyperparameters import config_problems, count_of, head_size, rope_factors
from tico_export.gguf_files._tensor_types import FLOAT_TYPES, tensor_bytes
from tico_export.source import QuantizedWeight, Source

_EMBEDDING: Final = "token_embd.weight"
_HEAD: Final = "output.weight"
_KINDS: Final = ("linear", "embedding")
_FLOAT: Final = "leave it in float, by an override of its path with no_quant()"


@attrs.frozen(eq=False, kw_only=True)
class Contents:
    """A model as a file holds it: `named` are its tensors by their names there."""

    source: Source
    architecture: Architecture
    named: Mapping[str, QuantizedWeight | Tensor]

    @classmethod
    def of(cls, source: Source) -> Contents | None:
        """Return the contents of a file; None for an architecture without one."""
        architecture = ARCHITECTURES.get(str(getattr(source.config, "model_type", None)))
        if architecture is None:
            return None
        named: dict[str, QuantizedWeight | Tensor] = {}
        for name, each in _tensors(source).items():
            found = architecture.name_of(name)
            if found is not None:
                named[found] = each
        # llama.cpp takes the embedding where a file has no head.
        if named.get(_HEAD) is not None and _same(named.get(_HEAD), named.get(_EMBEDDING)):
            del named[_HEAD]
        return cls(source=source, architecture=architecture, named=named)

    @property
    def rows(self) -> int:
        """The tokens that the embedding has."""
        table = self.named.get(_EMBEDDING)
        return table.shape[0] if table is not None else 0

    def tensors(self, *, nearest: bool, floats: torch.dtype | None) -> Iterator[FileTensor]:
        """Yield the tensors of the file, in the order of their names."""
        factors = rope_factors(self.source.config)
        extra: dict[str, QuantizedWeight | Tensor] = {} if factors is None else {"rope_freqs.weight": factors}
        for name, each in sorted({**self.named, **extra}.items()):
            order = self.order_of(name, each.shape[0])
            if isinstance(each, QuantizedWeight):
                blocks = blocks_of(each, nearest=nearest)
                if blocks is not None:
                    content = partial(blocks.content, order)
                    yield FileTensor(name=name, type=blocks.type, shape=each.shape, content=content)
            else:
                dtype = torch.float32 if each.ndim == 1 else floats or each.dtype
                shape, content = tuple(each.shape), partial(_float_bytes, each, order, dtype)
                yield FileTensor(name=name, type=FLOAT_TYPES[dtype], shape=shape, content=content)

    def order_of(self, name: str, rows: int) -> Tensor | None:
        """Return the order that the rows of a tensor stand in; None where that is their own."""
        field = self.architecture.heads_of(name)
        if field is None:
            return None
        heads = count_of(self.source.config, field)
        return torch.arange(rows).view(heads, 2, head_size(self.source.config) // 2).mT.reshape(-1)


def content_problems(source: Source, *, nearest: bool) -> Iterator[Problem]:
    """Yield everything of `source` that a file of GGUF cannot hold."""
    contents = Contents.of(source)
    if contents is None:
        kind = getattr(source.config, "model_type", None)
        found = Found("no model of transformers" if kind is None else str(kind))
        known = ", ".join(ARCHITECTURES)
        sentence = f"GGUF is written for {known} of transformers, and this is {found}"
        expected, remedy = f"one of {known}", "export it by Onnx(), OpenVINO() or CompressedTensors()"
        yield Problem(field="model", value=found, expected=expected, sentence=sentence, remedy=remedy)
        return
    yield from config_problems(source.config)
    yield from _grid_problems(source)
    for name, each in _tensors(source).items():
        if contents.architecture.name_of(name) is None:
            yield _unknown(name, contents.architecture)
        elif isinstance(each, QuantizedWeight):
            yield from _weight_problems(each, nearest=nearest)
        elif each.dtype not in FLOAT_TYPES:
            expected = ", ".join(str(dtype) for dtype in FLOAT_TYPES)
            found, remedy = Found(str(each.dtype)), "cast it to float32 before the export"
            yield Problem(module=name, field="dtype", value=found, expected=expected, remedy=remedy)
    for name in (_EMBEDDING, "output_norm.weight"):
        if name not in contents.named:
            found, sentence = Found("none"), f"the model has no {name}"
            expected, remedy = "a causal language model, with its head", "convert the model with its head"
            yield Problem(field="model", value=found, expected=expected, sentence=sentence, remedy=remedy)


def _weight_problems(weight: QuantizedWeight, *, nearest: bool) -> Iterator[Problem]:
    if weight.kind not in _KINDS:
        found, expected = Found(weight.kind), "a linear layer or an embedding"
        yield Problem(module=weight.path, field="kind", value=found, expected=expected, remedy=_FLOAT)
        return
    factor = weight.settings.get("factor", 1.0)
    if factor != 1.0:
        yield Problem(module=weight.path, field="factor", value=factor, expected="1", remedy=_FLOAT)
    problem = block_problem(weight, nearest=nearest)
    if problem is not None:
        yield problem


def _grid_problems(source: Source) -> Iterator[Problem]:
    """Yield grids of activations and other arithmetic, which the format has no place for."""
    for path, weight in source.weights.items():
        for field, grid in (("act_in", weight.act_in), ("act_out", weight.act_out)):
            if grid is not None:
                yield _no_grid(path, field, grid.label)
    for path, grid in source.points.items():
        yield _no_grid(path, "activation", grid.label)
    for path, other in source.others.items():
        sentence = f"GGUF has no place for {type(other).__name__}"
        found, expected = Found(type(other).__name__), "layers with integer weights"
        remedy = "leave this part of the model as it was"
        yield Problem(
            module=path, field="module", value=found, expected=expected, sentence=sentence, remedy=remedy
        )


def _no_grid(path: str, field: str, label: str) -> Problem:
    sentence = f"GGUF holds no grids of activations, and {field} is on one ({label})"
    remedy = "quantize weights only"
    return Problem(
        module=path, field=field, value=Found(label), expected="float", sentence=sentence, remedy=remedy
    )


def _unknown(name: str, architecture: Architecture) -> Problem:
    sentence = f"llama.cpp's {architecture.name} has no such tensor"
    expected, remedy = "the tensors of a causal language model", "export the model by CompressedTensors()"
    return Problem(
        module=name, field="tensor", value=Found(name), expected=expected, sentence=sentence, remedy=remedy
    )


def _tensors(source: Source) -> dict[str, QuantizedWeight | Tensor]:
    """Return all tensors by their names in the state dict of the float model, those with two names twice."""
    named: dict[str, QuantizedWeight | Tensor] = dict(source.floats)
    for weight in source.weights.values():
        named[weight.name] = weight
        if weight.bias is not None:
            named[f"{weight.path}.bias"] = weight.bias
    return named | {name: named[first] for name, first in source.aliases.items() if first in named}


def _same(one: QuantizedWeight | Tensor | None, other: QuantizedWeight | Tensor | None) -> bool:
    if isinstance(one, QuantizedWeight) and isinstance(other, QuantizedWeight):
        return one.packed is other.packed
    return one is other


def _float_bytes(tensor: Tensor, order: Tensor | None, dtype: torch.dtype) -> bytes:
    held = tensor.detach().to(dtype)
    return tensor_bytes(held if order is None else held[order])
