"""What is said of pairs after their scales were folded, and of what is in none."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch import Tensor, nn

from tico_config import SmoothingConfig
from tico_modules import LayerReport, Report, named_modules
from tico_quantizers.calibration import ExpertLayers
from tico_quantizers.equivalence._pair_search import scaled_memory, undecided_in
from tico_quantizers.equivalence._smoothing_pairs import Candidates, FoundPairs, Pair
from tico_quantizers.layers import float_lines
from tico_quantizers.protocol import Converted, Planned

_DOES = "scales norms, linear layers and convolutions"


def lines_left(
    model: nn.Module, algorithm: str, reasons: Mapping[str, str], *, does: str = _DOES
) -> dict[str, LayerReport]:
    """Return the lines of what is left alone: one of experts in one parameter, by the name of their class."""
    experts = {path: each for path, each in named_modules(model) if isinstance(each, ExpertLayers)}
    inside = tuple(f"{path}." if path else "" for path in experts)
    known = {
        path: why for path, why in reasons.items() if path not in experts and not path.startswith(inside)
    }
    lines = float_lines(model, algorithm, known, does=does)
    return {
        path: attrs.evolve(line, module=type(experts[path].original).__name__) if path in experts else line
        for path, line in lines.items()
        if not path.startswith(inside)
    }


def scaled_pairs(
    model: nn.Module,
    algorithm: str,
    found: FoundPairs,
    scales: Mapping[str, Tensor],
    left: Mapping[str, LayerReport],
    figures: Mapping[str, tuple[tuple[str, float], ...]] | None = None,
) -> Converted:
    """Return `model`, into which `scales` were folded, with a line for each module.

    `scales` and further `figures` are those of pairs, by path, `left` the lines of what is in no pair.
    """
    notes: dict[str, list[str]] = {}
    told: dict[str, tuple[tuple[str, float], ...]] = {}
    for pair in found.pairs:
        notes.setdefault(pair.path, []).append(_note(pair))
        spread = _spread(scales[pair.path])
        told[pair.path] = (*(figures or {}).get(pair.path, ()), *spread)
        for path, note in pair.reader_notes().items():
            notes.setdefault(path, []).insert(0, note)
    for path in found.adopted & notes.keys():
        notes[path].append("no data reached it, only its peers")
    lines = tuple(
        LayerReport(
            path=path,
            module=type(module).__name__,
            algorithm=algorithm,
            reason="; ".join(notes[path]),
            figures=told.get(path, ()),
        )
        if path in notes
        else left[path]
        for path, module in named_modules(model)
        if path in notes or path in left
    )
    changed = tuple(module for path, module in named_modules(model) if path in notes)
    return Converted(root=model, modules=changed, report=Report(layers=lines))


def planned_pairs(
    root: nn.Module, candidates: Candidates, config: SmoothingConfig, lines: Mapping[str, LayerReport]
) -> Planned:
    """Return that `root` is left, where the data decide which of the `candidates` are in a pair.

    `lines` are those of what can be in none.
    """
    undecided = undecided_in(candidates, config)
    ordered = tuple(lines[path] for path, _ in named_modules(root) if path in lines)
    changed = tuple(module for path, module in named_modules(root) if path in undecided)
    return Planned(
        converted=Converted(root=root, modules=changed, report=Report(layers=ordered)),
        undecided=undecided,
        memory=(scaled_memory(candidates),),
    )


def _spread(scale: Tensor) -> tuple[tuple[str, float], ...]:
    return ("smallest scale", float(scale.min())), ("largest scale", float(scale.max()))


def _note(pair: Pair) -> str:
    if pair.producer is None:
        return "columns multiplied, and the input by the inverse"
    return f"channels divided for {', '.join(pair.readers)}"
