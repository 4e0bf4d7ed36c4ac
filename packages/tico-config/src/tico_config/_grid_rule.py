"""The formats that a runtime takes: of a tensor, and of a layer with what it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal, TypeAlias, TypeVar

import attrs

from tico_config._declared_types import field_problems
from tico_config._float_format import NumberFormat
from tico_config._grid import Granularity, PerChannel, PerGroup, PerTensor, PerToken, SuperBlock
from tico_config._grid_format import GridFormat, LayerFormat
from tico_config._named_fields import NamedFields
from tico_config._problem import Problem
from tico_config.validation import check_integer, refuse

Unit: TypeAlias = Literal["tensor", "channel", "group", "token"]
"""What shares a scale: all of a tensor, an output channel, a group of columns, a token."""

Part: TypeAlias = Literal["weight", "activation"]

T = TypeVar("T")


def unit_of(granularity: Granularity) -> Unit:
    """Return what shares a scale in words of rules."""
    match granularity:
        case PerTensor():
            return "tensor"
        case PerChannel():
            return "channel"
        case PerGroup():
            return "group"
        case PerToken():
            return "token"


@attrs.frozen(kw_only=True)
class GridRule(NamedFields):
    """Formats of a tensor that a runtime takes: every combination of what the fields name.

    Attributes:
        dtypes: the number formats of codes.
        symmetric: True takes zero points in the middle only, False others only; None takes both.
        units: what may share a scale.
        group_sizes: the sizes that groups may have; empty takes any.
        group_multiple: what sizes of groups have to be multiples of.
        super_block: what the scales of groups have to share; None takes any without offsets.

    Raises:
        ConfigError: a field has another value, or nothing is taken.

    >>> from tico_config import INT8
    >>> rule = GridRule(dtypes=(INT8,), units=("channel",))
    >>> rule.takes(GridFormat(dtype=INT8, granularity=PerChannel(0), symmetric=True))
    True
    """

    dtypes: tuple[NumberFormat, ...]
    symmetric: bool | None = None
    units: tuple[Unit, ...] = ("tensor",)
    group_sizes: tuple[int, ...] = ()
    group_multiple: int = 1
    super_block: SuperBlock | None = None

    def __attrs_post_init__(self) -> None:
        """Validate the fields."""
        refuse(*field_problems(self, self._field_problems))

    def _field_problems(self) -> Sequence[Problem | None]:
        empty = [name for name in ("dtypes", "units") if getattr(self, name) == ()]
        sizes = [check_integer("group_sizes", each, 1) for each in self.group_sizes]
        return [
            *(Problem(field=name, value=(), expected="a tuple with at least one item") for name in empty),
            *sizes,
            check_integer("group_multiple", self.group_multiple, 1),
        ]

    def takes(self, grid: GridFormat) -> bool:
        """Return whether a tensor may have the format `grid`."""
        return all(check.fits(self, grid) for check in _CHECKS)


@attrs.frozen(kw_only=True)
class LayerRule(NamedFields):
    """Formats of a layer that a runtime takes.

    Attributes:
        name: the format's usual name, such as ``W4A16``.
        kinds: the kinds of layers, as `LayerFormat` has them; empty for all.
        weights: the formats of the weight.
        inputs: the formats of what the layer reads; None for floats alone.
        alone: whether the layer may read floats.
        multiple: what the numbers of rows and of columns have to be multiples of.
        column_multiple: what the number of columns has to be a multiple of besides.
        mixed: whether layers of other formats may stand beside it in a model.

    Raises:
        ConfigError: a field has another value, or the layer could read nothing.

    >>> from tico_config import INT4
    >>> weights = GridRule(dtypes=(INT4,), units=("group",), group_sizes=(32, 128))
    >>> LayerRule(name="W4A16", kinds=("linear",), weights=weights).alone
    True
    """

    name: str
    kinds: tuple[str, ...] = ()
    weights: GridRule
    inputs: GridRule | None = None
    alone: bool = True
    multiple: int = 1
    column_multiple: int = 1
    mixed: bool = True

    def __attrs_post_init__(self) -> None:
        """Validate the fields."""
        refuse(*field_problems(self, self._field_problems))

    def _field_problems(self) -> Sequence[Problem | None]:
        unread = self.inputs is None and self.alone is False
        expected = "True where there are no formats of inputs"
        return [
            check_integer("multiple", self.multiple, 1),
            check_integer("column_multiple", self.column_multiple, 1),
            Problem(field="alone", value=False, expected=expected) if unread else None,
        ]

    def takes_kind(self, kind: str) -> bool:
        """Return whether a layer may be of this kind."""
        return not self.kinds or kind in self.kinds

    def takes_sides(self, layer: LayerFormat) -> bool:
        """Return whether a layer may have its numbers of rows and of columns, as far as they are known."""
        sides = (layer.rows, self.multiple), (layer.columns, self._columns)
        return all(side is None or side % multiple == 0 for side, multiple in sides)

    @property
    def _columns(self) -> int:
        return math.lcm(self.multiple, self.column_multiple)

    @property
    def legal_sides(self) -> str:
        """Say what rows and columns a layer may have."""
        if self.multiple == 1:
            return f"columns in multiples of {self._columns}"
        if self.multiple == self._columns:
            return f"rows and columns in multiples of {self.multiple}"
        return f"rows in multiples of {self.multiple} and columns in multiples of {self._columns}"

    def takes(self, layer: LayerFormat) -> bool:
        """Return whether a layer, whose weight is of integers, may have these formats."""
        fits = layer.kind is None or self.takes_kind(layer.kind)
        return fits and layer.weight is not None and not any(layer_misfits([self], layer, layer.weight))


@attrs.frozen(eq=False)
class Misfit:
    """What of a format a runtime does not take: `found`, and what is `legal` instead, both in words."""

    field: str
    found: str
    legal: str
    verb: str = "is"


@attrs.frozen(eq=False, repr=False)
class _Check:
    """One property of a format: what of it a rule takes, and words for both."""

    field: str
    fits: Callable[[GridRule, GridFormat], bool]
    found: Callable[[GridFormat, Part], str]
    legal: Callable[[GridRule, Part], tuple[str, ...]]
    phrase: str
    verb: str = "is"


_UNITS: Final[Mapping[Part, Mapping[Unit, str]]] = {
    "weight": {
        "tensor": "one scale",
        "channel": "a scale a row",
        "group": "a scale a group of columns",
        "token": "a scale a token",
    },
    "activation": {
        "tensor": "one fixed grid",
        "channel": "a fixed grid a channel",
        "group": "a fixed grid a group",
        "token": "a grid a token",
    },
}


def _fits_size(rule: GridRule, grid: GridFormat) -> bool:
    if not isinstance(grid.granularity, PerGroup):
        return True
    size = grid.granularity.size
    return size % rule.group_multiple == 0 and (not rule.group_sizes or size in rule.group_sizes)


def _size(grid: GridFormat, part: Part) -> str:
    return f"in groups of {grid.granularity.size}" if isinstance(grid.granularity, PerGroup) else ""


def _sizes(rule: GridRule, part: Part) -> tuple[str, ...]:
    return tuple(map(str, rule.group_sizes)) or (f"a multiple of {rule.group_multiple}",)


def _schemes(rule: GridRule, part: Part) -> tuple[str, ...]:
    words = {True: ("symmetric",), False: ("asymmetric",), None: ("symmetric", "asymmetric")}
    return words[rule.symmetric]


def _fits_scales(rule: GridRule, grid: GridFormat) -> bool:
    """Tell whether scales and offsets fit; offsets, which are no zero points, have to be asked for."""
    if rule.super_block is None:
        return grid.super_block is None or not grid.super_block.has_offsets
    return rule.super_block == grid.super_block


def _scales(super_block: SuperBlock | None) -> str:
    return "scales without offsets" if super_block is None else str(super_block)


_CHECKS: Final = (
    _Check(
        "dtype",
        lambda rule, grid: grid.dtype in rule.dtypes,
        lambda grid, part: str(grid.dtype),
        lambda rule, part: tuple(map(str, rule.dtypes)),
        "{part} of {legal}",
    ),
    _Check(
        "super_block",
        _fits_scales,
        lambda grid, part: _scales(grid.super_block),
        lambda rule, part: (_scales(rule.super_block),),
        "{part} with {legal}",
        "has",
    ),
    _Check(
        "symmetric",
        lambda rule, grid: None in (rule.symmetric, grid.symmetric) or rule.symmetric == grid.symmetric,
        lambda grid, part: "symmetric" if grid.symmetric else "asymmetric",
        _schemes,
        "{legal} {part}",
    ),
    _Check(
        "granularity",
        lambda rule, grid: unit_of(grid.granularity) in rule.units,
        lambda grid, part: _UNITS[part][unit_of(grid.granularity)],
        lambda rule, part: tuple(_UNITS[part][unit] for unit in rule.units),
        "{part} with {legal}",
        "has",
    ),
    _Check("group_size", _fits_size, _size, _sizes, "{part} in groups of {legal} columns"),
    _Check(
        "groups",
        lambda rule, grid: grid.even,
        lambda grid, part: "in groups of columns that are no neighbours, or of several sizes",
        lambda rule, part: ("runs of neighbouring columns, all of one size",),
        "groups that are {legal}",
    ),
)


def narrowed(
    candidates: Sequence[T], rule_of: Callable[[T], GridRule], grid: GridFormat, part: Part
) -> tuple[list[T], list[Misfit]]:
    """Return which of `candidates` take `grid`, or come nearest, and what none of them takes.

    Properties are looked at one after the other, each among what the ones before it have left: so what is
    called legal is so together with the rest of the format.
    """
    left = list(candidates)
    misfits: list[Misfit] = []
    for check in _CHECKS:
        kept = [each for each in left if check.fits(rule_of(each), grid)]
        if not kept and left:
            legal = dict.fromkeys(word for each in left for word in check.legal(rule_of(each), part))
            subject = f"{part}s" if check is _CHECKS[0] or misfits else f"{part}s of {grid.dtype}"
            phrase = check.phrase.format(part=subject, legal=alternatives(legal))
            misfits.append(Misfit(check.field, check.found(grid, part), phrase, check.verb))
        left = kept or left
    return left, misfits


def layer_misfits(rules: Sequence[LayerRule], layer: LayerFormat, grid: GridFormat) -> Iterator[Misfit]:
    """Yield what of a layer whose weight has the format `grid` none of `rules` takes."""
    left, misfits = narrowed(rules, lambda rule: rule.weights, grid, "weight")
    yield from misfits
    kept = [each for each in left if each.takes_sides(layer)]
    if not kept and left:
        found = " times ".join(str(each) for each in (layer.rows, layer.columns) if each is not None)
        legal = dict.fromkeys(each.legal_sides for each in left)
        yield Misfit("shape", found, alternatives(legal), "has")
    if layer.inputs_known:
        yield from _input_misfits(kept or left, layer)


def _input_misfits(rules: Sequence[LayerRule], layer: LayerFormat) -> Iterator[Misfit]:
    if layer.inputs is None:
        if not any(rule.alone for rule in rules):
            legal = dict.fromkeys(str(each) for rule in rules if rule.inputs for each in rule.inputs.dtypes)
            yield Misfit("act_in", "float inputs", f"inputs of {alternatives(legal)}", "has")
        return
    reading = [(rule.inputs, rule.name) for rule in rules if rule.inputs is not None]
    if not reading:
        names = alternatives(dict.fromkeys(rule.name for rule in rules))
        yield Misfit("act_in", f"inputs of {layer.inputs}", f"float inputs with {names}", "has")
        return
    _, misfits = narrowed(reading, lambda pair: pair[0], layer.inputs, "activation")
    yield from (attrs.evolve(each, field=f"act_in.{each.field}") for each in misfits)


def alternatives(words: Mapping[str, object] | Sequence[str]) -> str:
    """Return words as alternatives: ``a, b or c``."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
