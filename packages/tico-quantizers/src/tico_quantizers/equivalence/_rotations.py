"""Rotations of a model: a set of channels, all that writes them, and all that reads them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

import attrs
import torch
from torch import Tensor

from tico_modules import own_tensor
from tico_quantizers.equivalence._passages import common_parent, is_below
from tico_quantizers.equivalence._rotatable import Rotatable, RotatedNorm
from tico_quantizers.equivalence._rotation_trace import StreamWays
from tico_quantizers.equivalence._smoothing_pairs import Matrix
from tico_quantizers.layers import FloatLayer, shape

Kind: TypeAlias = Literal["residual", "heads"]


@attrs.frozen(eq=False, kw_only=True)
class Member:
    """A layer or table that writes channels or reads them; of a reader, the `channels` (inputs,) it reads.

    `name` is the path of a layer, or path and name of a table. One that is `adopted` was reached by no data.
    """

    name: str
    owner: FloatLayer | Matrix
    channels: Tensor | None = None
    adopted: bool = False

    @property
    def path(self) -> str:
        """The path of the module."""
        return self.owner.path if isinstance(self.owner, Matrix) else self.name

    @property
    def weight(self) -> Tensor:
        """The weight that is to be multiplied."""
        matrix = self.owner
        place = (matrix.module, matrix.name) if isinstance(matrix, Matrix) else (matrix, "weight")
        weight = own_tensor(*place)
        if weight is None:
            raise TypeError(f"{self.name} has no weight")
        return weight


@attrs.frozen(eq=False, kw_only=True)
class NormReaders:
    """A norm that reads a stream, and all that reads the norm.

    It is `weighed` where its output was multiplied by something or summed before it was read.
    """

    path: str
    norm: RotatedNorm
    readers: tuple[Member, ...]
    weighed: bool

    @property
    def folds_bias(self) -> bool:
        """Whether the readers have biases that what the norm adds can go into; else it stays at the norm."""
        return not self.weighed and all(
            not isinstance(each.owner, Matrix) and own_tensor(each.owner, "bias") is not None
            for each in self.readers
        )


@attrs.frozen(eq=False, kw_only=True)
class Rotation:
    """Channels that can be multiplied by an orthogonal matrix, which is undone by all that read them.

    A ``"residual"`` rotation mixes all channels. One of ``"heads"`` has a matrix for each value head, which
    mixes its channels: `mixed` is how many these are.
    """

    kind: Kind
    channels: int
    mixed: int
    writers: tuple[Member, ...]
    readers: tuple[Member, ...]
    norms: tuple[NormReaders, ...]

    @property
    def path(self) -> str:
        """The path of the first writer, by which errors and reports call the rotation."""
        return self.writers[0].path

    @property
    def keeps_mean(self) -> bool:
        """Whether the matrix has to leave vectors of equal numbers alone."""
        return any(each.norm.keeps_mean for each in self.norms)

    def members(self) -> Iterator[Member]:
        """Yield everything that writes or reads."""
        yield from self.writers
        yield from self.readers
        for each in self.norms:
            yield from each.readers

    def paths(self) -> list[str]:
        """Return the paths of all modules that take part, each once."""
        return list(
            dict.fromkeys([*(each.path for each in self.members()), *(each.path for each in self.norms)])
        )


@attrs.frozen(eq=False, kw_only=True)
class FoundRotations:
    """The rotations of a model; by their path, why other streams and heads cannot be rotated.

    `inputs` are the layers, by path, whose input is rotated while the model runs; no data reached those of
    them that are in `adopted`.
    """

    rotations: tuple[Rotation, ...]
    refused: Mapping[str, str]
    inputs: Mapping[str, FloatLayer] = attrs.field(factory=dict)
    adopted: frozenset[str] = frozenset()

    def without(self, reasons: Mapping[str, str]) -> FoundRotations:
        """Return the rotations whose path is none of those of `reasons`."""
        rotations = tuple(each for each in self.rotations if each.path not in reasons)
        return attrs.evolve(self, rotations=rotations, refused={**self.refused, **reasons})


class _Refused(Exception):  # noqa: N818  # a reason, caught where it is told
    """Why channels cannot be rotated."""


def rotations_of(ways: StreamWays, rotatable: Rotatable) -> FoundRotations:
    """Return the rotations that passes have shown, in the order of the model."""
    search = _Search(ways, rotatable)
    found: list[Rotation] = []
    refused: dict[str, str] = {}
    for sources in search.streams():
        try:
            rotation = search.rotation(sources)
        except _Refused as reason:
            if search.is_telling(sources):
                refused[rotatable.owner(sources[0])] = str(reason)
        else:
            found += [] if rotation is None else [rotation]
    return FoundRotations(rotations=tuple(found), refused=refused)


class _Search:
    """What follows from `ways`."""

    def __init__(self, ways: StreamWays, rotatable: Rotatable) -> None:
        self._ways = ways
        self._rotatable = rotatable
        self._shown = ways.passages
        self._readings = {**self._shown.readings, **self._shown.multiplied}
        self._order = {path: index for index, path in enumerate(rotatable.modules)}
        self._by_source: dict[str, list[str]] = {}
        for name, readings in self._readings.items():
            for source in dict.fromkeys(each.source for each in readings if each.source is not None):
                self._by_source.setdefault(source, []).append(name)

    def streams(self) -> list[list[str]]:
        """Return the layers and tables that have to be rotated alike, in the order of the model."""
        leader: dict[str, str] = {each: each for each in self._sources()}

        def find(name: str) -> str:
            while leader[name] != name:
                name = leader[name]
            return name

        for one, other in self._alike():
            leader[max(find(one), find(other), key=self._place)] = min(
                find(one), find(other), key=self._place
            )
        found: dict[str, list[str]] = {}
        for name in sorted(leader, key=self._place):
            found.setdefault(find(name), []).append(name)
        return list(found.values())

    def _sources(self) -> list[str]:
        can_write = self._rotatable.writes
        return [*(path for path in self._shown.readings if can_write(path)), *self._ways.looked_up]

    def _alike(self) -> Iterator[tuple[str, str]]:
        """Yield what was added to each other, and what one module has read."""
        yield from sorted(self._ways.sums)
        for name in sorted(self._readings):
            read = [each.source for each in self._readings[name] if each.source is not None]
            streams = sorted({each for each in read if self._rotatable.norm(each) is None})
            yield from itertools.pairwise(streams)

    def _place(self, name: str) -> tuple[int, str]:
        return self._order[self._rotatable.owner(name)], name

    def is_telling(self, sources: list[str]) -> bool:
        """Return whether it is worth a word that these cannot be rotated: they may be a stream, or heads."""
        readers = [name for source in sources for name in self._by_source.get(source, ())]
        normed = any(self._rotatable.norm(name) is not None for name in readers)
        summed = (source for pair in self._ways.sums for source in pair)
        told = {*self._ways.heads, *self._ways.looked_up, *summed}
        return normed or not told.isdisjoint(sources)

    def rotation(self, sources: list[str]) -> Rotation | None:
        """Return the rotation of the channels of `sources`, or None for a layer that only layers read.

        Raises:
            _Refused: there is none.
        """
        self._require_unbroken(sources)
        names = list(dict.fromkeys(name for source in sources for name in self._by_source.get(source, ())))
        heads = sorted({size for source in sources for size in self._ways.heads.get(source, ())})
        channels = self._width(sources[0])
        if len(heads) > 1:
            raise _Refused(f"attention mixes {' and '.join(map(str, heads))} of its channels")
        mixed = heads[0] if heads else channels
        norms = [name for name in names if self._rotatable.norm(name) is not None]
        if not norms and not heads:
            return None
        readers = [name for name in names if name not in norms]
        made = Rotation(
            kind="heads" if heads else "residual",
            channels=channels,
            mixed=mixed,
            writers=tuple(map(self._member, sources)),
            readers=tuple(self._reader(name, mixed) for name in readers),
            norms=tuple(self._norm_readers(name, channels) for name in norms),
        )
        return self._with_unread(made)

    def _require_unbroken(self, sources: Iterable[str]) -> None:
        for source in sorted(sources, key=self._is_no_layer):
            if source in self._shown.broken:
                raise _Refused(f"{source}: {self._shown.broken[source]}")
            self._require_own_weight(source)

    def _is_no_layer(self, name: str) -> bool:
        """Return whether a reason is less telling: what goes wrong with experts shows at layers, too."""
        return name not in self._rotatable.experts

    def _require_own_weight(self, name: str) -> None:
        if name in self._shown.also_read:
            raise _Refused(f"{name}: its weight is read by {self._shown.also_read[name]} as well")

    def _width(self, name: str) -> int:
        if name in self._rotatable.tables:
            return self._member(name).weight.shape[-1]
        layer = self._rotatable.layer(name)
        return 0 if layer is None else shape(layer)[0]

    def _member(self, name: str) -> Member:
        owner = self._rotatable.tables.get(name) or self._rotatable.layer(name)
        if owner is None:
            raise _Refused(f"{name} reads it")
        return Member(name=name, owner=owner)

    def _reader(self, name: str, mixed: int) -> Member:
        """Return a layer or table that reads whole groups of channels, and nothing else.

        Raises:
            _Refused: it reads something else.
        """
        self._require_own_weight(name)
        if name in self._ways.looked_up:
            raise _Refused(f"{name} is an embedding and multiplies rows without a layer")
        channels = self._channels(name)
        rows = channels.view(-1, mixed) if not len(channels) % mixed else channels[:0].view(-1, mixed)
        expected = rows[:, :1] + torch.arange(mixed, device=rows.device)
        if not len(rows) or not torch.equal(rows, expected) or bool((rows[:, 0] % mixed).any()):
            raise _Refused(f"{name} reads its channels in another order")
        return attrs.evolve(self._member(name), channels=channels)

    def _channels(self, name: str) -> Tensor:
        first, *others = self._readings[name]
        if first.channels is None or any(
            each.channels is None or not torch.equal(each.channels, first.channels) for each in others
        ):
            raise _Refused(f"{name} reads something else as well")
        through = {each.source for each in self._readings[name]}
        if len(through) > 1 and any(self._rotatable.norm(each or "") is not None for each in through):
            raise _Refused(f"{name} reads {' and '.join(sorted(filter(None, through)))}")
        return first.channels

    def _norm_readers(self, path: str, channels: int) -> NormReaders:
        norm = self._rotatable.norm(path)
        if norm is None:
            raise TypeError(path)
        self._require_unbroken([path])
        if not torch.equal(self._channels(path).cpu(), torch.arange(channels)):
            raise _Refused(f"{path} reads its channels in another order")
        readers = tuple(self._reader(name, channels) for name in self._by_source.get(path, ()))
        made = NormReaders(path=path, norm=norm, readers=readers, weighed=path in self._ways.weighed)
        if not readers:
            raise _Refused(f"{path}: no layer reads its output")
        bias = None if made.folds_bias else norm.bias
        if bias is not None and bool((bias[norm.weight == 0] != 0).any()):
            raise _Refused(f"{path}: its weight is zero where its bias is not")
        return made

    def _with_unread(self, rotation: Rotation) -> Rotation:
        """Return `rotation` with experts that no data reached, whose peers take part in it.

        Raises:
            _Refused: something else that no data reached may take part in it.
        """
        parent = common_parent(rotation.paths())
        peers = self._rotatable.peers
        used = {peers[name] for name in self._shown.readings if name in peers}
        unread = [
            path
            for path, _ in self._rotatable.atoms()
            if path and not self._ways.is_used(path) and is_below(path, parent)
        ]
        for path in unread:
            if peers.get(path) not in used or self._rotatable.layer(path) is None:
                raise _Refused(f"{path}, which no data reached, may read it as well")

        def adopted(members: tuple[Member, ...]) -> tuple[Member, ...]:
            return (*members, *self._like(members, unread))

        norms = (attrs.evolve(each, readers=adopted(each.readers)) for each in rotation.norms)
        writers, readers = adopted(rotation.writers), adopted(rotation.readers)
        return attrs.evolve(rotation, writers=writers, readers=readers, norms=tuple(norms))

    def _like(self, members: tuple[Member, ...], unread: list[str]) -> Iterator[Member]:
        peers = self._rotatable.peers
        places = {peers[each.name]: each for each in members if each.name in peers}
        for path in unread:
            peer, layer = places.get(peers.get(path, "")), self._rotatable.layer(path)
            if peer is not None and layer is not None and shape(layer) == tuple(peer.weight.shape):
                yield attrs.evolve(peer, name=path, owner=layer, adopted=True)
