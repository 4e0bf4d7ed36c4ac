"""What a conversion leaves in float: a line for every module that owns a parameter of floats."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from torch import nn
from torch.nn.parameter import is_lazy

from tico_modules import LayerReport, PackedWeight, QuantizedExperts, QuantizedModule, named_modules


def float_lines(
    model: nn.Module,
    algorithm: str,
    reasons: Mapping[str, str],
    said: Collection[str] = (),
    *,
    does: str = "quantizes linear layers and convolutions",
) -> dict[str, LayerReport]:
    """Return a line for each module of `model` that is left in float, by path.

    These are the modules that `reasons` has a reason for, and all others that own a parameter of floats:
    norms, embeddings, fused experts, bare parameters. Those in `said` have a line already. `does` says what
    the algorithm does instead. A figure says what share of the parameters of `model` a module owns.

    >>> lines = float_lines(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(8)), "gptq", {}, said=["0"])
    >>> [(line.path, line.figures) for line in lines.values()]
    [('1', (('share of parameters', 0.6666666666666666),))]
    """
    sizes = _sizes(model)
    total = sum(sizes.values()) or 1
    lines: dict[str, LayerReport] = {}
    for path, module in _outside_of_integers(model):
        integer = isinstance(module, QuantizedModule)
        own = None if integer else _reason(module, f"{algorithm} {does}")
        reason = reasons.get(path) or (own and _reason_below(path, module, reasons)) or own
        if path not in said and reason is not None:
            share = sizes[path] / total
            lines[path] = LayerReport(
                path=path,
                module=type(module).__name__,
                algorithm=algorithm,
                reason=reason,
                figures=(("share of parameters", share),) if share else (),
            )
    return lines


def _outside_of_integers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module with its path, without the parts of integer modules."""
    inside: set[int] = set()
    for path, module in named_modules(model):
        if id(module) not in inside:
            yield path, module
            if isinstance(module, QuantizedModule | PackedWeight):
                inside |= {id(part) for _, part in named_modules(module)}


def _sizes(model: nn.Module) -> dict[str, int]:
    """Return how many parameters each module holds itself, or held as a float; shared ones count once."""
    seen: set[int] = set()
    sizes: dict[str, int] = {}
    for path, module in _outside_of_integers(model):
        if isinstance(module, PackedWeight):
            sizes[path] = math.prod(module.shape)
        elif isinstance(module, QuantizedModule):
            sizes[path] = math.prod(module.packed.shape) + (0 if module.bias is None else module.bias.numel())
        else:
            own = [each for each in _parameters(module).values() if id(each) not in seen]
            seen |= {id(each) for each in own}
            sizes[path] = sum(each.numel() for each in own)
    return sizes


def _reason_below(path: str, module: nn.Module, reasons: Mapping[str, str]) -> str | None:
    """Return why the experts in a parameter of `module`, which have reasons of their own, are float."""
    starts = tuple(f"{path}.{name}." if path else f"{name}." for name in _parameters(module))
    return next((why for place, why in reasons.items() if place.startswith(starts)), None)


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that `module` itself owns and that have values."""
    own: dict[str, nn.Parameter | None] = module._parameters
    return {name: each for name, each in own.items() if each is not None and not is_lazy(each)}


def _reason(module: nn.Module, otherwise: str) -> str | None:
    """Return why the parameters of `module` are float, or None where it has none."""
    own = {name: each for name, each in _parameters(module).items() if each.is_floating_point()}
    if not own:
        return None
    stacks = [name for name, each in own.items() if each.ndim == 3 and len(each) > 1]
    if stacks:
        return f"{', '.join(stacks)}: weights of several layers in one parameter, which stay float"
    if isinstance(module, QuantizedExperts):
        return None  # biases, as those of any integer layer
    if isinstance(module, nn.MultiheadAttention):
        return f"{', '.join(own)}: nn.MultiheadAttention computes with them itself"
    return otherwise
