"""The weights that rules of a target allow, as fields of configs that speak of bits and groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from tico_config._deployment_profile import DeploymentProfile
from tico_config._float_format import FloatFormat
from tico_config._grid import PerGroup, PerTensor
from tico_config._legal_specs import layer_rules, specs_of


def weight_choices(
    target: DeploymentProfile, *, super_blocks: bool = False, whole: bool = True
) -> Iterator[Mapping[str, object]]:
    """Yield what weights of linear layers may have: signed symmetric codes, or others unsigned.

    Floating-point elements are left out, which such configs name by `dtype` and not by bits. So are scales
    under super-blocks, unless `super_blocks` says that the config has them, and one scale for a whole weight,
    with the field `per_tensor`, where it cannot have that by `whole`.
    """
    seen: list[Mapping[str, object]] = []
    for rule in layer_rules(target):
        shared = rule.weights.super_block
        if shared is not None and not super_blocks:
            continue
        scales = {} if shared is None else {"super_block": shared}
        for spec in specs_of(attrs.evolve(rule.weights, super_block=None), "weight"):
            if isinstance(spec.dtype, FloatFormat):
                continue
            unit = spec.granularity
            choice: dict[str, object] = {
                "bits": spec.dtype.bits,
                "symmetric": spec.is_symmetric,
                "group_size": unit.size if isinstance(unit, PerGroup) else None,
                **({"per_tensor": isinstance(unit, PerTensor)} if whole else {}),
                **scales,
            }
            if isinstance(unit, PerTensor) and not whole:
                continue
            if spec.is_symmetric == spec.dtype.signed and spec.dtype.bits <= 8 and choice not in seen:
                seen.append(choice)
                yield choice
