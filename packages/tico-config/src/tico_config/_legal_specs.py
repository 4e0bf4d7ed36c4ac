"""The specs that rules of a target allow, for configs that are legal."""

from __future__ import annotations

from collections.abc import Iterator

from tico_config._deployment_profile import DeploymentProfile
from tico_config._float_format import FloatFormat, NumberFormat
from tico_config._grid import Granularity, PerGroup, PerTensor, PerToken, QScheme
from tico_config._grid_rule import GridRule, LayerRule, Part
from tico_config._quant_spec import QuantSpec, affine, no_quant

_SIZES = (128, 64, 32)
_LAYER = "linear"


def layer_rules(target: DeploymentProfile) -> tuple[LayerRule, ...]:
    """Return the rules of `target` for linear layers, the best first."""
    return tuple(rule for rule in target.layers if rule.takes_kind(_LAYER))


def layer_choices(target: DeploymentProfile) -> Iterator[tuple[QuantSpec, QuantSpec]]:
    """Yield pairs of what weights of linear layers and what they read may be, the best first.

    Where other activations have a place too, these pairs hold for them as well.
    """
    for rule in layer_rules(target):
        inputs = [] if rule.inputs is None else list(specs_of(rule.inputs, "activation"))
        for weight in specs_of(rule.weights, "weight"):
            yield from ((weight, activation) for activation in inputs)
            if rule.alone:
                yield weight, no_quant()


def specs_of(rule: GridRule, part: Part) -> Iterator[QuantSpec]:
    """Yield the specs that `rule` allows for weights or for activations, in the order of its fields.

    None has scales under super-blocks.
    """
    if rule.super_block is not None:
        return
    for dtype in rule.dtypes:
        for granularity in _granularities(rule, part):
            for symmetric in _schemes(rule, dtype, part):
                scheme = None if symmetric == dtype.signed else _asymmetric(granularity, part)
                yield affine(dtype, scheme, granularity=granularity)


def _schemes(rule: GridRule, dtype: NumberFormat, part: Part) -> list[bool]:
    """Return the schemes that `dtype` can have, that of weights or of activations of few bits first."""
    possible = [True] if isinstance(dtype, FloatFormat) else [True, False] if dtype.signed else [False]
    if part == "activation" and dtype.bits <= 8:
        possible.reverse()
    return [each for each in possible if rule.symmetric in (None, each)]


def _granularities(rule: GridRule, part: Part) -> Iterator[Granularity | None]:
    """Yield the granularities of `rule` that specs can name; None is what a point has of its own."""
    for unit in rule.units:
        match unit:
            case "tensor":
                yield PerTensor() if part == "weight" else None
            case "channel":
                yield from (None,) if part == "weight" else ()
            case "group":
                yield from _groups(rule) if part == "weight" else ()
            case "token":
                yield from (PerToken(),) if part == "activation" else ()


def _groups(rule: GridRule) -> Iterator[Granularity]:
    sizes = rule.group_sizes or _SIZES
    return (PerGroup(size=size) for size in sizes if size % rule.group_multiple == 0)


def _asymmetric(granularity: Granularity | None, part: Part) -> QScheme:
    along_rows = part == "weight" and not isinstance(granularity, PerTensor)
    return QScheme.PER_CHANNEL_ASYMM if along_rows else QScheme.PER_TENSOR_ASYMM
