"""Which modules of a model are quantized, by which wrapper, and which are not, and why."""

from __future__ import annotations

import json

import attrs
from torch import Tensor, nn

from tico_quantizers import QuantizedModule, RestorableModule, children, named_modules, report
from tico_wrapq._quant_module_base import QuantModuleBase


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
    reasons = {line.path: line.reason for line in report(model).layers}
    lines: list[CoverageLine] = []
    inside: tuple[str, ...] = ()
    for path, module in named_modules(model):
        if path.startswith(inside) and inside:
            continue
        if isinstance(module, RestorableModule):
            lines.append(_line(path, module))
            if not any(isinstance(child, RestorableModule) for child in children(module).values()):
                inside = (*inside, f"{path}." if path else "")
        elif not children(module) or reasons.get(path):
            kind = type(module).__name__
            lines.append(CoverageLine(path=path, module=kind, reason=reasons.get(path, "")))
    quantized = sum(_elements(m) for _, m in named_modules(model) if isinstance(m, QuantizedModule))
    rest: list[Tensor] = list(model.parameters())
    return Coverage(
        lines=tuple(lines),
        quantized_parameters=quantized,
        parameters=quantized + sum(parameter.numel() for parameter in rest),
    )


def _elements(module: QuantizedModule) -> int:
    elements = 1
    for size in module.packed.shape:
        elements *= size
    return elements


def _line(path: str, module: RestorableModule) -> CoverageLine:
    points: list[str] = []
    if isinstance(module, QuantizedModule):
        grids = {"act_in": module.act_in, "act_out": module.act_out}
        points = [f"weight {module.packed.dtype}"]
        points += [f"{name} {grid.label}" for name, grid in grids.items() if grid is not None]
    if isinstance(module, QuantModuleBase):
        points = [f"{name} {point.spec}" for name, point in module.named_points() if point.is_quantized]
    return CoverageLine(path=path, module=type(module).__name__, points=tuple(points))
