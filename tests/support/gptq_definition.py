"""GPTQ of a model by its definition: whole passes for every block, after those before it are quantized."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import nn

from tico_config import GPTQConfig
from tico_modules import Edit, PackedWeight
from tico_quantizers import QuantizedModule, find_blocks
from tico_quantizers.algorithms.gptq._layer import ReadInput, solve_layers
from tico_quantizers.calibration import GroupedGram
from tico_quantizers.layers import (
    Layer,
    columns,
    groups,
    homes_in,
    input_rows,
    input_tensor,
    plan_layers,
    with_weight,
)

CONFIG = GPTQConfig(bits=2, show_progress=False, token_weights="uniform", min_expert_tokens=0)
Batch: TypeAlias = Mapping[str, object]


def run(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Run the model on each of `batches`, keyword arguments that it may change."""
    with torch.no_grad():
        for batch in batches:
            model(**copy.deepcopy(dict(batch)))


def by_definition(
    model: nn.Module, batches: Sequence[Batch], order: Sequence[str], config: GPTQConfig = CONFIG
) -> dict[str, PackedWeight]:
    """Return the weight of each layer that the data reach, given the `order` of the blocks in a pass.

    Layers outside of blocks are quantized for what they read in the float model.
    """
    model = copy.deepcopy(model)
    plan = plan_layers(model, config)
    blocks = dict(find_blocks(model, plan.layers.values()))
    assert set(order) == set(blocks)
    homes = homes_in(list(blocks.values()))
    paths = [None, *map(list(blocks).index, order)]
    found: dict[str, PackedWeight] = {}
    for number in paths:
        layers = {path: layer for path, layer in plan.layers.items() if homes.get(id(layer)) == number}
        for path, gram in _grams(model, layers, batches).items():
            found[path] = solve_layers([plan.targets[path]], ReadInput(gram))[0].packed
            if number is not None:
                with Edit() as edit:
                    edit.replace(model, layers[path], with_weight(layers[path], found[path]))
    return found


def _grams(model: nn.Module, layers: Mapping[str, Layer], batches: Sequence[Batch]) -> dict[str, GroupedGram]:
    grams = {
        path: GroupedGram.empty(groups=groups(each), columns=columns(each)) for path, each in layers.items()
    }

    def note(path: str, layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        for rows in input_rows(layers[path], input_tensor(path, args, kwargs).detach().clone()):
            grams[path] = grams[path].observe(rows)

    handles = [
        layer.register_forward_pre_hook(partial(note, path), with_kwargs=True)
        for path, layer in layers.items()
    ]
    run(model, batches)
    for handle in handles:
        handle.remove()
    return {path: gram for path, gram in grams.items() if gram.rows}


def codes_that_differ(model: nn.Module, expected: Mapping[str, PackedWeight]) -> list[str]:
    """Return the paths whose integer layers do not hold the `expected` weights, bit for bit."""
    return [path for path, weight in expected.items() if not _same(model.get_submodule(path), weight)]


def _same(layer: nn.Module, weight: PackedWeight) -> bool:
    return isinstance(layer, QuantizedModule) and torch.equal(layer.dequantize(), weight.dequantize())
