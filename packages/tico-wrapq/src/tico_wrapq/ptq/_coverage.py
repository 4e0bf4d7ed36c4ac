"""Which modules of a model are quantized, by which wrapper, and which are not, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor, nn

from tico_modules import (
    LayerReport,
    PackedWeight,
    QuantizedExperts,
    QuantizedModule,
    RestorableModule,
    child_path,
    children,
    named_modules,
    parameter,
    report,
)
from tico_quantizers import Prepared
from tico_quantizers.calibration import ONE_CHANNEL, SPOILED, spoiled_points
from tico_wrapq.base import QuantModuleBase, lookup
from tico_wrapq.ptq._quantizer import CALL_ENDS, PTQCalibration
from tico_wrapq.ptq._sites import inner, own_floats
from tico_wrapq.steps import STEPS, Stepped, StepPoints
from tico_wrapq.torch_nn import QuantEmbedding, QuantEmbeddingBag, QuantUnary


@attrs.frozen(kw_only=True)
class CoverageLine:
    """One module: its class, its points on a grid, or the reason why it is float.

    `macs` are the multiply-accumulates that calibration has measured, or None.
    `taken_by_one` is the share of a point's range that a single channel takes, by point: of every point while
    the model is prepared, and of those with 0.99 or more afterwards.
    `uneven_calls` are the smallest and the largest value of each call in a forward pass, by point, where one
    grid serves several calls and the widest is at least four times as wide as the narrowest.
    """

    path: str
    module: str
    points: tuple[str, ...] = ()
    reason: str = ""
    macs: int | None = None
    multiplies_integers: bool = False
    taken_by_one: tuple[tuple[str, float], ...] = ()
    uneven_calls: tuple[tuple[str, tuple[tuple[float, float], ...]], ...] = ()


@attrs.frozen(kw_only=True)
class Coverage:
    """Every module that computes or owns parameters, and the share of the parameters that are integers now.

    `unmeasured` are the modules that own float weights whose multiply-accumulates calibration could not
    measure, such as experts in one parameter, with the number of parameters of each; none before any data.
    """

    lines: tuple[CoverageLine, ...]
    quantized_parameters: int
    parameters: int
    unmeasured: tuple[tuple[str, int], ...] = ()

    @property
    def share(self) -> float:
        """Quantized parameters as a share of all, 0 to 1."""
        return self.quantized_parameters / self.parameters if self.parameters else 0.0

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of the linear layers, convolutions and products that calibration has measured.

        None if it has measured none. What a module's own forward multiplies is not among them, unless its
        wrapper says how much that is; see `unmeasured`.
        """
        measured = [line.macs for line in self.lines if line.macs is not None]
        return sum(measured) if measured else None

    @property
    def macs_share(self) -> float | None:
        """Of these, the share with both operands on a grid, 0 to 1; None where nothing was measured."""
        macs = self.macs
        integer = sum(line.macs or 0 for line in self.lines if line.multiplies_integers)
        return None if macs is None else integer / macs

    @property
    def unmeasured_share(self) -> float:
        """The share of the parameters, 0 to 1, whose multiply-accumulates were not measured."""
        parameters = sum(count for _, count in self.unmeasured)
        return parameters / self.parameters if self.parameters else 0.0

    def to_json(self) -> str:
        """Return the coverage as JSON."""
        totals = {"share": self.share, "macs": self.macs, "macs_share": self.macs_share}
        totals["unmeasured_share"] = self.unmeasured_share
        return json.dumps(attrs.asdict(self) | totals)

    def to_markdown(self) -> str:
        """Return the coverage as a Markdown table with the shares below."""
        head = f"| path | module | points | {ONE_CHANNEL} | macs | reason |\n|---|---|---|---|---|---|"
        parameters = f"{self.share:.1%} of {self.parameters} parameters are quantized"
        sentences = [parameters, self._macs_sentence(), *self._spoiled_sentences()]
        sentences += self._uneven_sentences()
        return "\n".join([head, *map(_row, self.lines), "", *sentences])

    @property
    def spoiled(self) -> tuple[tuple[str, float], ...]:
        """The points of whose range one channel takes 0.99 or more, by path, the largest share first."""
        every = (
            (child_path(line.path, name), share) for line in self.lines for name, share in line.taken_by_one
        )
        return tuple(sorted((one for one in every if one[1] >= SPOILED), key=lambda one: -one[1]))

    def _spoiled_sentences(self) -> list[str]:
        if not self.spoiled:
            return []
        first = ", ".join(f"{path} {share:.2%}" for path, share in self.spoiled[:3])
        count = f"{len(self.spoiled)} points"
        return [f"one channel takes at least {SPOILED:.0%} of the range of {count}: {first}"]

    @property
    def uneven_calls(self) -> tuple[tuple[str, tuple[tuple[float, float], ...]], ...]:
        """The points whose one grid serves calls of different ranges, by path, with these ranges."""
        return tuple(
            (child_path(line.path, name), ranges) for line in self.lines for name, ranges in line.uneven_calls
        )

    def _uneven_sentences(self) -> list[str]:
        if not self.uneven_calls:
            return []
        first = "; ".join(f"{path} {_ranges(ranges)}" for path, ranges in self.uneven_calls[:3])
        return [f"one grid serves calls of different ranges at {len(self.uneven_calls)} points: {first}"]

    def _macs_sentence(self) -> str:
        if self.macs_share is None:
            return "the share of multiply-accumulates is unknown: calibration has measured none"
        if not self.unmeasured:
            return f"{self.macs_share:.1%} of {self.macs} multiply-accumulates have both operands on a grid"
        more = ", …" if len(self.unmeasured) > 3 else ""
        first = ", ".join(path or "the model itself" for path, _ in self.unmeasured[:3])
        return (
            f"{self.macs_share:.1%} of the {self.macs} multiply-accumulates that were measured have both "
            f"operands on a grid; those of {self.unmeasured_share:.1%} of the parameters, which are float, "
            f"were not measured: {first}{more}"
        )

    def __str__(self) -> str:
        """Return the Markdown table."""
        return self.to_markdown()


def _ranges(ranges: tuple[tuple[float, float], ...]) -> str:
    return ", ".join(f"{low:.3g} to {high:.3g}" for low, high in ranges)


def _row(line: CoverageLine) -> str:
    shares = [f"{name} {share:.2%}" for name, share in line.taken_by_one if share >= SPOILED]
    macs = "" if line.macs is None else str(line.macs)
    cells = (line.path, line.module, ", ".join(line.points), ", ".join(shares), macs, line.reason)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def coverage(model: nn.Module) -> Coverage:
    """Return what is quantized in a prepared or converted model.

    >>> coverage(nn.Linear(2, 2)).share
    0.0
    """
    known = _known(model)
    lines: list[CoverageLine] = []
    skipped: set[str] = set()
    for path, module in named_modules(model):
        parts = set(children(module)) if path in skipped else inner(module)
        skipped |= {child_path(path, name) for name in parts}
        run = known.get(path, LayerReport(path=path, module="", algorithm=""))
        is_line = isinstance(module, RestorableModule) or not children(module) or own_floats(module)
        # A part of something else has a line only where an algorithm has said what became of it.
        if isinstance(module, StepPoints):
            line = _line(module.path, module, known.get(module.path, run))
            whole = _reads_integers(model, module)
            lines.append(attrs.evolve(line, multiplies_integers=line.multiplies_integers and whole))
        if isinstance(module, StepPoints | Stepped):
            continue  # the points have the line of the module whose forward they run
        if run.reason and run.algorithm if path in skipped else is_line or run.reason:
            lines.append(_line(path, module, run))
    packed = {id(m): m for _, m in named_modules(model) if isinstance(m, PackedWeight)}
    quantized = sum(torch.Size(weight.shape).numel() for weight in packed.values())
    rest: list[Tensor] = list(model.parameters())
    return Coverage(
        lines=tuple(lines),
        quantized_parameters=quantized,
        parameters=quantized + sum(each.numel() for each in rest),
        unmeasured=_unmeasured(model, lines),
    )


def _unmeasured(model: nn.Module, lines: list[CoverageLine]) -> tuple[tuple[str, int], ...]:
    """Return what owns matrices whose multiply-accumulates are unknown, once any are known."""
    if all(line.macs is None for line in lines):
        return ()
    modules = dict(named_modules(model))
    unknown = [(line.path, modules[line.path]) for line in lines if line.macs is None]
    found = ((path, _matrix_elements(module)) for path, module in unknown if not _multiplies_nothing(module))
    return tuple(each for each in found if each[1])


def _matrix_elements(module: nn.Module) -> int:
    own = (parameter(module, name) for name in own_floats(module))
    return sum(each.numel() for each in own if each is not None and each.ndim > 1)


def _multiplies_nothing(module: nn.Module) -> bool:
    """Whether the class is known as one that looks rows up, normalizes, or computes element by element."""
    wrapper = lookup(type(module))
    return wrapper is not None and issubclass(wrapper, QuantEmbedding | QuantEmbeddingBag | QuantUnary)


def _line(path: str, module: nn.Module, run: LayerReport) -> CoverageLine:
    points = _points(module) if isinstance(module, RestorableModule) else ()
    figures = dict(run.figures)
    shares = dict(spoiled_points(run.figures))
    if isinstance(module, QuantModuleBase):
        seen = ((name, point.taken_by_one) for name, point in module.named_points())
        shares |= {name: share for name, share in seen if share is not None}
    return CoverageLine(
        path=path,
        module=_kind(module),
        points=points,
        reason="" if points else run.reason,
        macs=int(figures["macs"]) if "macs" in figures else None,
        multiplies_integers=_multiplies_integers(module),
        taken_by_one=tuple(shares.items()),
        uneven_calls=tuple(_uneven_calls(run)),
    )


def _uneven_calls(run: LayerReport) -> Iterator[tuple[str, tuple[tuple[float, float], ...]]]:
    """Yield the points of a line with the ends of each call, as `PTQCalibration.figures` has them."""
    ends: dict[str, list[list[float]]] = {}
    for name, value in run.figures:
        for index, end in enumerate(CALL_ENDS):
            point, found, _ = name.partition(f" {end} ")
            if found:
                ends.setdefault(point, [[], []])[index].append(value)
    for point, (lows, highs) in ends.items():
        yield point, tuple(zip(lows, highs, strict=True))


def _multiplies_integers(module: nn.Module) -> bool:
    if isinstance(module, QuantizedModule):
        return module.act_in is not None
    return isinstance(module, QuantModuleBase) and module.multiplies_integers


def _reads_integers(model: nn.Module, steps: StepPoints) -> bool:
    """Whether the lists of parameters whose weights steps read hold integers, too."""
    paths = [child_path(steps.path, each) for each in steps.lists_read]
    held = (model.get_submodule(child_path(path, STEPS)) for path in paths)
    return all(isinstance(each, StepPoints) and each.multiplies_integers for each in held)


def _known(model: nn.Module) -> dict[str, LayerReport]:
    """Return what is known of modules: from the runs that made them, and from one that is not finished."""
    known = {line.path: line for line in report(model).layers}
    for value in vars(model).values():
        if isinstance(value, Prepared) and isinstance(value.calibration, PTQCalibration):
            known |= _under_way(value.calibration)
    return known


def _under_way(calibration: PTQCalibration) -> dict[str, LayerReport]:
    wrapped = calibration.wrapped
    lines = [LayerReport(path=path, module="", algorithm="ptq") for path in wrapped.wrappers]
    return {
        line.path: attrs.evolve(line, figures=calibration.figures(line.path))
        for line in (*lines, *wrapped.left)
    }


def _kind(module: nn.Module) -> str:
    return module.source if isinstance(module, StepPoints) else type(module).__name__


def _points(module: RestorableModule) -> tuple[str, ...]:
    if isinstance(module, QuantizedModule):
        grids = {"act_in": module.act_in, "act_out": module.act_out}
        labels = [f"{name} {grid.label}" for name, grid in grids.items() if grid is not None]
        return (f"weight {module.packed.dtype}", *labels)
    if isinstance(module, QuantizedExperts):
        return module.labels
    if not isinstance(module, QuantModuleBase):
        return ()
    weights = [f"{name} {spec}" for name, spec in module.weight_specs.items() if spec.is_quantized]
    points = [f"{name} {point.label}" for name, point in module.named_points() if point.is_quantized]
    return (*weights, *points)
