"""What GPTQ does to each module of a model: decided, and refused, before anything is changed."""

from __future__ import annotations

import attrs
import torch
from torch import nn
from torch.nn import UninitializedParameter

from tico_config import (
    ConfigError,
    Found,
    GPTQConfig,
    NumericsError,
    Problem,
    TokenWeights,
    unmatched_problems,
)
from tico_modules import LayerReport, find_tied_paths, named_modules
from tico_quantizers.layers import (
    Layer,
    as_layer,
    columns,
    find_blocks,
    groups,
    homes_in,
    matrix,
    output_embedding,
    peers_of,
    reason_against,
)


@attrs.frozen(eq=False, kw_only=True)
class Target:
    """A layer to quantize, the config that holds for it, and the number of the one block that holds it.

    `peers` is as `peers_of` says, `in_chain` says whether the list that it means is that of the blocks.
    """

    path: str
    layer: Layer
    config: GPTQConfig
    block: int | None
    peers: str | None
    in_chain: bool


@attrs.frozen(eq=False, kw_only=True)
class Plan:
    """The layers to quantize, those left alone with the reason, and the blocks."""

    targets: tuple[Target, ...]
    left: tuple[LayerReport, ...]
    blocks: tuple[nn.Module, ...]

    def of_block(self, number: int | None) -> tuple[Target, ...]:
        """Return the targets of one block; of None, those that no block or more than one holds."""
        return tuple(target for target in self.targets if target.block == number)


def layers_of(targets: tuple[Target, ...]) -> dict[str, Layer]:
    """Return the layers of `targets` by path."""
    return {target.path: target.layer for target in targets}


def weights_of(targets: tuple[Target, ...]) -> dict[str, TokenWeights]:
    """Return what counts how much for each of `targets`, by path."""
    return {target.path: target.config.token_weights for target in targets}


def plan_of(model: nn.Module, config: GPTQConfig) -> Plan:
    """Decide what is done to every module, and refuse what cannot be done, all at once."""
    layers = {path: layer for path, module in named_modules(model) if (layer := as_layer(module)) is not None}
    reasons = _reasons(model, config, layers)
    wanted = {path: layer for path, layer in layers.items() if path not in reasons}
    blocks = find_blocks(model, list(wanted.values()))
    homes = homes_in([block for _, block in blocks])
    problems = _override_problems(config, list(wanted), reasons)
    if not wanted:
        found = Found("; ".join(f"{path}: {why}" for path, why in reasons.items()) or "none")
        expected = "a model with a linear layer or convolution to quantize"
        problems.append(Problem(field="model", value=found, expected=expected))
    peers = peers_of(model)
    chain = {peers.get(path) for path, _ in blocks} - {None}
    targets = tuple(
        Target(
            path=path,
            layer=layer,
            config=config.resolve(path).spec,
            block=homes.get(id(layer)),
            peers=peers.get(path),
            in_chain=any(peers.get(path, "").startswith(f"{place}.") for place in chain),
        )
        for path, layer in wanted.items()
    )
    problems += [problem for target in targets for problem in _target_problems(target)]
    if problems:
        raise ConfigError(*problems)
    _require_finite_weights(targets)
    left = (*_left_layers(layers, reasons), *_left_parameters(model, layers))
    return Plan(targets=targets, left=left, blocks=tuple(block for _, block in blocks))


def _left_layers(layers: dict[str, Layer], reasons: dict[str, str]) -> list[LayerReport]:
    return [
        LayerReport(path=path, module=type(layers[path]).__name__, algorithm="gptq", reason=why)
        for path, why in reasons.items()
    ]


def _left_parameters(model: nn.Module, layers: dict[str, Layer]) -> list[LayerReport]:
    """Return a line for each module that holds the weights of several layers, such as fused experts."""
    found = []
    for path, module in named_modules(model):
        own: dict[str, nn.Parameter | None] = module._parameters
        stacks = [name for name, tensor in own.items() if tensor is not None and _is_stack(tensor)]
        if stacks and path not in layers:
            reason = f"{', '.join(stacks)}: weights of several layers in one parameter, which stay float"
            kind = type(module).__name__
            found.append(LayerReport(path=path, module=kind, algorithm="gptq", reason=reason))
    return found


def _is_stack(tensor: nn.Parameter) -> bool:
    return not isinstance(tensor, UninitializedParameter) and tensor.ndim == 3 and len(tensor) > 1


def _override_problems(config: GPTQConfig, wanted: list[str], reasons: dict[str, str]) -> list[Problem]:
    """Return a problem for each override that changes nothing, with the reason where there is one."""
    problems = unmatched_problems(config.overrides, [*wanted, *reasons])
    for pattern in config.overrides:
        kept = [path for path in reasons if not unmatched_problems([pattern], [path])]
        if kept and unmatched_problems([pattern], wanted):
            remedy = "; ".join(f"{path} stays float: {reasons[path]}" for path in kept)
            expected = "a rule that matches a layer to quantize"
            problems.append(Problem(field="overrides", value=pattern, expected=expected, remedy=remedy))
    return problems


def _reasons(model: nn.Module, config: GPTQConfig, layers: dict[str, Layer]) -> dict[str, str]:
    """Return the layers that are left alone, each with the reason."""
    tied = find_tied_paths(model)
    head = output_embedding(model)
    attention = tuple(
        f"{path}." if path else "out_proj"
        for path, module in named_modules(model)
        if isinstance(module, nn.MultiheadAttention)
    )
    found: dict[str, str] = {}
    for path, layer in layers.items():
        reason = reason_against(layer, inside_attention=bool(attention) and path.startswith(attention))
        if reason is None and path in tied:
            reason = f"its weight is tied to {tied[path]}"
        if reason is None and layer is head and path not in config.overrides:
            reason = "the output embedding is quantized only if an override has its exact path"
        if reason is not None:
            found[path] = reason
    return found


def _target_problems(target: Target) -> list[Problem]:
    size, width = target.config.group_size, columns(target.layer)
    remedy = "choose another, for all or by an override for this module"
    if size is not None and (size > width or width % size) and not target.config.ragged_groups:
        expected = f"None or a divisor of its {width} input columns"
        remedy = f"{remedy}, or set ragged_groups"
        return [Problem(module=target.path, field="group_size", value=size, expected=expected, remedy=remedy)]
    parts = groups(target.layer)
    ordered = target.config.act_order and not target.config.static_groups
    if ordered and size not in (None, width) and parts > 1:
        # Each group of channels would have an order, and so groups of columns, of its own.
        expected = f"False for a convolution of {parts} groups of channels with group_size={size}"
        remedy = f"{remedy}, or set static_groups"
        return [Problem(module=target.path, field="act_order", value=True, expected=expected, remedy=remedy)]
    return []


def _require_finite_weights(targets: tuple[Target, ...]) -> None:
    problems = []
    for target in targets:
        weight = matrix(target.layer)
        if not bool(torch.isfinite(weight).all()):
            index = tuple(torch.nonzero(~torch.isfinite(weight))[0].tolist())
            found = Found(f"{weight[index].item()} at {index}")
            problems.append(Problem(module=target.path, field="weight", value=found, expected="finite"))
    if problems:
        raise NumericsError(*problems)
