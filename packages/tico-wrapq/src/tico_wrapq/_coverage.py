"""Which modules of a model are quantized, by which wrapper, and which are not, and why."""

from __future__ import annotations

import json

import attrs
import torch
from torch import Tensor, nn

from tico_quantizers import (
    PackedWeight,
    Prepared,
    QuantizedModule,
    RestorableModule,
    child_path,
    children,
    named_modules,
    report,
)
from tico_wrapq._quant_module_base import QuantModuleBase
from tico_wrapq._quantizer import PTQCalibration
from tico_wrapq._sites import inner


@attrs.frozen(kw_only=True)
class CoverageLine:
    """One module: what stands there, its points on a grid, or the reason why it is float."""

    path: str
    module: str
    points: tuple[str, ...] = ()
    reason: str = ""


@attrs.frozen(kw_only=True)
class Coverage:
    """Every module that computes, and the share of the parameters that are integers now."""

    lines: tuple[CoverageLine, ...]
    quantized_parameters: int
    parameters: int

    @property
    def share(self) -> float:
        """Quantized parameters as a share of all, 0 to 1."""
        return self.quantized_parameters / self.parameters if self.parameters else 0.0

    def to_json(self) -> str:
        """Return the coverage as JSON."""
        return json.dumps(attrs.asdict(self))

    def __str__(self) -> str:
        """Return the coverage as a Markdown table with the share below."""
        rows = [
            f"| {one.path} | {one.module} | {', '.join(one.points)} | {one.reason} |" for one in self.lines
        ]
        head = "| path | module | points | reason |\n|---|---|---|---|"
        return "\n".join([head, *rows, "", f"{self.share:.1%} of {self.parameters} parameters are quantized"])


def coverage(model: nn.Module) -> Coverage:
    """Return what is quantized in a prepared or converted model.

    >>> coverage(nn.Linear(2, 2)).share
    0.0
    """
    reasons = _reasons(model)
    lines: list[CoverageLine] = []
    skipped: set[str] = set()
    for path, module in named_modules(model):
        parts = set(children(module)) if path in skipped else inner(module)
        skipped |= {child_path(path, name) for name in parts}
        if path in skipped:
            continue
        if isinstance(module, RestorableModule):
            lines.append(CoverageLine(path=path, module=_kind(module), points=_points(module)))
        elif not children(module) or reasons.get(path):
            lines.append(CoverageLine(path=path, module=_kind(module), reason=reasons.get(path, "")))
    packed = {id(m): m for _, m in named_modules(model) if isinstance(m, PackedWeight)}
    quantized = sum(torch.Size(weight.shape).numel() for weight in packed.values())
    rest: list[Tensor] = list(model.parameters())
    return Coverage(
        lines=tuple(lines),
        quantized_parameters=quantized,
        parameters=quantized + sum(parameter.numel() for parameter in rest),
    )


def _reasons(model: nn.Module) -> dict[str, str]:
    """Return why modules are float: from the runs that made them, and from one that is not finished."""
    reasons = {line.path: line.reason for line in report(model).layers}
    for value in vars(model).values():
        if isinstance(value, Prepared) and isinstance(value.calibration, PTQCalibration):
            reasons |= {line.path: line.reason for line in value.calibration.wrapped.left}
    return reasons


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _points(module: RestorableModule) -> tuple[str, ...]:
    if isinstance(module, QuantizedModule):
        grids = {"act_in": module.act_in, "act_out": module.act_out}
        labels = [f"{name} {grid.label}" for name, grid in grids.items() if grid is not None]
        return (f"weight {module.packed.dtype}", *labels)
    if not isinstance(module, QuantModuleBase):
        return ()
    weights = [f"{name} {spec}" for name, spec in module.weight_specs.items() if spec.is_quantized]
    points = [f"{name} {point.label}" for name, point in module.named_points() if point.is_quantized]
    return (*weights, *points)
