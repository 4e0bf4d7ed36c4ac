"""What wrappers will leave of a model, before there are data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import nn

from tico_config import Granularity, PerGroup, PerTensor, PTQConfig
from tico_modules import ActivationGrid, Edit, LayerReport, Report, child_path, named_modules, parameter
from tico_quantizers import Converted, Planned
from tico_quantizers.conversion import SKIPPED
from tico_wrapq.base import REGISTRY, QuantModuleBase, QuantPoint, WeightCodes
from tico_wrapq.ptq._folds import foldable
from tico_wrapq.ptq._lines import joined_notes, line_of, tied_weights, untied_notes
from tico_wrapq.ptq._wrapping import Wrapped, wrap
from tico_wrapq.steps import StepPoints

_STEPS: Final = "decided by the data: the steps of its own forward, with a grid each, show when it is run"
_FOLDED: Final = "decided by the data: folded into one, unless something else reads what is between them"
_SHARED: Final = "decided by the data: whether it shares its codes with {}, whose steps show when it is run"
_UNITS: Final = "decided by the data: how many scales {} has"


def planned(model: nn.Module, config: PTQConfig, edit: Edit) -> Planned:
    """Return what becomes of `model`, whose tensors have no values, when `config` is converted.

    Points get grids of the format that they are to have, and batch norms that may be folded are.
    """
    wrapped = wrap(model, config, REGISTRY.with_installed(), edit)
    open_points, shared = _fix_points(wrapped, edit), _shared_with_steps(wrapped)
    folds = list(foldable(wrapped.root, config))
    folded = {path: new for fold in folds for path, new in fold.finish().items()}
    for _, point in (each for fold in folds for each in fold.norm.named_points()):
        point.fix(None, edit)
    weights, tied = WeightCodes(), tied_weights(wrapped.wrappers)
    steps = {each.path for each in wrapped.steps}
    finished = {
        path: folded[path] if path in folded else wrapper.finish(weights, edit)
        for path, wrapper in wrapped.wrappers.items()
        if path not in steps
    }
    of_folds = {path: note for fold in folds for path, note in fold.notes().items()}
    notes = joined_notes(wrapped.notes, untied_notes(tied, finished), of_folds)
    root, lines = wrapped.root, [*wrapped.left, *map(_step_line, wrapped.steps)]
    for path, new in finished.items():
        wrapper = wrapped.wrappers[path]
        root = edit.replace(root, wrapper, new) if new is not wrapper else root
        lines.append(line_of(path, wrapper, new, notes.get(path, "")))
    by_path = {line.path: line for line in lines}
    ordered = tuple(by_path[path] for path, _ in named_modules(root) if path in by_path)
    return Planned(
        converted=Converted(
            root=root, modules=(*finished.values(), *wrapped.steps), report=Report(layers=ordered)
        ),
        rules={path: _rule(path, wrapper, config) for path, wrapper in wrapped.wrappers.items()},
        undecided={**dict.fromkeys(folded, _FOLDED), **shared, **open_points, **dict.fromkeys(steps, _STEPS)},
        unsized=frozenset({*steps, *shared, *open_points}),
        notes=(SKIPPED,) if config.on_uncalibrated == "skip" else (),
    )


def _fix_points(wrapped: Wrapped, edit: Edit) -> dict[str, str]:
    """Give each point a grid without values; return, by module, of which it is not known how large it is."""
    found: dict[str, str] = {}
    for path, wrapper in wrapped.wrappers.items():
        several = []
        for name, point in wrapper.named_points():
            if point.needs_data and point.fixed is None:
                point.fix(_grid(point, point.granularity), edit)
                several += [] if _has_one_scale(point.granularity) else [name]
        if several:
            found[path] = _UNITS.format(", ".join(several))
    return found


def _shared_with_steps(wrapped: Wrapped) -> dict[str, str]:
    """Return, by path, the modules whose weight a module with steps holds, too."""
    served = dict(named_modules(wrapped.root))
    owned = {
        id(parameter(served[each.path], name)): each.path
        for each in wrapped.steps
        for name in each.weight_specs
    }
    return {
        path: _SHARED.format(owned[id(weight)])
        for path, wrapper in wrapped.wrappers.items()
        for weight in wrapper.float_weights().values()
        if id(weight) in owned
    }


def _grid(point: QuantPoint, granularity: Granularity) -> ActivationGrid:
    size = () if _has_one_scale(granularity) else (0,)
    return ActivationGrid(
        torch.empty(size, device="meta"),
        torch.empty(size, dtype=torch.int32, device="meta"),
        dtype=point.spec.dtype,
        granularity=granularity,
        symmetric=point.spec.is_symmetric,
    )


def _has_one_scale(granularity: Granularity) -> bool:
    # Of blocks, those of NVFP4 alone need data: for the scale of the tensor.
    return isinstance(granularity, PerTensor | PerGroup)


def _step_line(steps: StepPoints) -> LayerReport:
    return LayerReport(path=steps.path, module=steps.source, algorithm="ptq")


def _rule(path: str, wrapper: QuantModuleBase, config: PTQConfig) -> str:
    """Return which fields or overrides decided on the points of a wrapper, each with the points."""
    found: dict[str, list[str]] = {}
    for name, origin in _origins(path, wrapper, config):
        found.setdefault(origin, []).append(name)
    return "; ".join(f"{', '.join(names)}: {origin}" for origin, names in found.items())


def _origins(path: str, wrapper: QuantModuleBase, config: PTQConfig) -> Iterator[tuple[str, str]]:
    for name in wrapper.weight_specs:
        yield name, config.resolve(child_path(path, name), "weight").origin
    for name, point in wrapper.named_points():
        origin = config.resolve(child_path(path, name)).origin
        if point.is_quantized or origin != "activation":  # else it is out of scope
            yield name, origin
