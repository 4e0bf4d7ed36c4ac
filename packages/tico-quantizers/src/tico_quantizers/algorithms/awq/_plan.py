"""Which layers AWQ rounds, and on what grid: decided, and refused, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch import nn

from tico_config import AWQConfig, ConfigError, DType, Found, Problem, unmatched_problems
from tico_quantizers.equivalence import Candidates, Pair
from tico_quantizers.layers import FloatLayer, columns, output_embedding
from tico_quantizers.solvers import Grid


@attrs.frozen(eq=False)
class Target:
    """A layer to round, and the config that holds for it."""

    path: str
    layer: FloatLayer
    config: AWQConfig

    @property
    def grid(self) -> Grid:
        """The grids of its weight."""
        config = self.config
        dtype = DType(config.bits, signed=config.symmetric)
        return Grid(dtype=dtype, symmetric=config.symmetric, group_size=config.group_size)


@attrs.frozen(eq=False, kw_only=True)
class Plan:
    """The layers to round by path, and those left alone with the reason."""

    targets: Mapping[str, Target]
    left: Mapping[str, str]

    def worked_on(self, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        """Return the pairs with a reader that is rounded: scales help no other."""
        return tuple(pair for pair in pairs if any(reader.path in self.targets for reader in pair.readers))


def plan_of(model: nn.Module, candidates: Candidates, config: AWQConfig) -> Plan:
    """Return what is done to every layer.

    Raises:
        ConfigError: an override matches no layer to round, or a group size divides no columns.
    """
    left = {path: reason for path, reason in candidates.reasons.items() if path in candidates.layers}
    head = output_embedding(model)
    targets: dict[str, Target] = {}
    for path in candidates.layers:
        layer = candidates.reader(path)
        if layer is None:
            continue
        if layer is head and path not in config.overrides:
            left[path] = "the output embedding is quantized only if an override has its exact path"
        else:
            targets[path] = Target(path, layer, config.resolve(path).spec)
    problems = unmatched_problems(config.overrides, list(targets))
    problems += [problem for target in targets.values() for problem in _problems(target)]
    if problems:
        raise ConfigError(*problems)
    return Plan(targets=targets, left=left)


def _problems(target: Target) -> list[Problem]:
    size, width = target.config.group_size, columns(target.layer)
    if size is None or (size <= width and (target.config.ragged_groups or width % size == 0)):
        return []
    remedy = "choose another, for all or by an override for this module, or set ragged_groups"
    expected = f"None or a divisor of its {width} input columns"
    found = Found(str(size))
    return [Problem(module=target.path, field="group_size", value=found, expected=expected, remedy=remedy)]
