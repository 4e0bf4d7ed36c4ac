"""Pairs for smoothing: what gives a tensor, and the layers that read it and nothing else does."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias

import attrs
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tico_modules import child_path, find_tied_paths, named_modules
from tico_quantizers.equivalence._channel_scale import ChannelScale, as_channel_scale
from tico_quantizers.layers import (
    ExpertLinear,
    FloatLayer,
    IntegerLayer,
    Layer,
    columns,
    groups,
    layers_in,
    peers_of,
    reasons_against,
    shape,
    weight_axes,
)

Producer: TypeAlias = ChannelScale | FloatLayer
NO_RANGE = "it is a norm, and no batch norm behind a layer whose weight it multiplies"


@attrs.frozen(eq=False, kw_only=True)
class Consumer:
    """A layer that reads the channels of a producer: `channels` (input features,) has the number of each."""

    path: str
    layer: FloatLayer
    channels: Tensor

    @property
    def columns(self) -> Tensor:
        """The number of the channel that each column of the layer's matrix multiplies."""
        return self.channels.repeat_interleave(columns(self.layer) // len(self.channels))


@attrs.frozen(eq=False, kw_only=True)
class Matrix:
    """The parameter `name` (outputs, inputs) of a `module` that is no layer, such as a router."""

    path: str
    module: nn.Module
    name: str


@attrs.frozen(eq=False, kw_only=True)
class MatrixReader:
    """A `matrix` that reads the channels of a producer: `channels` (inputs,) has the number of each."""

    matrix: Matrix
    channels: Tensor


@attrs.frozen(eq=False, kw_only=True)
class Pair:
    """A module whose output channels can be scaled, and the layers that have to undo it.

    Without a producer, a multiplication is to be put in front of the one consumer, which has the same path.
    Matrices that read the channels, too, have to undo the scales, but say nothing of how large they are.
    `scaled` is the layer whose channels the producer, a norm, reads one to one, where there is one.
    """

    path: str
    producer: Producer | None
    consumers: tuple[Consumer, ...]
    matrices: tuple[MatrixReader, ...] = ()
    scaled: FloatLayer | None = None

    @property
    def readers(self) -> list[str]:
        """The paths of all that undo the scales, with one for all experts in a parameter."""
        stacks = ((each.path, _stack_of(each)) for each in self.consumers)
        paths = (path if stack is None else child_path(*stack) for path, stack in stacks)
        return list(dict.fromkeys([*paths, *(each.matrix.path for each in self.matrices)]))

    def reader_notes(self) -> dict[str, str]:
        """Return what there is to say of each module that undoes scales of another one, by path."""
        notes: dict[str, str] = {}
        if self.producer is None:
            return notes
        for consumer in self.consumers:
            stack = _stack_of(consumer)
            home, what = (consumer.path, "columns") if stack is None else (stack[0], f"columns of {stack[1]}")
            notes[home] = f"{what} multiplied for {self.path}"
        for reader in self.matrices:
            notes[reader.matrix.path] = f"columns of {reader.matrix.name} multiplied for {self.path}"
        return notes

    @property
    def module(self) -> nn.Module:
        """The module that takes the scales, or behind a multiplication that does."""
        if self.producer is None:
            return self.consumers[0].layer
        return self.producer.module if isinstance(self.producer, ChannelScale) else self.producer

    @property
    def channels(self) -> int:
        """The number of channels that have a scale each."""
        if self.producer is None:
            return len(self.consumers[0].channels)
        return self.producer.channels if isinstance(self.producer, ChannelScale) else shape(self.producer)[0]


@attrs.frozen(eq=False, kw_only=True)
class Candidates:
    """The modules of a model that may be in a pair, and for those that cannot be the reason.

    `matrices` are parameters that may undo scales, by path and name. `peers` is what `peers_of` says of the
    model. Pairs `of_weights` are those of two weights with ranges: convolutions with groups of channels have
    one, norms none, but for batch norms behind a layer, whose weights they multiply.
    """

    layers: Mapping[str, Layer]
    scales: Mapping[str, ChannelScale]
    reasons: Mapping[str, str]
    peers: Mapping[str, str] = attrs.field(factory=dict)
    matrices: Mapping[str, Matrix] = attrs.field(factory=dict)
    of_weights: bool = False

    @classmethod
    def of(cls, model: nn.Module, *, of_weights: bool = False) -> Candidates:
        """Look at every module."""
        layers = layers_in(model)
        reasons = reasons_against(model, layers)
        found = (
            (path, reason_against_scaling(layer, of_weights=of_weights)) for path, layer in layers.items()
        )
        reasons |= {path: why for path, why in found if why is not None}
        scales = {
            path: scale
            for path, module in named_modules(model)
            if path not in layers and (scale := as_channel_scale(module)) is not None
        }
        tied = find_tied_paths(model)
        reasons |= {path: f"its weight is tied to {tied[path]}" for path in scales if path in tied}
        if of_weights:
            reasons |= {path: NO_RANGE for path, scale in scales.items() if not scale.is_fixed}
        return cls(
            layers=layers,
            scales=scales,
            reasons=reasons,
            peers=peers_of(model),
            matrices=_matrices_in(model, {*layers, *scales}),
            of_weights=of_weights,
        )

    def producer(self, path: str) -> Producer | None:
        """Return the module at `path` if it can take scales."""
        if path in self.reasons:
            return None
        layer = self.layers.get(path)
        if layer is None or isinstance(layer, IntegerLayer):
            return self.scales.get(path)
        return None if isinstance(layer, ExpertLinear) else layer

    def consumer(self, path: str) -> FloatLayer | None:
        """Return the layer at `path` if its columns can be scaled."""
        layer = self.layers.get(path)
        return None if path in self.reasons or isinstance(layer, IntegerLayer) else layer

    def in_order(self, paths: Collection[str]) -> list[str]:
        """Return `paths` in the order of the modules here."""
        return [path for path, _ in self.atoms() if path in paths] if len(paths) > 1 else list(paths)

    def atoms(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield every module here with its path."""
        yield from self.layers.items()
        for path, scale in self.scales.items():
            yield path, scale.module


def _matrices_in(model: nn.Module, atoms: Collection[str]) -> dict[str, Matrix]:
    """Return the parameters of two axes that belong to one module, which is none of `atoms`."""
    owners: dict[int, list[Matrix]] = {}
    for path, module in named_modules(model):
        held: dict[str, nn.Parameter | None] = {} if path in atoms else module._parameters
        given = {name: own for name, own in held.items() if own is not None and not is_lazy(own)}
        for name, own in given.items():
            if own.ndim == 2 and own.is_floating_point():
                owners.setdefault(id(own), []).append(Matrix(path=path, module=module, name=name))
    alone = (found[0] for found in owners.values() if len(found) == 1)
    return {f"{each.path}.{each.name}": each for each in alone}


def reason_against_scaling(layer: Layer, *, of_weights: bool = False) -> str | None:
    """Return why neither rows nor columns of `layer` can take scales, or None; see `Candidates`."""
    if isinstance(layer, IntegerLayer):
        return "its weight is quantized already"
    count = groups(layer)
    if of_weights and weight_axes(layer) == (0, 1):
        return None
    return f"convolutions with groups={count} are left alone" if count > 1 else None


@attrs.frozen(eq=False, kw_only=True)
class FoundPairs:
    """The pairs of a model, and the producers in no pair with the reason.

    `called` are the layers and channel scales that were called when the pairs were found. `adopted` are
    layers of pairs that were not: experts that read what their peers have read.
    """

    pairs: tuple[Pair, ...]
    left: Mapping[str, str]
    called: frozenset[str]
    adopted: frozenset[str] = frozenset()

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """The layers of all pairs that undo scales."""
        return tuple(consumer for pair in self.pairs for consumer in pair.consumers)

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules of all pairs, by path."""
        consumers = {consumer.path: consumer.layer for consumer in self.consumers}
        return {pair.path: pair.module for pair in self.pairs} | consumers

    def without(self, reasons: Mapping[str, str]) -> FoundPairs:
        """Return the pairs all of whose consumers are none of the paths of `reasons`."""
        gone = {
            pair.path: f"{consumer.path}: {reasons[consumer.path]}"
            for pair in self.pairs
            for consumer in pair.consumers
            if consumer.path in reasons
        }
        pairs = tuple(pair for pair in self.pairs if pair.path not in gone)
        return attrs.evolve(self, pairs=pairs, left={**self.left, **gone})


def _stack_of(consumer: Consumer) -> tuple[str, str] | None:
    """Return path and name of the parameter that holds the weight of an expert, None for other layers."""
    if not isinstance(consumer.layer, ExpertLinear):
        return None
    path = consumer.path.rpartition(".")[0]
    home, _, name = path.rpartition(".")
    return home, name


def alone(path: str, layer: FloatLayer) -> Pair:
    """Return the pair of a layer with a multiplication in front of it."""
    channels = torch.arange(shape(layer)[1], device=layer.weight.device)
    return Pair(path=path, producer=None, consumers=(Consumer(path=path, layer=layer, channels=channels),))


def with_multiplications(found: FoundPairs, candidates: Candidates) -> FoundPairs:
    """Return `found` with a pair without producer for each layer that is no consumer of another one."""
    read = {consumer.path for consumer in found.consumers}
    more = [
        alone(path, layer)
        for path in candidates.layers
        # The root is called whenever the model is.
        if path not in read and (path in found.called or not path)
        if (layer := candidates.consumer(path)) is not None and not isinstance(layer, ExpertLinear)
    ]
    return attrs.evolve(found, pairs=(*found.pairs, *more))
