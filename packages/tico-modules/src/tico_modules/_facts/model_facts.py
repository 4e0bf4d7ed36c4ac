"""What a report tells of a model as a whole: its runs, its bytes, its grids."""

from __future__ import annotations

import json

import attrs
from typing_extensions import Self

from tico_modules._facts.layer_report import LayerReport, line_values, parse_lines
from tico_modules._storage.layout import Layout


@attrs.frozen(kw_only=True)
class RunFacts:
    """One conversion that the model has been through, without its lines.

    Attributes:
        config: the config, as the canonical JSON of `tico_config.to_json`; empty where it is not known.
        model: the `model_fingerprint` of the model that `prepare` was given.
        data: the digest of the tensors that the model was called with.
        calls: the number of these calls.
        versions: library and version.
        seconds: the time that `convert` took, ignored when reports are compared; 0 where it is not known,
            as after loading.
    """

    config: str = ""
    model: str = ""
    data: str = ""
    calls: int = 0
    versions: tuple[tuple[str, str], ...] = ()
    seconds: float = attrs.field(default=0.0, eq=False)

    @property
    def name(self) -> str:
        """The class of the config; empty where it is not known.

        >>> RunFacts(config='{"config": {"kind": "GPTQConfig"}, "schema": 1}').name
        'GPTQConfig'
        """
        values: object = json.loads(self.config) if self.config else None
        match values:
            case {"config": {"kind": str(name)}}:
                return name
            case _:
                return ""


@attrs.frozen(kw_only=True)
class LayerSize:
    """The bytes of what belongs to one line of the report.

    Attributes:
        path: the path of the line.
        before: the bytes of the same in floating point: codes count as the floats that they stand for, and
            grids of activations as nothing. None for operators of a graph, whose codes are plain tensors.
        after: the bytes as they are, with codes, scales and zero points.
        packed: the bytes of codes, scales and zero points of its weights alone.
        weights: the number of weights that have codes.
    """

    path: str
    before: int | None
    after: int
    packed: int = 0
    weights: int = 0


@attrs.frozen(kw_only=True)
class PointRange:
    """What one grid of activations can hold.

    Attributes:
        path: the path of the grid.
        grid: its format, for example ``int8 static``.
        low: the lowest value on it; None where each token has a grid of its own.
        high: the highest value on it; None like `low`.
    """

    path: str
    grid: str
    low: float | None = None
    high: float | None = None


@attrs.frozen(kw_only=True)
class CodeCounts:
    """How often each code of a weight occurs.

    Attributes:
        path: the path of the line that the weight belongs to.
        lowest: the code that `counts` begins with.
        counts: one count for each code, in order.
        rows: the number of rows that were counted, which are at equal distances.
        of_rows: the number of rows that the weight has.
    """

    path: str
    lowest: int
    counts: tuple[int, ...]
    rows: int
    of_rows: int


@attrs.frozen(kw_only=True)
class ModelFacts:
    """What is known of a model beside the lines of its report.

    Attributes:
        name: the class of the model.
        parameters: how many weights and other floating-point numbers it has; None like `before`.
        before: the bytes of all its tensors in floating point, as in `LayerSize`; None with a graph in it.
        after: the bytes of all its tensors.
        runs: the conversions, oldest first.
        earlier: the lines that newer runs have replaced, oldest first.
        sizes: the bytes of each line.
        points: the grids of activations, in the order of the model.
        codes: the codes of the weights with the lowest SQNR, lowest first.
    """

    name: str
    parameters: int | None = 0
    before: int | None = 0
    after: int = 0
    runs: tuple[RunFacts, ...] = ()
    earlier: tuple[LayerReport, ...] = ()
    sizes: tuple[LayerSize, ...] = ()
    points: tuple[PointRange, ...] = ()
    codes: tuple[CodeCounts, ...] = ()

    @property
    def bits(self) -> float | None:
        """The mean bits of a weight that has codes, with scales and zero points; None where none has.

        >>> ModelFacts(name="Net", sizes=(LayerSize(path="", before=8, after=3, packed=2, weights=4),)).bits
        4.0
        """
        weights = sum(size.weights for size in self.sizes)
        return 8 * sum(size.packed for size in self.sizes) / weights if weights else None

    def without_times(self) -> Self:
        """Return the same with every `seconds` 0."""
        return attrs.evolve(
            self,
            runs=tuple(attrs.evolve(run, seconds=0.0) for run in self.runs),
            earlier=tuple(attrs.evolve(line, seconds=0.0) for line in self.earlier),
        )

    def to_values(self) -> dict[str, object]:
        """Return the facts as values for JSON.

        >>> facts = ModelFacts(name="Net", points=(PointRange(path="x", grid="int8 static", low=-1.0),))
        >>> ModelFacts.from_layout(Layout("report.model", json.loads(json.dumps(facts.to_values())))) == facts
        True
        """
        return {
            "name": self.name,
            "parameters": self.parameters,
            "before": self.before,
            "after": self.after,
            "runs": [{**attrs.asdict(run), "versions": dict(run.versions)} for run in self.runs],
            "earlier": list(map(line_values, self.earlier)),
            "sizes": list(map(attrs.asdict, self.sizes)),
            "points": list(map(attrs.asdict, self.points)),
            "codes": list(map(attrs.asdict, self.codes)),
        }

    @classmethod
    def from_layout(cls, layout: Layout) -> Self:
        """Return the facts for which `to_values` gave the values in `layout`.

        Raises:
            ArtifactError: a value is missing, wrong or left over.
        """
        layout.require_keys(field.name for field in attrs.fields(cls))
        return cls(
            name=layout.text("name"),
            parameters=layout.optional_integer("parameters"),
            before=layout.optional_integer("before"),
            after=layout.integer("after"),
            runs=tuple(map(_run, layout.objects("runs"))),
            earlier=parse_lines(layout.values["earlier"]),
            sizes=tuple(map(_size, layout.objects("sizes"))),
            points=tuple(map(_point, layout.objects("points"))),
            codes=tuple(map(_codes, layout.objects("codes"))),
        )


def _run(layout: Layout) -> RunFacts:
    layout.require_keys(field.name for field in attrs.fields(RunFacts))
    versions = layout.child("versions")
    return RunFacts(
        **{name: layout.text(name) for name in ("config", "model", "data")},
        calls=layout.integer("calls"),
        versions=tuple((name, versions.text(name)) for name in versions.values),
        seconds=_number(layout, "seconds"),
    )


def _size(layout: Layout) -> LayerSize:
    layout.require_keys(field.name for field in attrs.fields(LayerSize))
    numbers = {name: layout.integer(name) for name in ("after", "packed", "weights")}
    return LayerSize(path=layout.text("path"), before=layout.optional_integer("before"), **numbers)


def _point(layout: Layout) -> PointRange:
    layout.require_keys(field.name for field in attrs.fields(PointRange))
    ends = {name: None if layout.values[name] is None else _number(layout, name) for name in ("low", "high")}
    return PointRange(path=layout.text("path"), grid=layout.text("grid"), **ends)


def _codes(layout: Layout) -> CodeCounts:
    layout.require_keys(field.name for field in attrs.fields(CodeCounts))
    lowest = layout.values["lowest"]
    if type(lowest) is not int:
        raise layout.make_error("lowest", "an integer")
    return CodeCounts(
        path=layout.text("path"),
        lowest=lowest,
        counts=layout.integers("counts"),
        rows=layout.integer("rows"),
        of_rows=layout.integer("of_rows"),
    )


def _number(layout: Layout, name: str) -> float:
    value = layout.values.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise layout.make_error(name, "a number")
    return float(value)
