"""What of an exported graph the target of its config does not take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tico_config import (
    ConfigError,
    DeploymentProfile,
    Found,
    GridFormat,
    LayerFormat,
    PerChannel,
    PerTensor,
    Problem,
    PT2EConfig,
)
from tico_pt2e._annotation import Annotated

_REMEDY: Final = (
    "choose that for all or by an override, leave it float by no_quant(), or start from what"
    " target.configs(PT2EConfig) gives"
)
_PRODUCTS: Final = ("addmm", "matmul", "mm")
"""Operators that are linear layers where they have a weight."""


def require_taken(annotated: Sequence[Annotated], config: PT2EConfig) -> None:
    """Refuse grids, biases and operators that the target of `config` does not take.

    Raises:
        ConfigError: with all of them.
    """
    target = config.target
    if target is None:
        return
    found = [item for item in annotated if not item.operation.shares]
    left = [item for item in found if item.operation.pattern.operator in target.float_operators]
    judged = [item for item in found if item not in left]
    points = {path: grid for item in judged for path, grid in _points(item)}
    problems = [
        *_bias_problems(target, config),
        *(_no_kernel(item, target) for item in left if _is_quantized(item)),
        *target.problems([_layer(item) for item in judged if item.weight is not None], points, _REMEDY),
    ]
    if problems:
        raise ConfigError(*problems)


def _bias_problems(target: DeploymentProfile, config: PT2EConfig) -> Iterator[Problem]:
    found = "int32" if config.bias.is_quantized else "float"
    if found not in target.biases:
        legal = " or ".join(target.biases)
        yield Problem(
            field="bias",
            value=Found(str(config.bias)),
            expected=legal,
            sentence=f"{target.runtime} takes biases in {legal}, and bias is {config.bias}",
            remedy="set bias=no_quant()" if found == "int32" else "set bias=affine(INT32)",
        )


def _is_quantized(item: Annotated) -> bool:
    """Whether an operator has a grid of its own; one for its input serves readers that have a kernel too."""
    return item.act_out.spec.is_quantized or (item.weight is not None and item.weight.spec.is_quantized)


def _no_kernel(item: Annotated, target: DeploymentProfile) -> Problem:
    name = item.operation.pattern.operator
    return Problem(
        module=item.operation.path,
        field="operators",
        value=Found(str(item.act_out.spec)),
        expected="float",
        sentence=f"{target.runtime} has no integer kernel for {name}",
        remedy=f"leave it float by operators={{{name!r}: no_quant()}}",
    )


def _layer(item: Annotated) -> LayerFormat:
    operation, weight = item.operation, item.weight
    name = operation.pattern.operator
    return LayerFormat(
        path=operation.path,
        kind="linear" if name in _PRODUCTS else name,
        weight=None if weight is None else GridFormat.of(weight.spec, PerChannel(0)),
        inputs=GridFormat.of(item.act_in.spec, PerTensor()) if operation.inputs else None,
        inputs_known=bool(operation.inputs),
    )


def _points(item: Annotated) -> Iterator[tuple[str, GridFormat]]:
    """Yield the activations that no layer reads, by path."""
    reads = bool(item.operation.inputs) and item.weight is None
    for name, found in (("act_in", item.act_in if reads else None), ("act_out", item.act_out)):
        grid = None if found is None else GridFormat.of(found.spec, PerTensor())
        if grid is not None:
            yield f"{item.operation.path}.{name}", grid
