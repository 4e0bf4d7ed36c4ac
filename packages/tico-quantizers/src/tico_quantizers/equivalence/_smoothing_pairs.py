"""Pairs for smoothing: what gives a tensor, and the layers that read it and nothing else does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import attrs
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tico_modules import find_tied_paths, named_modules, parameter
from tico_quantizers.calibration import after_call, before_call
from tico_quantizers.equivalence._channel_flow import ChannelFlow, Channels
from tico_quantizers.equivalence._channel_scale import ChannelScale, as_channel_scale
from tico_quantizers.layers import (
    FloatLayer,
    IntegerLayer,
    Layer,
    columns,
    feature_axis,
    groups,
    input_tensor,
    layers_in,
    reasons_against,
    shape,
)

Producer: TypeAlias = ChannelScale | FloatLayer


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
class Pair:
    """A module whose output channels can be scaled, and the layers that have to undo it.

    Without a producer, a multiplication is to be put in front of the one consumer, which has the same path.
    """

    path: str
    producer: Producer | None
    consumers: tuple[Consumer, ...]

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
    """The modules of a model that may be in a pair, and for those that cannot be the reason."""

    layers: Mapping[str, Layer]
    scales: Mapping[str, ChannelScale]
    reasons: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> Candidates:
        """Look at every module."""
        layers = layers_in(model)
        reasons = reasons_against(model, layers)
        reasons |= {path: why for path, layer in layers.items() if (why := reason_against_scaling(layer))}
        scales = {
            path: scale
            for path, module in named_modules(model)
            if path not in layers and (scale := as_channel_scale(module)) is not None
        }
        tied = find_tied_paths(model)
        reasons |= {path: f"its weight is tied to {tied[path]}" for path in scales if path in tied}
        return cls(layers=layers, scales=scales, reasons=reasons)

    def producer(self, path: str) -> Producer | None:
        """Return the module at `path` if it can take scales."""
        if path in self.reasons:
            return None
        layer = self.layers.get(path)
        return self.scales.get(path) if layer is None or isinstance(layer, IntegerLayer) else layer

    def consumer(self, path: str) -> FloatLayer | None:
        """Return the layer at `path` if its columns can be scaled."""
        layer = self.layers.get(path)
        return None if path in self.reasons or isinstance(layer, IntegerLayer) else layer

    def atoms(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield every module here with its path."""
        yield from self.layers.items()
        for path, scale in self.scales.items():
            yield path, scale.module


def reason_against_scaling(layer: Layer) -> str | None:
    """Return why neither rows nor columns of `layer` can take scales, or None."""
    if isinstance(layer, IntegerLayer):
        return "its weight is quantized already"
    count = groups(layer)
    return f"convolutions with groups={count} are left alone" if count > 1 else None


@attrs.frozen(eq=False, kw_only=True)
class FoundPairs:
    """The pairs of a model, the producers in no pair with the reason, and what was called to find them."""

    pairs: tuple[Pair, ...]
    left: Mapping[str, str]
    called: frozenset[str] | None

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules of all pairs, by path."""
        consumers = {consumer.path: consumer.layer for pair in self.pairs for consumer in pair.consumers}
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


def with_multiplications(found: FoundPairs, candidates: Candidates) -> FoundPairs:
    """Return `found` with a pair without producer for each layer that is no consumer of another one."""
    read = {consumer.path for pair in found.pairs for consumer in pair.consumers}
    more = []
    for path in candidates.layers:
        layer = candidates.consumer(path)
        called = found.called is None or path in found.called or not path  # the root always is
        if layer is not None and path not in read and called:
            channels = torch.arange(shape(layer)[1], device=layer.weight.device)
            consumer = Consumer(path=path, layer=layer, channels=channels)
            more.append(Pair(path=path, producer=None, consumers=(consumer,)))
    return attrs.evolve(found, pairs=(*found.pairs, *more))


def find_pairs(model: nn.Module, candidates: Candidates, run: Callable[[], object]) -> FoundPairs:
    """Return the pairs that show in `run`, a forward pass of `model`."""
    trace = _Trace(candidates)
    with trace.hooks(), trace.flow:
        output = run()
    trace.flow.end(_plain(output), "its output is an output of the model")
    return trace.found()


def _plain(output: object) -> object:
    """Return the output of a model as tuples, also that of a data class."""
    is_object = dataclasses.is_dataclass(output) and not isinstance(output, Mapping)
    return tuple(vars(output).values()) if is_object else output


@attrs.define(eq=False)
class _Observed:
    """What a layer has read in all of its calls: the channels of one source, or something else as well."""

    source: str | None
    channels: Tensor | None


class _Trace:
    """One pass, with what every layer reads in it."""

    def __init__(self, candidates: Candidates) -> None:
        guarded = {
            path: weight
            for path, module in candidates.atoms()
            if (weight := parameter(module, "weight")) is not None
        }
        self.flow = ChannelFlow(guarded)
        self._candidates = candidates
        self._readings: dict[str, list[_Observed]] = {}

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch the calls of every layer and channel scale inside the block."""
        handles: list[RemovableHandle] = []
        try:
            for path, module in self._candidates.atoms():
                # Behind the user's own hooks: what counts is what the layer reads and gives in the end.
                handles.append(before_call(module, partial(self.enter, path)))
                handles.append(after_call(module, partial(self.leave, path)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, path: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Note what the module at `path` is called with, and do not look inside."""
        self.flow.paused += 1
        x = input_tensor(path, args, kwargs)
        channels = self.flow.channels_of(x) if self.flow.paused == 1 else None
        observed = _Observed(None, None)
        layer = self._candidates.consumer(path)
        if channels is not None and layer is not None:
            numbers = _columns(layer, channels.numbers)
            observed = _Observed(channels.source, numbers)
        if observed.channels is None:
            self.flow.end(x, f"its output is read by {path}")
        self._readings.setdefault(path, []).append(observed)

    def leave(self, path: str, args: object, kwargs: object, output: object) -> None:
        """Follow the output of the module at `path`, if it can take scales."""
        producer = self._candidates.producer(path)
        if producer is not None and self.flow.paused == 1 and isinstance(output, Tensor):
            axis = producer.axis if isinstance(producer, ChannelScale) else feature_axis(producer)
            numbers = torch.arange(output.shape[axis], dtype=torch.int32, device=output.device)
            along = [1] * output.ndim
            along[axis] = -1
            self.flow.begin(output, Channels(path, numbers.view(along).expand(output.shape)))
        self.flow.paused -= 1

    def found(self) -> FoundPairs:
        """Return the pairs."""
        pairs: list[Pair] = []
        left: dict[str, str] = dict(self._candidates.reasons)
        for path, _ in self._candidates.atoms():
            if path in left:
                continue
            consumers, reason = self._consumers_of(path)
            producer = self._candidates.producer(path)
            if reason is None and producer is not None:
                pairs.append(Pair(path=path, producer=producer, consumers=consumers))
            else:
                left[path] = reason or "it cannot take scales"
        return FoundPairs(pairs=tuple(pairs), left=left, called=frozenset(self._readings))

    def _consumers_of(self, path: str) -> tuple[tuple[Consumer, ...], str | None]:
        """Return the layers that read the module at `path`, or the reason why they cannot undo its scales."""
        if path not in self._readings:
            return (), "the example does not reach it"
        if path in self.flow.also_read:
            return (), f"its weight is read by {self.flow.also_read[path]} as well"
        if path in self.flow.broken:
            return (), self.flow.broken[path]
        consumers: list[Consumer] = []
        for consumer_path, readings in self._readings.items():
            if any(reading.source == path for reading in readings):
                layer, channels = self._candidates.consumer(consumer_path), readings[0].channels
                if layer is None or channels is None or not _agree(readings):
                    return (), f"its consumer {consumer_path} reads something else as well"
                if consumer_path in self.flow.also_read:
                    return (), f"the weight of its consumer {consumer_path} is used elsewhere as well"
                consumers.append(Consumer(path=consumer_path, layer=layer, channels=channels))
        return tuple(consumers), None if consumers else "no layer reads its output"


def _agree(readings: list[_Observed]) -> bool:
    first = readings[0]
    return all(
        other.source == first.source
        and other.channels is not None
        and first.channels is not None
        and torch.equal(other.channels, first.channels)
        for other in readings
    )


def _columns(layer: FloatLayer, numbers: Tensor) -> Tensor | None:
    """Return the channel of each input feature of `layer`, or None where it is not the same in every row."""
    rows = numbers.movedim(feature_axis(layer), -1)
    rows = rows.reshape(-1, rows.shape[-1])
    if not len(rows):
        return None
    return rows[0].to(torch.int64) if bool((rows == rows[0]).all()) else None
