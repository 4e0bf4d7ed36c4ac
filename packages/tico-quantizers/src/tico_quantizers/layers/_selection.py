"""Which layers a config cannot reach, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn import UninitializedParameter
from torch.nn.utils import parametrize

from tico_modules import TransposedLinear, find_tied_paths, named_modules, parameter
from tico_quantizers.layers._matrix import FloatLayer, IntegerLayer, Layer, as_layer

_OWN_FORWARDS = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def layers_in(model: nn.Module) -> dict[str, Layer]:
    """Return every layer of `model` by its first path.

    >>> list(layers_in(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Conv1d(1, 1, 3))))
    ['0', '2']
    """
    found = ((path, as_layer(module)) for path, module in named_modules(model))
    return {path: layer for path, layer in found if layer is not None}


def reasons_against(model: nn.Module, layers: Mapping[str, Layer]) -> dict[str, str]:
    """Return why the weights of some `layers` of `model` cannot be changed by way of their inputs.

    Such a layer has a forward of its own, is read without being called, shares its weight with another
    module, or computes it from other parameters.

    >>> layer = nn.Linear(2, 2)
    >>> layer.forward = layer.forward
    >>> model = nn.Sequential(layer)
    >>> reasons_against(model, layers_in(model))
    {'0': 'this Linear has a forward of its own'}
    """
    tied, attention = find_tied_paths(model), tuple(_attention_prefixes(model))
    found: dict[str, str] = {}
    for path, layer in layers.items():
        inside = bool(attention) and path.startswith(attention)
        reason = _reason_against(layer, inside_attention=inside)
        if reason is None and path in tied:
            reason = f"its weight is tied to {tied[path]}"
        if reason is not None:
            found[path] = reason
    return found


def output_embedding(model: nn.Module) -> object:
    """Return the head of a language model that says which module it is."""
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if callable(getter) else None


def stacked_parameters(model: nn.Module, layers: Mapping[str, Layer]) -> Iterator[tuple[str, str]]:
    """Yield path and reason of each module that holds weights of several layers, such as fused experts."""
    for path, module in named_modules(model):
        own: dict[str, nn.Parameter | None] = module._parameters
        stacks = [name for name, tensor in own.items() if tensor is not None and _is_stack(tensor)]
        if stacks and path not in layers:
            names = ", ".join(stacks)
            yield path, f"{names}: weights of several layers in one parameter, which stay float"


def _is_stack(tensor: nn.Parameter) -> bool:
    return not isinstance(tensor, UninitializedParameter) and tensor.ndim == 3 and len(tensor) > 1


def _attention_prefixes(model: nn.Module) -> Iterator[str]:
    for path, module in named_modules(model):
        if isinstance(module, nn.MultiheadAttention):
            yield f"{path}." if path else "out_proj"


def _reason_against(layer: Layer, *, inside_attention: bool) -> str | None:
    if isinstance(layer, IntegerLayer):
        return None
    if inside_attention:
        return "nn.MultiheadAttention reads its weight without calling it"
    forwards = [kind.forward for kind in _OWN_FORWARDS]
    known = isinstance(layer, TransposedLinear) or type(layer).forward in forwards
    if not known or "forward" in vars(layer):
        return f"this {type(layer).__name__} has a forward of its own"
    return _weight_reason(layer)


def _weight_reason(layer: FloatLayer) -> str | None:
    weight = parameter(layer, "weight")
    if parametrize.is_parametrized(layer) or weight is None:
        return "its weight is computed from other parameters"
    if isinstance(weight, UninitializedParameter):
        return "it has no weight before data have passed through it"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    return None if weight.numel() else "its weight is empty"
