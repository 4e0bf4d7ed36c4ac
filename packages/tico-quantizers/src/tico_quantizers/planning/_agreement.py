"""The law of plans: `convert` reports what was planned, and its integers take the bytes that were planned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from torch import nn

from tico_modules import LayerReport, bytes_by_line, report, total_bytes
from tico_quantizers.calibration import UNCALLED
from tico_quantizers.planning._plan import Plan
from tico_quantizers.planning._plan_line import PlanLine

_NOT_REACHED: Final = (UNCALLED, "no calibration data reached")


def differences(plan: Plan, converted: nn.Module) -> list[str]:
    """Return in words where the model `converted` is another one than `plan` says; empty if it is not.

    Of a line that the data decide on, only what does not depend on them is compared; what no data have
    reached is left out.

    >>> differences(Plan(lines=(), bytes_before=8, bytes=8), nn.Linear(1, 1))
    ["lines: planned [], found ['']"]
    """
    open_paths = {line.path for line in plan.lines if line.undecided}
    found = [line for line in report(converted).layers if not _is_beside(line, open_paths)]
    planned = [line for line in plan.lines if not _is_beside(line, open_paths)]
    paths = [line.path for line in found]
    if [line.path for line in planned] != paths:
        known = {line.path for line in planned}
        only = [path for path in paths if path not in known]
        return [f"lines: planned {sorted(known - set(paths))}, found {only}"]
    sizes = bytes_by_line(converted, paths)
    pairs = zip(planned, found, strict=True)
    reached = [pair for pair in pairs if not any(what in pair[1].reason for what in _NOT_REACHED)]
    texts = [text for one, line in reached for text in _line_differences(one, line, sizes[line.path])]
    exact = len(reached) == len(found) and all(line.bytes_after is not None for line in planned)
    if exact and plan.bytes != total_bytes(converted):
        texts.append(f"bytes: planned {plan.bytes}, found {total_bytes(converted)}")
    return texts


def _is_beside(line: LayerReport | PlanLine, open_paths: set[str]) -> bool:
    """Whether a line says that nothing was done inside of a module on which the data decide.

    There is one only where nothing was done to the module itself.
    """
    above = line.path
    while above and not line.algorithm:
        above = above.rpartition(".")[0]
        if above in open_paths:
            return True
    return False


def _line_differences(planned: PlanLine, found: LayerReport, size: int) -> Iterator[str]:
    names = ["module", "algorithm"]
    if planned.bytes_after is not None:
        names += ["weight", "activation", "bits", "group_size"]
        if planned.bytes_after != size:
            yield f"{planned.path}: bytes: planned {planned.bytes_after}, found {size}"
    is_float = (planned.weight, planned.activation) == ("float", "float")
    names += ["reason"] if is_float and not planned.undecided else []
    for name in names:
        told, shown = getattr(planned, name), getattr(found, name)
        if told != shown:
            yield f"{planned.path}: {name}: planned {told!r}, found {shown!r}"
