"""What passes of a model show of the ways that channels take, and the pairs that follow from it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Final, TypeAlias, TypeVar

import attrs
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from tico_modules import own_tensor
from tico_quantizers.calibration import after_call, before_call
from tico_quantizers.equivalence._channel_flow import ChannelFlow, Channels, FollowedTensors
from tico_quantizers.equivalence._channel_scale import ChannelScale
from tico_quantizers.equivalence._smoothing_pairs import (
    NO_RANGE,
    Candidates,
    Consumer,
    FoundPairs,
    MatrixReader,
    Pair,
    Producer,
)
from tico_quantizers.layers import FloatLayer, feature_axis, input_tensor, shape

R = TypeVar("R")


@attrs.frozen(eq=False)
class Reading:
    """What a layer has read in a call: all channels of one source, or something else."""

    source: str | None = None
    channels: Tensor | None = None

    def is_like(self, other: Reading) -> bool:
        """Return whether both are the same channels of the same source."""
        if self.source != other.source or self.channels is None or other.channels is None:
            return self.source == other.source and self.channels is other.channels
        return torch.equal(self.channels, other.channels)


Readings: TypeAlias = tuple[Reading, ...]


@attrs.frozen(eq=False, kw_only=True, slots=False)
class Passages:
    """What any number of passes have shown; merging does not depend on their order.

    `broken` has the modules whose output something reads that cannot undo scales, and `also_read` those whose
    weight something else reads, each with who does. `readings` has the different ones of each module called,
    `multiplied` those of matrices.
    """

    broken: Mapping[str, str] = attrs.field(factory=dict)
    also_read: Mapping[str, str] = attrs.field(factory=dict)
    readings: Mapping[str, Readings] = attrs.field(factory=dict)
    multiplied: Mapping[str, Readings] = attrs.field(factory=dict)

    def merge(self, other: Passages) -> Self:
        """Return what the passes of both have shown."""
        return attrs.evolve(
            self,
            broken=_first(self.broken, other.broken),
            also_read=_first(self.also_read, other.also_read),
            readings=_all(self.readings, other.readings),
            multiplied=_all(self.multiplied, other.multiplied),
        )

    def pairs(self, candidates: Candidates) -> FoundPairs:
        """Return the pairs, in the order of the model."""
        pairs: list[Pair] = []
        left: dict[str, str] = dict(candidates.reasons)
        for path, _ in candidates.atoms():
            if path in left:
                continue
            found_pair = self._pair_of(path, candidates)
            if isinstance(found_pair, Pair):
                pairs.append(found_pair)
            else:
                left[path] = found_pair
        found = FoundPairs(pairs=tuple(pairs), left=left, called=frozenset(self.readings))
        return with_unread_layers(found, candidates, self)

    def is_used(self, path: str) -> bool:
        """Return whether the module at `path` was called, or its weight was read without a call."""
        return path in self.readings or path in self.also_read

    def reason_against(self, pair: Pair, candidates: Candidates) -> str | None:
        """Return what does not fit `pair`, or None where the passes show nothing but what it says."""
        shown = self._pair_of(pair.path, candidates)
        if isinstance(shown, str):
            return shown
        if shown.matrices:
            return f"its output is read by {shown.matrices[0].matrix.path}, which is no layer"
        consumers = shown.consumers
        named = {consumer.path: consumer.channels for consumer in pair.consumers}
        found = {consumer.path: consumer.channels for consumer in consumers}
        if not found.keys() <= named.keys():
            return f"its output is read by {', '.join(found)}"
        moved = [path for path in found if not torch.equal(found[path], named[path])]
        return f"{moved[0]} does not read its channels one to one" if moved else None

    def _pair_of(self, path: str, candidates: Candidates) -> Pair | str:
        """Return the pair of the module at `path`, or the reason why nothing can undo its scales."""
        if path not in self.readings:
            return "no data reached it"
        if path in self.also_read:
            return f"its weight is read by {self.also_read[path]} as well"
        if path in self.broken:
            return self.broken[path]
        producer = candidates.producer(path)
        readers = candidates.in_order(self._readers.get(path, ()))
        consumers = [self._consumer(other, candidates) for other in readers]
        matrices = [
            self._matrix_reader(other, candidates) for other in sorted(self._multipliers.get(path, ()))
        ]
        against = next((each for each in (*consumers, *matrices) if isinstance(each, str)), None)
        if against is not None or producer is None or not consumers:
            return against or ("it cannot take scales" if consumers else "no layer reads its output")
        scaled = self._scaled(path, producer, candidates)
        if candidates.of_weights and isinstance(producer, ChannelScale) and scaled is None:
            return NO_RANGE
        return Pair(
            path=path,
            producer=producer,
            consumers=tuple(each for each in consumers if isinstance(each, Consumer)),
            matrices=tuple(each for each in matrices if isinstance(each, MatrixReader)),
            scaled=scaled,
        )

    def _scaled(self, path: str, producer: Producer, candidates: Candidates) -> FloatLayer | None:
        """Return the layer whose channels a norm, and no other module, reads one to one in every call."""
        first, *others = self.readings[path]
        if not isinstance(producer, ChannelScale) or others or first.channels is None or first.source is None:
            return None
        found, ordered = candidates.producer(first.source), torch.arange(len(first.channels))
        is_whole = torch.equal(first.channels.cpu(), ordered) and self._readers[first.source] == [path]
        return found if is_whole and not isinstance(found, ChannelScale) else None

    @cached_property
    def _readers(self) -> dict[str, list[str]]:
        """The modules that read each source."""
        return _by_source(self.readings)

    @cached_property
    def _multipliers(self) -> dict[str, list[str]]:
        return _by_source(self.multiplied)

    def _consumer(self, path: str, candidates: Candidates) -> Consumer | str:
        layer, readings = candidates.consumer(path), self.readings[path]
        if layer is None or readings[0].channels is None or len(readings) > 1:
            return f"its consumer {path} reads something else as well"
        if path in self.also_read:
            return f"the weight of its consumer {path} is used elsewhere as well"
        return Consumer(path=path, layer=layer, channels=readings[0].channels)

    def _matrix_reader(self, path: str, candidates: Candidates) -> MatrixReader | str:
        matrix, readings = candidates.matrices[path], self.multiplied[path]
        if readings[0].channels is None or len(readings) > 1:
            return f"its output is read by {path}, which reads something else as well"
        if path in self.also_read:
            return f"its output is read by {path}, which {self.also_read[path]} reads as well"
        return MatrixReader(matrix=matrix, channels=readings[0].channels)


def _by_source(readings: Mapping[str, Readings]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, each in readings.items():
        for source in dict.fromkeys(reading.source for reading in each if reading.source is not None):
            found.setdefault(source, []).append(path)
    return found


def _all(one: Mapping[str, Readings], other: Mapping[str, Readings]) -> dict[str, Readings]:
    paths = dict.fromkeys([*one, *other])
    return {path: distinct((*one.get(path, ()), *other.get(path, ()))) for path in paths}


def with_unread_layers(found: FoundPairs, candidates: Candidates, passages: Passages) -> FoundPairs:
    """Return `found` without pairs in which a module may take part that no pass has called.

    Such a module, below the one that holds a whole pair, may read its producer, too: what it reads is not
    known. An expert whose peers have read the producer reads it as they do, and becomes a consumer; one whose
    peers have read something else reads that.
    """
    unread = [
        path
        for path, _ in candidates.atoms()
        if path and path not in candidates.reasons and not passages.is_used(path)
    ]
    peers = candidates.peers
    used_places = {peers[path] for path in passages.readings if path in peers}
    pairs, left, adopted = [], dict(found.left), set(found.adopted)
    for pair in found.pairs:
        parent = common_parent([pair.path, *(each.path for each in pair.consumers)])
        inside = [path for path in unread if is_below(path, parent)]
        alike = _like_peers(inside, pair, candidates)
        strangers = [
            path for path in inside if path not in alike and candidates.peers.get(path) not in used_places
        ]
        if strangers:
            left[pair.path] = f"{strangers[0]}, which no data reached, may read it as well"
        else:
            pairs.append(attrs.evolve(pair, consumers=(*pair.consumers, *alike.values())))
            adopted |= alike.keys()
    return attrs.evolve(found, pairs=tuple(pairs), left=left, adopted=frozenset(adopted))


def _like_peers(paths: list[str], pair: Pair, candidates: Candidates) -> dict[str, Consumer]:
    """Return those of `paths` that stand in a list beside consumers of `pair`, as consumers like them."""
    peers = {
        place: consumer
        for consumer in pair.consumers
        if (place := candidates.peers.get(consumer.path)) is not None
    }
    found: dict[str, Consumer] = {}
    for path in paths:
        peer, layer = peers.get(candidates.peers.get(path, "")), candidates.consumer(path)
        if peer is not None and layer is not None and shape(layer)[1] == len(peer.channels):
            found[path] = attrs.evolve(peer, path=path, layer=layer)
    return found


def common_parent(paths: Iterable[str]) -> list[str]:
    """Return the path, in parts, of the nearest module that holds all modules at `paths`."""
    parents = [path.split(".")[:-1] for path in paths]
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parents, strict=False))
    return [names[0] for names in shared]


def is_below(path: str, parent: list[str]) -> bool:
    """Return whether a module is inside of the one at `parent`, a path in parts."""
    return path.split(".")[: len(parent)] == parent


def distinct(readings: Readings) -> Readings:
    """Return each of `readings` once."""
    kept: list[Reading] = []
    for reading in readings:
        if not any(reading.is_like(other) for other in kept):
            kept.append(reading)
    return tuple(kept)


def _first(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """Return both, with the reason that comes first in the alphabet where they differ."""
    return {path: min(filter(None, (one.get(path), other.get(path)))) for path in {**one, **other}}


def find_pairs(model: nn.Module, candidates: Candidates, run: Callable[[], object]) -> FoundPairs:
    """Return the pairs that show in `run`, a forward pass of `model`."""
    trace = Trace(candidates)
    trace.follow(run)
    return trace.passages().pairs(candidates)


def plain(output: object) -> object:
    """Return the output of a model as tuples, also that of a data class."""
    is_object = dataclasses.is_dataclass(output) and not isinstance(output, Mapping)
    return tuple(vars(output).values()) if is_object else output


class Trace:
    """One pass, with what every layer reads in it; `tensors` are those that earlier passes have left."""

    def __init__(self, candidates: Candidates, tensors: FollowedTensors | None = None) -> None:
        guarded = {
            path: weight
            for path, module in candidates.atoms()
            if (weight := own_tensor(module, "weight")) is not None
        }
        matrices = {
            path: weight
            for path, each in candidates.matrices.items()
            if (weight := own_tensor(each.module, each.name)) is not None
        }
        self.flow = ChannelFlow(guarded, tensors, matrices)
        self._candidates = candidates
        self._readings: dict[str, list[Reading]] = {}

    def follow(self, run: Callable[[], R]) -> R:
        """Return what `run`, a forward pass, gives, and note the ways that channels take in it."""
        with self._hooks(), self.flow:
            output = run()
        self.flow.end(plain(output), "its output is an output of the model")
        return output

    def passages(self) -> Passages:
        """Return what has shown."""
        readings = {path: distinct(tuple(each)) for path, each in self._readings.items()}
        multiplied = {
            path: distinct(tuple(map(reading_of_rows, each))) for path, each in self.flow.multiplied.items()
        }
        flow = self.flow
        return Passages(
            broken=flow.broken, also_read=flow.also_read, readings=readings, multiplied=multiplied
        )

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """Watch the calls of every layer and channel scale inside the block."""
        handles: list[RemovableHandle] = []
        try:
            for path, module in self._candidates.atoms():
                # Behind the user's own hooks: what counts is what the layer reads and gives in the end.
                handles.append(before_call(module, partial(self._enter, path), WATCHING))
                handles.append(after_call(module, partial(self._leave, path), WATCHING))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Note what the module at `path` is called with, and do not look inside."""
        self.flow.paused += 1
        x = input_tensor(path, args, kwargs)
        channels = self.flow.channels_of(x) if self.flow.paused == 1 else None
        reading = Reading()
        layer, norm = self._candidates.consumer(path), self._candidates.scales.get(path)
        axis = None if norm is None else norm.axis
        axis = axis if layer is None else feature_axis(layer)
        if channels is not None and axis is not None:
            reading = Reading(channels.source, columns_read(channels.numbers, axis))
        if layer is None or reading.channels is None:
            self.flow.end(x, f"its output is read by {path}")
        self._readings.setdefault(path, []).append(reading)

    def _leave(self, path: str, args: object, kwargs: object, output: object) -> None:
        """Follow the output of the module at `path`, if it can take scales."""
        producer = self._candidates.producer(path)
        if producer is not None and self.flow.paused == 1 and isinstance(output, Tensor):
            axis = producer.axis if isinstance(producer, ChannelScale) else feature_axis(producer)
            numbers = torch.arange(output.shape[axis], dtype=torch.int32, device=output.device)
            along = [1] * output.ndim
            along[axis] = -1
            self.flow.begin(output, Channels(path, numbers.view(along).expand(output.shape)))
        self.flow.paused -= 1


@attrs.frozen
class _Watching:
    """Says that calls count, so that experts in one parameter show what each of them reads."""

    watching: bool = True


WATCHING: Final = _Watching()
"""For hooks that watch one pass."""


def reading_of_rows(channels: Channels | None) -> Reading:
    """Return the reading of what reads the last axis of a tensor."""
    columns = None if channels is None else common_row(channels.numbers)
    return Reading() if channels is None else Reading(channels.source, columns)


def columns_read(numbers: Tensor, axis: int) -> Tensor | None:
    """Return the channel of each input feature along `axis`, or None where it differs from row to row."""
    return common_row(numbers.movedim(axis, -1))


def common_row(rows: Tensor) -> Tensor | None:
    """Return the one row (features,) that all of `rows` (…, features) are, or None."""
    if rows.numel() and not any(rows.stride()[:-1]):  # one row, seen many times
        return rows[(0,) * (rows.ndim - 1)].to(torch.int64)
    rows = rows.reshape(-1, rows.shape[-1])
    if not len(rows):
        return None
    return rows[0].to(torch.int64) if bool((rows == rows[0]).all()) else None
