"""Statistics as records of plain settings and tensors, and back; what does not fit together is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import attrs
import torch
from torch import Tensor

from tico_config import (
    ArtifactError,
    ConfigError,
    Found,
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    Problem,
    UnsupportedError,
)
from tico_observers._absmax import AbsMaxStatistic
from tico_observers._bins import BINS, LARGEST, OFFSET
from tico_observers._ema import EMAStatistic
from tico_observers._exact_gram import ExactGramStatistic
from tico_observers._gram import CHUNK_ROWS, GramStatistic, panels_of, square_of
from tico_observers._histogram import HistogramStatistic
from tico_observers._identity import IdentityStatistic
from tico_observers._range import Extremes, RangeStatistic
from tico_observers._statistic import Statistic
from tico_observers._tensor_checks import OnNonfinite

S = TypeVar("S", bound=Statistic)


@attrs.frozen(kw_only=True)
class Record:
    """A statistic taken apart: the name of its kind, what JSON can hold of it, and its tensors.

    >>> Record(settings={"rows": 3}).whole("rows")
    3
    """

    kind: str = ""
    settings: Mapping[str, object] = attrs.field(factory=dict)
    tensors: Mapping[str, Tensor] = attrs.field(factory=dict)

    def setting(self, field: str) -> object:
        """Return one of the settings."""
        return self.settings.get(field)

    def whole(self, field: str, low: int = 0) -> int:
        """Return a setting that is an integer of at least `low`."""
        value = self.setting(field)
        if type(value) is not int or value < low:
            raise wrong(field, value, f"an integer of at least {low}")
        return value

    def number(self, field: str) -> float:
        """Return a setting that is a finite number."""
        value = self.setting(field)
        if type(value) is not float or not math.isfinite(value):
            raise wrong(field, value, "a finite number")
        return value

    def tensor(self, field: str, *dtypes: torch.dtype, ndim: int) -> Tensor:
        """Return one of the tensors, of one of `dtypes` and with `ndim` dimensions."""
        value = self.tensors.get(field)
        if value is None or value.dtype not in dtypes or value.ndim != ndim:
            found = value if value is None else Found(f"{value.dtype} of shape {tuple(value.shape)}")
            raise wrong(field, found, f"{' or '.join(map(str, dtypes))} with {ndim} dimensions")
        return value

    def require(self, field: str, holds: bool, expected: str) -> None:
        """Refuse the record where `holds` is False."""
        if not holds:
            raise wrong(field, Found("something else"), expected)


def wrong(field: str, value: object, expected: str) -> ArtifactError:
    """Return the error for one field of a record."""
    return ArtifactError(Problem(field=field, value=value, expected=expected))


def record_of(statistic: Statistic, name: str) -> Record:
    """Return `statistic` taken apart.

    Raises:
        UnsupportedError: it is of a kind that records do not hold.
    """
    match statistic:
        case AbsMaxStatistic(seen=seen):
            record = _range_record(seen)
        case RangeStatistic() | EMAStatistic() | HistogramStatistic():
            record = _range_record(statistic)
        case GramStatistic() | ExactGramStatistic():
            record = _gram_record(statistic)
        case IdentityStatistic(elements=elements):
            record = Record(kind="", settings={"elements": elements}, tensors={})
        case _ if type(statistic) in _RECORDERS:
            record = _RECORDERS[type(statistic)](statistic)
        case _:
            kinds = ", ".join(sorted(_BUILDERS))
            problem = Problem(module=name, field="statistics", value=statistic, expected=f"one of {kinds}")
            raise UnsupportedError(problem)
    return attrs.evolve(record, kind=type(statistic).__name__)


def _range_record(seen: RangeStatistic | EMAStatistic | HistogramStatistic) -> Record:
    granularity = {"kind": type(seen.granularity).__name__, **attrs.asdict(seen.granularity)}
    settings: dict[str, object] = {
        "granularity": granularity,
        "on_nonfinite": seen.on_nonfinite,
        "dropped": seen.dropped,
    }
    tensors = {}
    if seen.extremes is not None:
        tensors = {"minimum": seen.extremes.minimum, "maximum": seen.extremes.maximum}
    if isinstance(seen, EMAStatistic):
        settings["momentum"] = seen.momentum
    if isinstance(seen, HistogramStatistic):
        tensors |= {"keys": seen.keys, "counts": seen.counts}
    return Record(kind="", settings=settings, tensors=tensors)


def _gram_record(seen: GramStatistic | ExactGramStatistic) -> Record:
    match seen:
        case GramStatistic():
            settings = {"columns": seen.columns, "rows": seen.rows}
            upper = square_of(seen.upper) if seen.upper else None
            tensors = {"upper": upper, "pending": torch.cat(seen.pending) if seen.pending else None}
        case ExactGramStatistic():
            settings = {"rows": seen.rows}
            tensors = {"maximum": seen.maximum, "sums": seen.sums}
    present = {field: tensor for field, tensor in tensors.items() if tensor is not None}
    return Record(kind="", settings=settings, tensors=present)


def statistic_from(record: Record) -> Statistic:
    """Return the statistic that was taken apart into `record`.

    Raises:
        ArtifactError: the record does not make a statistic; the field says which part is wrong.
    """
    if record.kind not in _BUILDERS:
        expected, remedy = f"one of {', '.join(sorted(_BUILDERS))}", "import the module that registers it"
        raise ArtifactError(Problem(field="kind", value=record.kind, expected=expected, remedy=remedy))
    statistic = _BUILDERS[record.kind](record)
    again = record_of(statistic, "")
    for field in sorted({*record.settings, *record.tensors} - {*again.settings, *again.tensors}):
        raise wrong(field, Found("a field more"), f"the fields of {record.kind} only")
    return statistic


def _granularity(record: Record) -> Granularity:
    value = record.setting("granularity")
    expected = "PerTensor, PerChannel or PerGroup with its fields"
    try:
        match value:
            case {"kind": "PerTensor", **rest} if not rest:
                return PerTensor()
            case {"kind": "PerChannel", "axis": int(axis), **rest} if not rest:
                return PerChannel(axis)
            case {"kind": "PerGroup", "axis": int(axis), "size": int(size), **rest} if not rest:
                return PerGroup(axis, size)
            case _:
                raise wrong("granularity", value, expected)
    except ConfigError:
        raise wrong("granularity", value, expected) from None


def _on_nonfinite(record: Record) -> OnNonfinite:
    match record.setting("on_nonfinite"):
        case "error":
            record.require("dropped", record.whole("dropped") == 0, "0 where nothing is ignored")
            return "error"
        case "ignore":
            return "ignore"
        case other:
            raise wrong("on_nonfinite", other, "'error' or 'ignore'")


def _extremes(record: Record) -> Extremes | None:
    if "minimum" not in record.tensors and "maximum" not in record.tensors:
        return None
    match _granularity(record):
        case PerTensor():
            ndim = 0
        case PerChannel():
            ndim = 1
        case _:
            ndim = record.tensors["minimum"].ndim if "minimum" in record.tensors else 1
    low, high = (
        record.tensor(end, torch.float32, torch.float64, ndim=ndim) for end in ("minimum", "maximum")
    )
    record.require("maximum", low.shape == high.shape and low.dtype == high.dtype, "like the minimum")
    seen = (low <= high) & low.isfinite() & high.isfinite()
    unseen = (low == torch.inf) & (high == -torch.inf)
    record.require("maximum", bool((seen | unseen).all()), "finite and not below the minimum")
    record.require("minimum", bool(seen.any()), "finite somewhere")
    return Extremes(minimum=low, maximum=high)


def _range(record: Record) -> RangeStatistic:
    return RangeStatistic(
        granularity=_granularity(record),
        extremes=_extremes(record),
        on_nonfinite=_on_nonfinite(record),
        dropped=record.whole("dropped"),
    )


def _absmax(record: Record) -> AbsMaxStatistic:
    seen = _range(record)
    return AbsMaxStatistic(granularity=seen.granularity, on_nonfinite=seen.on_nonfinite, seen=seen)


def _ema(record: Record) -> EMAStatistic:
    momentum = record.setting("momentum")
    if not isinstance(momentum, float) or not 0.0 <= momentum < 1.0:
        raise wrong("momentum", momentum, "a number from 0 and below 1")
    seen = _range(record)
    return EMAStatistic(
        momentum=momentum,
        granularity=seen.granularity,
        extremes=seen.extremes,
        on_nonfinite=seen.on_nonfinite,
        dropped=seen.dropped,
    )


def _histogram(record: Record) -> HistogramStatistic:
    seen = _range(record)
    keys, counts = (record.tensor(field, torch.int64, ndim=1) for field in ("keys", "counts"))
    units = 0 if seen.extremes is None else seen.extremes.minimum.numel()
    record.require("keys", bool((keys[1:] > keys[:-1]).all()), "ascending")
    inside = (keys >= 0) & (keys < units * BINS) & ((keys % BINS - OFFSET).abs() <= LARGEST)
    record.require("keys", bool(inside.all()) and (len(keys) > 0) == (units > 0), "bins of the units seen")
    record.require("counts", len(counts) == len(keys) and bool((counts > 0).all()), "positive, one a key")
    return HistogramStatistic(
        granularity=seen.granularity,
        extremes=seen.extremes,
        keys=keys,
        counts=counts,
        on_nonfinite=seen.on_nonfinite,
        dropped=seen.dropped,
    )


def _gram(record: Record) -> GramStatistic:
    columns, rows = record.whole("columns", 1), record.whole("rows")
    upper = pending = None
    if "pending" in record.tensors:
        pending = record.tensor("pending", torch.float32, torch.float64, ndim=2)
    if "upper" in record.tensors:
        upper = record.tensor("upper", torch.float64, ndim=2)
    waiting = 0 if pending is None else len(pending)
    expected = f"whole chunks of {CHUNK_ROWS} and those that wait"
    record.require("rows", (rows - waiting) % CHUNK_ROWS == 0 and waiting <= rows, expected)
    record.require("upper", (upper is not None) == (rows > waiting), "there for whole chunks")
    for field, tensor, shape in (("upper", upper, columns), ("pending", pending, waiting)):
        fits = tensor is None or (tensor.shape == (shape, columns) and bool(tensor.isfinite().all()))
        record.require(field, fits and waiting < CHUNK_ROWS, f"finite, of {columns} columns")
    return GramStatistic(
        columns=columns,
        rows=rows,
        upper=() if upper is None else panels_of(upper),
        pending=() if pending is None or not waiting else (pending,),
    )


def _exact_gram(record: Record) -> ExactGramStatistic:
    rows, sums = record.whole("rows"), None
    maximum = record.tensor("maximum", torch.float32, torch.float64, ndim=1)
    usable = len(maximum) > 0 and bool((maximum.isfinite() & (maximum >= 0)).all())
    record.require("maximum", usable, "finite and not negative")
    if "sums" in record.tensors:
        sums = record.tensor("sums", torch.int64, ndim=2)
        record.require("sums", sums.shape == (len(maximum), len(maximum)), "one row and column a maximum")
    record.require("sums", (sums is not None) == (rows > 0), "there where rows were seen")
    return ExactGramStatistic(maximum=maximum, rows=rows, sums=sums)


def _identity(record: Record) -> IdentityStatistic:
    return IdentityStatistic(elements=record.whole("elements"))


_BUILDERS: dict[str, Callable[[Record], Statistic]] = {
    "AbsMaxStatistic": _absmax,
    "EMAStatistic": _ema,
    "ExactGramStatistic": _exact_gram,
    "GramStatistic": _gram,
    "HistogramStatistic": _histogram,
    "IdentityStatistic": _identity,
    "RangeStatistic": _range,
}
_RECORDERS: dict[type[Statistic], Callable[[Statistic], Record]] = {}


def register_statistic(
    kind: type[S], take_apart: Callable[[S], Record], build: Callable[[Record], S]
) -> None:
    """Let files hold a statistic of your own: `build` gives back what `take_apart` has taken apart.

    The name of the class stands in the file, so no other statistic may have it. `build` raises
    `ArtifactError` where a record does not make a statistic; the methods of `Record` do.

    Raises:
        ConfigError: another class has the name.
    """
    known = next((each for each in _RECORDERS if each.__name__ == kind.__name__), None)
    again = known is not None and (known.__module__, known.__qualname__) == (
        kind.__module__,
        kind.__qualname__,
    )
    if kind.__name__ in _BUILDERS and not again:
        found, expected = Found(f"a second {kind.__name__}"), "one class of each name"
        raise ConfigError(
            Problem(field="kind", value=found, expected=expected, remedy="rename one of the two")
        )

    def recorded(statistic: Statistic) -> Record:
        if not isinstance(statistic, kind):
            expected = f"a {kind.__name__}"
            raise UnsupportedError(Problem(field="statistics", value=statistic, expected=expected))
        return take_apart(statistic)

    _RECORDERS[kind] = recorded
    _BUILDERS[kind.__name__] = build
