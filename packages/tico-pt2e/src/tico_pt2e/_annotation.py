"""Where a graph gets grids: one for each value and spec, found from the operators and the config."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
from torch import fx
from typing_extensions import Self

from tico_config import (
    ConfigError,
    DType,
    Found,
    PerChannel,
    PerTensor,
    Problem,
    PT2EConfig,
    QuantSpec,
    Resolution,
    UnsupportedError,
    no_quant,
    unmatched_overrides,
    unmatched_problems,
)
from tico_pt2e._nodes import module_of, value_of
from tico_pt2e._operations import Operation
from tico_pt2e._patterns import PATTERNS

_DEFAULTS = ("activation", "weight")

AT_THE_OUTPUT = "quantize_output_concat"
"""The origin of the specs of a concatenation that stays float as only the output reads it."""


TO_DECIDE = "deciding"
"""The origin of the specs of an operator whose result only comparisons, buckets and indices read."""


@attrs.frozen(eq=False)
class Grid:
    """A grid to be found by calibration: the path of its point, and its spec."""

    path: str
    spec: QuantSpec


@attrs.frozen(eq=False)
class Placement:
    """A value, the grid that it is moved to, and which nodes read the moved value."""

    source: fx.Node
    grid: Grid
    readers: tuple[fx.Node, ...]
    leads: bool
    """Whether the grid is found from this value; if not, it is found from an earlier one."""


@attrs.frozen(eq=False)
class Annotated:
    """An operator with the specs that hold for it."""

    operation: Operation
    act_in: Resolution[QuantSpec]
    act_out: Resolution[QuantSpec]
    weight: Resolution[QuantSpec] | None

    @classmethod
    def of(cls, operation: Operation, config: PT2EConfig) -> Self:
        """Return `operation` with what `config` says."""

        def resolve(point: str, role: str) -> Resolution[QuantSpec]:
            paths = (f"{operation.path}.{point}", *dict.fromkeys(_own_paths(operation)))
            return config.resolve_operator(paths, role, operation.module_type, operation.pattern.operator)

        weight = None if operation.weight is None else resolve("weight", "weight")
        return cls(operation, resolve("act_in", "activation"), resolve("act_out", "activation"), weight)

    def at_the_output(self) -> Self:
        """Return the operator without grids, where no override speaks of them."""
        if any(found.origin not in _DEFAULTS for found in (self.act_in, self.act_out)):
            return self
        none = Resolution(no_quant(), AT_THE_OUTPUT)
        return attrs.evolve(self, act_in=none, act_out=none)

    def to_decide(self) -> Self:
        """Return the operator without grids where no override speaks of them; a weight's factor keeps its."""
        none = Resolution(no_quant(), TO_DECIDE)
        inner = self.act_in.origin in _DEFAULTS and self.weight is None
        return attrs.evolve(
            self,
            act_in=none if inner else self.act_in,
            act_out=none if self.act_out.origin in _DEFAULTS else self.act_out,
        )


def _own_paths(operation: Operation) -> tuple[str, ...]:
    return operation.path, operation.module, module_of(operation.last)[0] or operation.module


def require_known(config: PT2EConfig, operations: Sequence[Operation]) -> None:
    """Refuse overrides that match nothing.

    Raises:
        ConfigError: with every one of them, and what comes nearest.
    """
    paths: dict[str, None] = {}
    for operation in operations:
        points = ("act_in", "act_out") if operation.weight is None else ("act_in", "act_out", "weight")
        paths |= dict.fromkeys(_own_paths(operation))
        paths |= dict.fromkeys(f"{operation.path}.{point}" for point in points)
    paths.pop("", None)
    kinds = {operation.module_type: None for operation in operations if operation.module_type}
    names = [*kinds, *(kind.rpartition(".")[2] for kind in kinds)]
    problems = unmatched_overrides(config.overrides, list(paths))
    problems += _unknown("module_types", config.module_types, names, "a type of a module with operators")
    problems += _unknown("operators", config.operators, list(PATTERNS), "an operator that can be quantized")
    if problems:
        raise ConfigError(*problems)


def _unknown(field: str, given: Iterable[str], names: list[str], expected: str) -> list[Problem]:
    missing = [name for name in given if name not in names]
    return [
        attrs.evolve(
            problem, field=field, expected=expected, remedy=(problem.remedy or "").replace("paths", "names")
        )
        for problem in unmatched_problems(missing, names)
    ]


def require_possible(annotated: Iterable[Annotated]) -> None:
    """Refuse specs that operators of a graph cannot have.

    Raises:
        UnsupportedError: with every point that has one.
    """
    problems: dict[str, Problem] = {}
    for item in annotated:
        path = item.operation.path
        for point, found in (("act_in", item.act_in), ("act_out", item.act_out)):
            if not _possible(found.spec, (PerTensor(),), PerTensor()):
                expected = "an integer grid of at most 16 bits per tensor, or no_quant()"
                problems[f"{path}.{point}"] = _refused(f"{path}.{point}", found.spec, expected)
        if item.weight is not None:
            units = (PerTensor(), PerChannel(weight_axis(item.operation)))
            if not _possible(item.weight.spec, units, units[1]):
                axis = weight_axis(item.operation)
                expected = (
                    f"an integer grid of at most 16 bits per tensor or per channel {axis}, or no_quant()"
                )
                problems[f"{path}.weight"] = _refused(f"{path}.weight", item.weight.spec, expected)
    if problems:
        raise UnsupportedError(*problems.values())


def _possible(
    spec: QuantSpec, units: Iterable[PerTensor | PerChannel], default: PerTensor | PerChannel
) -> bool:
    if not spec.is_quantized:
        return True
    affine = isinstance(spec.dtype, DType) and spec.dtype.bits <= 16
    return affine and spec.granularity_or(default) in tuple(units)


def _refused(path: str, spec: QuantSpec, expected: str) -> Problem:
    return Problem(module=path, field="spec", value=Found(str(spec)), expected=expected)


def weight_axis(operation: Operation) -> int:
    """Return the axis of the output channels in the weight of `operation`."""
    value = None if operation.weight is None else value_of(operation.weight)
    if operation.pattern.weight is None:
        return 0 if value is None else value.ndim - 1
    return operation.pattern.axis


def placements(graph: fx.Graph, annotated: Sequence[Annotated]) -> list[Placement]:
    """Return where values are moved to grids, in the order of the graph.

    A value has the grid of the operator that gives it; a reader whose input an override speaks of gets one
    of its own. A value that no quantized operator gives gets the grids that its readers ask for.
    """
    givers = {item.operation.last: item for item in annotated}
    readers = {item.operation.node: item for item in annotated}
    inner = {item.operation.node for item in annotated if item.operation.last is not item.operation.node}
    lies_on: dict[fx.Node, Grid] = {}
    found: list[Placement] = []
    for node in graph.nodes:
        if node in inner:
            continue
        own = _own_grid(givers.get(node), lies_on)
        if own is not None:
            lies_on[node] = own[0]
        found += _of_value(node, own, readers)
    return found


def _own_grid(giver: Annotated | None, lies_on: dict[fx.Node, Grid]) -> tuple[Grid, bool] | None:
    """Return the grid that the giver's result has, and whether it is found from this result."""
    if giver is None or not giver.act_out.spec.is_quantized:
        return None
    if giver.operation.shares:
        shared = [lies_on[source] for source in giver.operation.inputs[:1] if source in lies_on]
        return (shared[0], False) if shared else None
    return Grid(f"{giver.operation.path}.act_out", giver.act_out.spec), True


def _of_value(
    node: fx.Node, own: tuple[Grid, bool] | None, readers: dict[fx.Node, Annotated]
) -> list[Placement]:
    mine: list[fx.Node] = []
    others: dict[QuantSpec, list[fx.Node]] = {}
    paths: dict[QuantSpec, str] = {}
    for user in node.users:
        spec = _asked_for(readers.get(user), node)
        if spec is None or (own is not None and (spec[0] == own[0].spec or not spec[1])):
            mine.append(user)
        else:
            others.setdefault(spec[0], []).append(user)
            paths.setdefault(spec[0], f"{readers[user].operation.path}.act_in")
    found = [Placement(node, own[0], tuple(mine), own[1])] if own is not None and mine else []
    found += [Placement(node, Grid(paths[spec], spec), tuple(users), True) for spec, users in others.items()]
    return found


def _asked_for(reader: Annotated | None, node: fx.Node) -> tuple[QuantSpec, bool] | None:
    """Return the spec that a reader asks for its input `node`, and whether an override says so."""
    if reader is None or node not in reader.operation.inputs or reader.operation.shares:
        return None
    spec = reader.act_in.spec
    return (spec, reader.act_in.origin not in _DEFAULTS) if spec.is_quantized else None
