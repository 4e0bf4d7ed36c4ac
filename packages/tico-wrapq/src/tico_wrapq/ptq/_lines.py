"""What the report says of the modules that wrappers leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import nn

from tico_modules import (
    SQNR,
    LayerReport,
    PackedWeight,
    QuantizedModule,
    children,
    parameter,
    weight_sqnr,
)
from tico_wrapq.base import QuantModuleBase
from tico_wrapq.steps import StepPoints
from tico_wrapq.torch_nn import LayerWrapper

Holder: TypeAlias = tuple[str, str]
"""The path of a wrapper, and the name of a weight that it stands for."""


def tied_weights(wrappers: Mapping[str, QuantModuleBase]) -> list[list[Holder]]:
    """Return those that hold one weight, for each weight that several hold."""
    holders: dict[int, list[Holder]] = {}
    for path, wrapper in wrappers.items():
        for name, weight in wrapper.float_weights().items():
            holders.setdefault(id(weight), []).append((path, name))
    return [each for each in holders.values() if len(each) > 1]


def untied_notes(tied: list[list[Holder]], finished: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return a note for each module whose weight was tied to another's and whose codes are not."""
    notes: dict[str, str] = {}
    for holders in tied:
        if len({_codes(finished[path], name) for path, name in holders if path in finished}) > 1:
            paths = ", ".join(path or "the model itself" for path, _ in holders)
            notes |= {path: f"no longer tied: one weight of {paths}" for path, _ in holders}
    return notes


def _codes(module: nn.Module, name: str) -> tuple[int, ...]:
    """Return what the codes of a weight are known by; empty where it is float."""
    if isinstance(module, StepPoints):
        return tuple(id(each) for each in module.weights[name].packed) if name in module.weights else ()
    return (id(module.packed),) if isinstance(module, QuantizedModule) else ()


def line_of(path: str, wrapper: QuantModuleBase, new: nn.Module, note: str) -> LayerReport:
    """Return the line of the module `new`, which `wrapper` at `path` has left, with what is to be noted."""
    packed = _packed(wrapper, new)
    return LayerReport(
        reason=note,
        path=path,
        module=wrapper.source,
        algorithm="ptq",
        weight=_weight_label(wrapper, new),
        activation=_activation_label(wrapper, new),
        bits=None if packed is None else packed.bits,
        group_size=None if packed is None else packed.group_size,
    )


def weight_figures(wrapper: QuantModuleBase, new: nn.Module) -> tuple[tuple[str, float], ...]:
    """Return how far the codes of `new` are from the float weight of the layer that `wrapper` stands for."""
    if not isinstance(wrapper, LayerWrapper) or not isinstance(new, QuantizedModule):
        return ()
    weight = parameter(wrapper.layer, "weight")
    sqnr = None if weight is None else weight_sqnr(wrapper.rows_of(weight), new.packed)
    return () if sqnr is None else ((SQNR, sqnr),)


def _weight_label(wrapper: QuantModuleBase, new: nn.Module) -> str:
    if isinstance(new, StepPoints):
        return ", ".join(f"{name} {each.label}" for name, each in new.weights.items()) or "float"
    packed = _packed(wrapper, new)
    if packed is None:
        return "float"
    unit = "per row" if packed.group_size is None else f"group {packed.group_size}"
    kept = "" if wrapper.weight_specs else ", codes kept"
    return f"{packed.dtype} {unit}{kept}"


def _packed(wrapper: QuantModuleBase, new: nn.Module) -> PackedWeight | None:
    """Return the one weight of integers that `new` has; None where it has none, or several."""
    inner = children(new).get(wrapper.kept or "") if isinstance(new, QuantModuleBase) else new
    return inner.packed if isinstance(inner, QuantizedModule) else None


def _activation_label(wrapper: QuantModuleBase, new: nn.Module) -> str:
    if isinstance(new, QuantizedModule):
        grids = {"act_in": new.act_in, "act_out": new.act_out}
    else:
        grids = {name: point.fixed for name, point in wrapper.named_points()}
    named = [f"{name} {grid.label}" for name, grid in grids.items() if grid is not None]
    return ", ".join(named) or "float"


def joined_notes(*notes: Mapping[str, str]) -> dict[str, str]:
    paths = dict.fromkeys(path for each in notes for path in each)
    return {path: "; ".join(each[path] for each in notes if path in each) for path in paths}
