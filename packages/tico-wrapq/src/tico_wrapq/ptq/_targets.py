"""What of a model that is to be wrapped the target of its config does not take."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

import attrs
from torch import nn

from tico_config import (
    GridFormat,
    LayerFormat,
    PerChannel,
    PerGroup,
    PerTensor,
    Problem,
    PTQConfig,
    QuantSpec,
    Rule,
)
from tico_modules import QuantizedModule, child_path, parameter
from tico_quantizers.layers import (
    as_layer,
    columns,
    format_of,
    layer_kind,
    multiplication_problems,
    output_embeddings,
    shape,
)
from tico_wrapq.base import QuantModuleBase, Role
from tico_wrapq.ptq._sites import ModuleSite
from tico_wrapq.steps import StepPoints

_REMEDY: Final = (
    "choose that for all or by an override, leave it float by no_quant(), or start from what"
    " target.configs(PTQConfig) gives"
)
_FIELDS: Final[Mapping[str, str]] = {
    "symmetric": "qscheme",
    "group_size": "granularity",
    "groups": "granularity",
}
"""What specs call the properties of a format."""

Specs = Mapping[str, QuantSpec]


def target_problems(
    root: nn.Module, found: list[ModuleSite], specs: Specs, config: PTQConfig
) -> Iterator[Problem]:
    """Yield what the target does not take of the model `root` whose points get `specs`, by path.

    Steps are found later: of these, the spec that they would all have is looked at, and every override that
    may speak of one.
    """
    if config.target is None:
        return
    heads = output_embeddings(root)
    layers: list[LayerFormat] = []
    points: dict[str, GridFormat] = {}
    for site in found:
        layer = _layer(site, specs, heads)
        layers += [] if layer is None else [layer]
        layers += _own_weights(site, config)
        points |= _points(site, specs, layer)
    points |= _steps(found, specs, config)
    yield from multiplication_problems(root, config.target)
    for problem in config.target.problems(layers, points, _REMEDY):
        yield attrs.evolve(problem, field=_FIELDS.get(problem.field or "", problem.field))


def _layer(site: ModuleSite, specs: Specs, heads: Collection[nn.Module]) -> LayerFormat | None:
    """Return the format that a layer will have; None for what is no layer."""
    module = site.adopted
    kind = layer_kind(module, heads)
    if isinstance(module, QuantizedModule) and not _asked(site, specs):
        return attrs.evolve(format_of(site.path, module, kind), inputs_known=True)
    if not isinstance(module, QuantizedModule) and not _weights(site):
        return None if as_layer(module) is None else LayerFormat(path=site.path, kind=kind)
    rows, width = _sides(module)
    weight = (
        module.packed.grid_format()
        if isinstance(module, QuantizedModule)
        else _weight(site, specs, rows, width)
    )
    reads = [point for point in site.points if point.name == "act_in"]
    return LayerFormat(
        path=site.path,
        kind=kind,
        weight=weight,
        inputs=_grid(specs[child_path(site.path, "act_in")], PerTensor()) if reads else None,
        inputs_known=bool(reads),
        rows=rows,
        columns=width,
    )


def _asked(site: ModuleSite, specs: Specs) -> bool:
    """Whether any point of a module is to have a grid."""
    return any(specs[child_path(site.path, point.name)].is_quantized for point in site.points)


def _weights(site: ModuleSite) -> list[str]:
    return [point.name for point in site.points if point.role is Role.WEIGHT]


def _sides(module: nn.Module) -> tuple[int | None, int | None]:
    """Return the rows and columns of a weight; a vector, as norms have it, is one row."""
    if isinstance(module, QuantizedModule):
        return module.packed.shape[0], module.packed.columns
    layer = as_layer(module)
    if layer is not None:
        return shape(layer)[0], columns(layer)
    weight = parameter(module, "weight")
    if weight is None or not weight.numel():
        return None, None
    rows = weight.shape[0] if weight.ndim > 1 else 1
    return rows, weight.numel() // rows


def _weight(site: ModuleSite, specs: Specs, rows: int | None, width: int | None) -> GridFormat | None:
    """Return the format of the weight that a wrapper has; one scale for one row is a scale a row."""
    weight = _grid(specs[child_path(site.path, _weights(site)[0])], PerChannel(0))
    if weight is None or width is None:
        return weight
    unit = weight.granularity
    size = unit.size if isinstance(unit, PerGroup) else 1
    one = rows == 1 and isinstance(unit, PerTensor)
    return attrs.evolve(weight, granularity=PerChannel(0) if one else unit, even=width % size == 0)


def _grid(spec: QuantSpec, default: PerTensor | PerChannel) -> GridFormat | None:
    return GridFormat.of(spec, default)


def _own_weights(site: ModuleSite, config: PTQConfig) -> Iterator[LayerFormat]:
    """Yield the parameters that a module owns whose forward is run step by step."""
    for name in site.floats if site.wrapper is StepPoints else ():
        path = child_path(site.path, name)
        weight = _grid(config.resolve(path, "weight").spec, PerChannel(0))
        yield LayerFormat(path=path, kind=type(site.module).__name__, weight=weight, inputs_known=False)


def _points(site: ModuleSite, specs: Specs, layer: LayerFormat | None) -> dict[str, GridFormat]:
    """Return the formats of the activations of a module that are no inputs of a layer."""
    read = set() if layer is None else {"act_in"}
    if site.wrapper is None or (isinstance(site.adopted, QuantizedModule) and not _asked(site, specs)):
        return _kept_points(site)
    named = {
        child_path(site.path, point.name): _grid(specs[child_path(site.path, point.name)], PerTensor())
        for point in site.points
        if point.role is not Role.WEIGHT and point.name not in read
    }
    return {path: grid for path, grid in named.items() if grid is not None}


def _kept_points(site: ModuleSite) -> dict[str, GridFormat]:
    """Return the grids that an earlier run has left, where the module stays: but that of a layer's inputs."""
    module = site.module
    if isinstance(module, QuantizedModule):
        fixed = {"act_out": module.act_out}
    elif isinstance(module, QuantModuleBase):
        fixed = {name: point.fixed for name, point in module.named_points()}
    else:
        return {}
    return {
        child_path(site.path, name): grid.grid_format() for name, grid in fixed.items() if grid is not None
    }


def _steps(found: list[ModuleSite], specs: Specs, config: PTQConfig) -> dict[str, GridFormat]:
    stepped = [site.path for site in found if site.wrapper is StepPoints]
    if not stepped:
        return {}
    known = [*specs, *(site.path for site in found)]
    asked = {child_path(path, "*"): config.resolve(child_path(path, "*")).spec for path in stepped}
    for pattern, change in config.overrides.items():
        if not any(map(Rule(pattern).matches, known)):
            asked[pattern] = config.apply_change("activation", pattern, change, pattern).spec
    grids = {path: _grid(spec, PerTensor()) for path, spec in asked.items()}
    return {path: grid for path, grid in grids.items() if grid is not None}
