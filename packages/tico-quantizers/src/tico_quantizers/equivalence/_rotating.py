"""Orthogonal matrices folded into the weights of a rotation, so that the float function stays what it was."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

import attrs
import torch
from torch import Tensor, nn

from tico_config import RotationConfig
from tico_modules import Edit, Progress, own_tensor
from tico_observers.products import product
from tico_quantizers.equivalence._folding import put_folded
from tico_quantizers.equivalence._online_rotation import OnlineRotation, seed_of
from tico_quantizers.equivalence._rotatable import Place, Rotatable, RotatedNorm, places_of
from tico_quantizers.equivalence._rotations import Member, NormReaders, Rotation
from tico_quantizers.equivalence._smoothing_pairs import Matrix
from tico_quantizers.layers import shape, weight_axes
from tico_quantizers.solvers import orthogonal_matrix

_ROWS = 4096
"""Rows of an embedding that are multiplied at once, so that no copy of it in float64 is made."""
_BY = "rotation"


@attrs.frozen(eq=False, kw_only=True)
class Turn:
    """A rotation and its `matrices` (groups, mixed, mixed) in float64, one for each group of channels."""

    rotation: Rotation
    matrices: Tensor

    @classmethod
    def drawn(cls, rotation: Rotation, config: RotationConfig) -> Turn:
        """Return `rotation` with matrices that depend on its path and the seed of `config` alone."""
        matrices = [
            orthogonal_matrix(
                rotation.mixed,
                matrix=config.matrix,
                seed=seed_of(config.seed, rotation.path, group),
                keeps_mean=rotation.keeps_mean,
            )
            for group in range(rotation.channels // rotation.mixed)
        ]
        return cls(rotation=rotation, matrices=torch.stack(matrices))

    def columns(self, weight: Tensor, channels: Tensor) -> Tensor:
        """Return W R for a float64 `weight` (rows, columns) whose columns multiply `channels`."""
        mixed = self.rotation.mixed
        groups = channels.view(-1, mixed)[:, 0] // mixed
        parts = zip(torch.split(weight, mixed, 1), groups.tolist(), strict=True)
        return torch.cat([product(part, self._matrix(group, weight)) for part, group in parts], 1)

    def rows(self, weight: Tensor) -> Tensor:
        """Return Rᵀ W for a float64 `weight` (rows, columns) whose rows give the channels."""
        parts = enumerate(torch.split(weight, self.rotation.mixed))
        return torch.cat([product(self._matrix(group, weight).T, part) for group, part in parts])

    def _matrix(self, group: int, like: Tensor) -> Tensor:
        return self.matrices[group].to(like.device)


@attrs.frozen(eq=False, kw_only=True)
class _Reading:
    """What is folded into the columns of a weight."""

    turn: Turn | OnlineRotation
    channels: Tensor
    through: NormReaders | None = None

    def is_like(self, other: _Reading | None) -> bool:
        """Return whether a weight that two modules share stays the same for both."""
        is_plain = self.through is None or self.through.norm.is_plain
        return other is not None and other.through is None and is_plain and self.turn is other.turn


@attrs.define(eq=False, kw_only=True)
class _Fold:
    """All that is folded into the weight of one layer or table."""

    member: Member
    reads: _Reading | None = None
    writes: Turn | None = None


@attrs.frozen(eq=False)
class Folds:
    """What is to be folded into every weight for some turns and some rotated `inputs`."""

    turns: tuple[Turn, ...]
    inputs: tuple[OnlineRotation, ...]
    folds: dict[str, _Fold]

    @classmethod
    def of(cls, turns: Sequence[Turn], inputs: Sequence[OnlineRotation] = ()) -> Folds:
        """Collect what these say of each weight, of which each may be in several."""
        folds: dict[str, _Fold] = {}
        for turn in turns:
            rotation = turn.rotation
            for writer in rotation.writers:
                fold = folds.setdefault(writer.name, _Fold(member=writer))
                if isinstance(writer.owner, Matrix):
                    # The rows of a table are what it writes, so that it is multiplied like a reader.
                    every = torch.arange(rotation.channels, device=writer.weight.device)
                    fold.reads = _Reading(turn=turn, channels=every)
                else:
                    fold.writes = turn
            for through, reader in _readers(rotation):
                fold = folds.setdefault(reader.name, _Fold(member=reader))
                if reader.channels is not None:
                    fold.reads = _Reading(turn=turn, channels=reader.channels, through=through)
        for each in inputs:
            fold = folds.setdefault(each.path, _Fold(member=Member(name=each.path, owner=each.layer)))
            every = torch.arange(shape(each.layer)[1], device=each.layer.weight.device)
            fold.reads = _Reading(turn=each, channels=every)
        return cls(tuple(turns), tuple(inputs), folds)

    def untied(self, rotatable: Rotatable) -> dict[str, str]:
        """Return the heads that need a weight of their own, each with the table that has shared it."""
        return {head: table for head, table in rotatable.ties.items() if self._differ(head, table)}

    def _differ(self, head: str, table: str) -> bool:
        one, other = self.folds.get(head), self.folds.get(table)
        if one is None or other is None:
            return one is not other
        return one.writes is not None or one.reads is None or not one.reads.is_like(other.reads)

    def put(self, root: nn.Module, rotatable: Rotatable, edit: Edit) -> nn.Module:
        """Fold everything into the weights, each of which is rounded once, and return the root.

        Raises:
            NumericsError: a weight is not finite then.
        """
        untied = self.untied(rotatable)
        # Norms are changed last: what is folded into the readers depends on them.
        with Progress("ROTATION", total=len(self.folds), unit="weight") as bar:
            for fold in self.folds.values():
                name = fold.member.name
                if name not in rotatable.ties or name in untied:
                    _put(fold, _places(fold.member, rotatable, untied), edit)
                bar.step(name)
        for turn in self.turns:
            for each in turn.rotation.norms:
                if not each.norm.is_plain:
                    _put_norm(each, turn, edit)
        for online in self.inputs:
            root = online.put(root, edit)
        return root


def _places(member: Member, rotatable: Rotatable, untied: Container[str]) -> list[Place]:
    """Return where the weight of `member` stands: that of a table also in the head that stays tied to it."""
    if not isinstance(member.owner, Matrix):
        return [(member.path, member.owner, "weight")]
    places = places_of(member.weight, rotatable.modules)
    return [each for each in places if each[0] not in untied]


def _put(fold: _Fold, places: Sequence[Place], edit: Edit) -> None:
    weight, bias = _folded(fold)
    (path, module, name), *others = places
    put_folded(path, module, name, weight, edit, by=_BY)
    held: dict[str, nn.Parameter | None] = module._parameters
    for _, other, other_name in others:
        slots: dict[str, nn.Parameter | None] = other._parameters
        edit.put(slots, other_name, held[name])
    if bias is not None:
        put_folded(path, module, "bias", bias, edit, by=_BY)


def _readers(rotation: Rotation) -> Iterator[tuple[NormReaders | None, Member]]:
    for reader in rotation.readers:
        yield None, reader
    for each in rotation.norms:
        for reader in each.readers:
            yield each, reader


def _folded(fold: _Fold) -> tuple[Tensor, Tensor | None]:
    """Return the weight of `fold` and its bias, each in its dtype, after everything was folded in."""
    old, owner = fold.member.weight.detach(), fold.member.owner
    swapped = not isinstance(owner, Matrix) and weight_axes(owner) == (1, 0)
    weight = old.T if swapped else old
    stored = None if isinstance(owner, Matrix) else own_tensor(owner, "bias")
    bias = None if stored is None else stored.detach().to(torch.float64)
    if fold.reads is not None and fold.reads.through is not None and bias is not None:
        bias = bias + _added(weight, fold.reads.through, fold.reads.channels)
    size = _ROWS if fold.writes is None else len(weight)
    parts = [_columns(rows, fold.reads) for rows in torch.split(weight, size)]
    if fold.writes is not None:
        parts = [fold.writes.rows(part) for part in parts]
        bias = None if bias is None else fold.writes.rows(bias[:, None])[:, 0]
    result = torch.cat([part.to(old.dtype) for part in parts])
    made = result.T.contiguous() if swapped else result
    return made, None if bias is None or stored is None else bias.to(stored.dtype)


def _added(weight: Tensor, through: NormReaders, channels: Tensor) -> Tensor:
    """Return what a norm's bias adds to the outputs of a reader, (rows,), if it goes into its bias."""
    bias = through.norm.bias if through.folds_bias else None
    if bias is None:
        return torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    return product(weight.to(torch.float64), bias[channels, None])[:, 0]


def _columns(rows: Tensor, reads: _Reading | None) -> Tensor:
    weight = rows.to(torch.float64)
    if reads is None:
        return weight
    if reads.through is not None:
        weight = weight * reads.through.norm.weight[reads.channels]
    return reads.turn.columns(weight, reads.channels)


def _put_norm(readers: NormReaders, turn: Turn, edit: Edit) -> None:
    """Set the weight of a norm to one; what it adds and no reader has taken is divided by it, and turned."""
    norm: RotatedNorm = readers.norm
    module, old = norm.scale.module, norm.weight
    stored, bias = own_tensor(module, "bias"), norm.bias
    if stored is not None:
        new = torch.zeros_like(old)
        if bias is not None and not readers.folds_bias:
            kept = torch.where(old != 0, bias / torch.where(old != 0, old, 1.0), 0.0)
            new = turn.columns(kept[None], torch.arange(len(kept), device=kept.device))[0]
        put_folded(readers.path, module, "bias", new.to(stored.dtype), edit, by=_BY)
    weight = own_tensor(module, "weight")
    if weight is not None:
        plain = torch.full_like(weight.detach(), 1 - norm.scale.offset)
        put_folded(readers.path, module, "weight", plain, edit, by=_BY)
