"""The layers that bits are chosen for, with what each candidate is at each."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import attrs
from torch import nn
from typing_extensions import Self

from tico_config import ConfigError, Found, Problem
from tico_quantizers.analysis._candidates import Candidate
from tico_quantizers.analysis._measuring import Stand
from tico_quantizers.analysis._scaling import fit_losses
from tico_quantizers.analysis._together import share_bits
from tico_quantizers.layers import find_blocks, layers_in

_DIGITS: Final = re.compile(r"\d+")


@attrs.frozen(eq=False, kw_only=True)
class Layers:
    """The layers, in the order of the model.

    Attributes:
        paths: of the layers.
        blocks: the block that each is in, by its path; for one in no block, its own path.
        roles: what it is in its block: its path there, with ``#`` for numbers; in no block, its own path.
        items: the places of the layers that share their bits, of each item.
        made: what each candidate is.
        losses: the estimated divergence of each layer, for each candidate.
    """

    paths: tuple[str, ...]
    blocks: tuple[str, ...]
    roles: tuple[str, ...]
    items: tuple[tuple[int, ...], ...]
    made: tuple[Candidate, ...]
    losses: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, model: nn.Module, made: Sequence[Candidate], together: Iterable[str]) -> Self:
        """Return the layers that GPTQ has solved for at every candidate, with its own losses.

        Raises:
            ConfigError: there are none, or a pattern of `together` matches none of them.
        """
        first = made[0]
        paths = [path for path in first.losses if all(path in each.losses for each in made)]
        if not paths:
            found = Found("a model without any")
            expected = "a model with layers that GPTQ solves for by this config"
            raise ConfigError(Problem(field="model", value=found, expected=expected))
        owners = [first.owners[path] for path in paths]
        blocks = {path for path, _ in find_blocks(model, layers_in(model).values())}
        homes = [_block_of(path, blocks) for path in owners]
        return cls(
            paths=tuple(paths),
            blocks=tuple(home or path for home, path in zip(homes, owners, strict=True)),
            roles=tuple(map(_role, homes, owners)),
            items=tuple(map(tuple, share_bits(paths, together, owners))),
            made=tuple(made),
            losses=tuple(tuple(each.losses[path] for each in made) for path in paths),
        )

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """The bytes of each layer, for each candidate."""
        return [tuple(each.bytes[path] for each in self.made) for path in self.paths]

    @property
    def weights(self) -> list[int]:
        """How many weights each layer has."""
        return [self.made[0].weights[path] for path in self.paths]

    @property
    def smallest(self) -> int:
        """The number of the candidate that takes the fewest bytes."""
        totals = [sum(each.bytes[path] for path in self.paths) for each in self.made]
        return totals.index(min(totals))

    def stand(self, choices: Mapping[int, int]) -> Stand:
        """Return the modules of the layers at some places, each at a candidate."""
        owners = self.made[0].owners
        chosen = {owners[self.paths[place]]: choice for place, choice in choices.items()}
        return {owner: self.made[choice].modules[owner] for owner, choice in chosen.items()}

    def grouped(self, keys: Sequence[str]) -> dict[str, Stand]:
        """Return what stands for the layers of each of `keys`, all at the smallest candidate."""
        groups: dict[str, dict[int, int]] = {}
        for place, key in enumerate(keys):
            groups.setdefault(key, {})[place] = self.smallest
        return {key: self.stand(group) for key, group in groups.items()}

    def fitted(self, blocks: Mapping[str, float], roles: Mapping[str, float]) -> Self:
        """Return the layers with losses that add up to what was measured of blocks and of roles."""
        own = [losses[self.smallest] for losses in self.losses]
        fits = fit_losses(own, self.blocks, self.roles, blocks, roles)
        factors = [fit / loss if loss else 0.0 for fit, loss in zip(fits, own, strict=True)]
        pairs = zip(factors, self.losses, strict=True)
        return attrs.evolve(self, losses=tuple(tuple(factor * loss for loss in own) for factor, own in pairs))


def _block_of(path: str, blocks: Collection[str]) -> str:
    """Return the block that a module is in; empty where it is in none."""
    while path and path not in blocks:
        path = path.rpartition(".")[0]
    return path


def _role(block: str, path: str) -> str:
    return _DIGITS.sub("#", path.removeprefix(f"{block}.")) if block else path
