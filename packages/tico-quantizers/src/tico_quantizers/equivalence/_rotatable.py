"""The modules of a model that may take part in a rotation, and what each of them can do."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

import attrs
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tico_modules import child_path, find_tied_paths, named_modules, own_tensor, tensor_place
from tico_quantizers.equivalence._channel_scale import ChannelScale, as_channel_scale
from tico_quantizers.equivalence._smoothing_pairs import Matrix
from tico_quantizers.layers import (
    FloatLayer,
    IntegerLayer,
    Layer,
    layers_in,
    peers_of,
    reads_rows,
    reasons_against,
    with_values,
)

Place: TypeAlias = tuple[str, nn.Module, str]
"""The path of a module, the module, and the name of a parameter that it holds."""

_NEAR = 1e-4
"""Norms in float32 err by about 1e-6 of their output; one that does not commute, by about the output."""

QUANTIZED: Final = "its weight is quantized already"


@attrs.frozen(eq=False, kw_only=True)
class RotatedNorm:
    """A norm that commutes with orthogonal matrices once its weight is folded away.

    With `keeps_mean`, as LayerNorm, it does so only with those that leave vectors of equal numbers alone.
    """

    scale: ChannelScale
    keeps_mean: bool

    @property
    def weight(self) -> Tensor:
        """What the norm multiplies by, (channels,) in float64."""
        weight: Tensor = _stored(self.scale.module, "weight").to(torch.float64) + self.scale.offset
        return weight

    @property
    def bias(self) -> Tensor | None:
        """What the norm adds, (channels,) in float64; None where that is nothing."""
        stored = own_tensor(self.scale.module, "bias")
        bias = None if stored is None else stored.detach().to(torch.float64)
        return bias if bias is not None and bool(bias.any()) else None

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to fold away."""
        return self.bias is None and bool((self.weight == 1).all())


def as_rotated_norm(scale: ChannelScale) -> RotatedNorm | None:
    """Return what a norm is for rotations; None where it commutes with none of them.

    A copy is run on numbers of its own, and on the same ones reflected.

    >>> norms = [as_channel_scale(norm) for norm in (nn.RMSNorm(8), nn.LayerNorm(8))]
    >>> [as_rotated_norm(norm).keeps_mean for norm in norms if norm is not None]
    [False, True]
    """
    if scale.axis != -1 or scale.channels < 2:
        return None
    probe = with_values(copy.deepcopy(scale.module)).to(torch.float32).eval()
    for hooks in (probe._forward_hooks, probe._forward_pre_hooks):
        hooks.clear()
    for name, value in (("weight", 1 - scale.offset), ("bias", 0.0)):
        place = tensor_place(probe, name)
        if place is not None:
            place[name].data.fill_(value)
    for keeps_mean in (False, True):
        if _commutes(probe, scale.channels, keeps_mean=keeps_mean):
            return RotatedNorm(scale=scale, keeps_mean=keeps_mean)
    return None


def _commutes(probe: nn.Module, channels: int, *, keeps_mean: bool) -> bool:
    like = _stored(probe, "weight")
    numbers = torch.arange(4 * channels, dtype=torch.float64, device=like.device)
    x, normal = (numbers[channels:] * 0.7).sin().view(3, channels) + 1, (numbers[:channels] * 1.3).cos()
    if keeps_mean:
        normal = normal - normal.mean()
    normal = normal / normal.norm()

    def reflected(rows: Tensor) -> Tensor:
        image: Tensor = rows - 2 * (rows * normal).sum(-1, keepdim=True) * normal
        return image

    with torch.no_grad():
        first, second = (_given(probe, rows) for rows in (x, reflected(x)))
    expected = reflected(first)
    return bool((second - expected).norm() <= _NEAR * expected.norm())


def _given(probe: nn.Module, rows: Tensor) -> Tensor:
    output: Tensor = probe(rows.to(torch.float32)[None])
    return output.to(torch.float64)


def _stored(module: nn.Module, name: str) -> Tensor:
    value = own_tensor(module, name)
    if value is None:
        raise TypeError(f"a {type(module).__name__} without {name}")
    return value.detach()


@attrs.frozen(eq=False, kw_only=True)
class Rotatable:
    """The modules of a model that may take part in a rotation, and for others the reason.

    `tables` are parameters of two axes of modules that are no layers, such as embeddings and routers, by path
    and name; `ties` are the layers that share the weight of a table, with its name. `experts` are modules
    that hold a parameter of three axes, with its name. `peers` is what `peers_of` says of the model.
    """

    layers: Mapping[str, Layer]
    norms: Mapping[str, RotatedNorm]
    tables: Mapping[str, Matrix]
    experts: Mapping[str, str]
    reasons: Mapping[str, str]
    ties: Mapping[str, str]
    peers: Mapping[str, str]
    modules: Mapping[str, nn.Module]

    @classmethod
    def of(cls, model: nn.Module) -> Rotatable:
        """Look at every module."""
        modules, layers = dict(named_modules(model)), layers_in(model)
        scales = {
            path: scale
            for path, module in modules.items()
            if path not in layers and (scale := as_channel_scale(module)) is not None
        }
        norms = {path: norm for path, scale in scales.items() if (norm := as_rotated_norm(scale)) is not None}
        free = {path: module for path, module in modules.items() if path not in {*layers, *scales}}
        tables, tied = _tables(free), find_tied_paths(model)
        ties = _ties(layers, tables, modules)
        reasons = {
            path: why
            for path, why in reasons_against(model, layers).items()
            if path not in ties or why != f"its weight is tied to {tied[path]}"
        }
        reasons |= {path: why for path, layer in layers.items() if (why := _reason_against(layer))}
        reasons |= {path: f"its weight is tied to {tied[path]}" for path in norms if path in tied}
        return cls(
            layers=layers,
            norms=norms,
            tables=tables,
            ties=ties,
            experts=dict(_stacks(free)),
            reasons=reasons,
            peers=peers_of(model),
            modules=modules,
        )

    def layer(self, path: str) -> FloatLayer | None:
        """Return the layer at `path` if its weight can be multiplied by a matrix."""
        layer = self.layers.get(path)
        return None if path in self.reasons or isinstance(layer, IntegerLayer) else layer

    def writes(self, path: str) -> bool:
        """Return whether the module at `path` may write to a stream."""
        return self.layer(path) is not None or path in self.experts

    def norm(self, path: str) -> RotatedNorm | None:
        """Return the norm at `path` if its weight can be folded away."""
        return None if path in self.reasons else self.norms.get(path)

    def atoms(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield every layer, norm and module of experts with its path, in the order of the model."""
        for path, module in self.modules.items():
            if path in self.layers or path in self.norms or path in self.experts:
                yield path, module

    def weighted(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield every layer, norm and module with a table with its path, in the order of the model."""
        tables = {each.path for each in self.tables.values()}
        for path, module in self.modules.items():
            if path in self.layers or path in self.norms or path in tables:
                yield path, module

    def free(self) -> Iterator[str]:
        """Yield the path of every module that may be in a rotation, in the order of the model."""
        owners = {table.path for table in self.tables.values()}
        for path in self.modules:
            if path in owners or self.writes(path) or self.norm(path) is not None:
                yield path

    def owner(self, name: str) -> str:
        """Return the path of the module that a layer, norm or table is, or belongs to."""
        return self.tables[name].path if name in self.tables else name


def _reason_against(layer: Layer) -> str | None:
    if isinstance(layer, IntegerLayer):
        return QUANTIZED
    return None if reads_rows(layer) else "convolutions are not rotated"


def _ties(
    layers: Mapping[str, Layer], tables: Mapping[str, Matrix], modules: Mapping[str, nn.Module]
) -> dict[str, str]:
    """Return the layers that share the weight of a table, and with no other layer."""
    found: dict[str, str] = {}
    for name, table in tables.items():
        held = places_of(own_tensor(table.module, table.name), modules)
        sharing = [path for path, _, of in held if path in layers and of == "weight"]
        if len(sharing) == 1:
            found[sharing[0]] = name
    return found


def places_of(weight: Tensor | None, modules: Mapping[str, nn.Module]) -> list[Place]:
    """Return where one of the parameters of `modules` stands."""
    return [
        (path, module, name)
        for path, module in modules.items()
        for name, own in module._parameters.items()
        if own is not None and own is weight
    ]


def _tables(modules: Mapping[str, nn.Module]) -> dict[str, Matrix]:
    """Return the parameters of two axes, each by the first module that holds it."""
    found: dict[int, Matrix] = {}
    for path, name, own in _parameters(modules):
        if own.ndim == 2:
            found.setdefault(id(own), Matrix(path=path, module=modules[path], name=name))
    return {child_path(each.path, each.name): each for each in found.values()}


def _stacks(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
    for path, name, own in _parameters(modules):
        if own.ndim == 3 and len(own) > 1:
            yield path, name


def _parameters(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, nn.Parameter]]:
    for path, module in modules.items():
        held: dict[str, nn.Parameter | None] = module._parameters
        for name, own in held.items():
            if own is None or is_lazy(own):
                continue
            if own.is_floating_point():
                yield path, name, own
