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

Source: TypeAlias = ChannelScale | FloatLayer


@attrs.frozen(eq=False, kw_only=True)
class Reader:
    """A layer that reads the channels of a source: `channels` (input features,) has the number of each."""

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

    Without a source, a multiplication is to be put in front of the one reader, which has the same path.
    """

    path: str
    source: Source | None
    readers: tuple[Reader, ...]

    @property
    def module(self) -> nn.Module:
        """The module that takes the scales, or behind a multiplication that does."""
        if self.source is None:
            return self.readers[0].layer
        return self.source.module if isinstance(self.source, ChannelScale) else self.source

    @property
    def channels(self) -> int:
        """The number of channels that have a scale each."""
        if self.source is None:
            return len(self.readers[0].channels)
        return self.source.channels if isinstance(self.source, ChannelScale) else shape(self.source)[0]


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

    def source(self, path: str) -> Source | None:
        """Return the module at `path` if it can take scales."""
        if path in self.reasons:
            return None
        layer = self.layers.get(path)
        return self.scales.get(path) if layer is None or isinstance(layer, IntegerLayer) else layer

    def reader(self, path: str) -> FloatLayer | None:
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
    """The pairs of a model, the sources in no pair with the reason, and what was called to find them."""

    pairs: tuple[Pair, ...]
    left: Mapping[str, str]
    called: frozenset[str] | None


def with_multiplications(found: FoundPairs, candidates: Candidates) -> FoundPairs:
    """Return `found` with a pair without source for each layer that is no reader of another one."""
    read = {reader.path for pair in found.pairs for reader in pair.readers}
    more = []
    for path in candidates.layers:
        layer = candidates.reader(path)
        called = found.called is None or path in found.called or not path  # the root always is
        if layer is not None and path not in read and called:
            channels = torch.arange(shape(layer)[1], device=layer.weight.device)
            reader = Reader(path=path, layer=layer, channels=channels)
            more.append(Pair(path=path, source=None, readers=(reader,)))
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
        layer = self._candidates.reader(path)
        if channels is not None and layer is not None:
            numbers = _columns(layer, channels.numbers)
            observed = _Observed(channels.source, numbers)
        if observed.channels is None:
            self.flow.end(x, f"its output is read by {path}")
        self._readings.setdefault(path, []).append(observed)

    def leave(self, path: str, args: object, output: object) -> None:
        """Follow the output of the module at `path`, if it can take scales."""
        source = self._candidates.source(path)
        if source is not None and self.flow.paused == 1 and isinstance(output, Tensor):
            axis = source.axis if isinstance(source, ChannelScale) else feature_axis(source)
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
            readers, reason = self._readers_of(path)
            source = self._candidates.source(path)
            if reason is None and source is not None:
                pairs.append(Pair(path=path, source=source, readers=readers))
            else:
                left[path] = reason or "it cannot take scales"
        return FoundPairs(pairs=tuple(pairs), left=left, called=frozenset(self._readings))

    def _readers_of(self, path: str) -> tuple[tuple[Reader, ...], str | None]:
        """Return the layers that read the module at `path`, or the reason why they cannot undo its scales."""
        if path not in self._readings:
            return (), "the example does not reach it"
        if path in self.flow.also_read:
            return (), f"its weight is read by {self.flow.also_read[path]} as well"
        if path in self.flow.broken:
            return (), self.flow.broken[path]
        readers: list[Reader] = []
        for reader_path, readings in self._readings.items():
            if any(reading.source == path for reading in readings):
                layer, channels = self._candidates.reader(reader_path), readings[0].channels
                if layer is None or channels is None or not _agree(readings):
                    return (), f"its reader {reader_path} reads something else as well"
                if reader_path in self.flow.also_read:
                    return (), f"the weight of its reader {reader_path} is used elsewhere as well"
                readers.append(Reader(path=reader_path, layer=layer, channels=channels))
        return tuple(readers), None if readers else "no layer reads its output"


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
