"""Which layers a config cannot reach, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn import UninitializedParameter
from torch.nn.utils import parametrize

from tico_modules import find_tied_paths, named_modules, own_tensor
from tico_quantizers.layers._expert_linear import ExpertLinear
from tico_quantizers.layers._matrix import FloatLayer, IntegerLayer, Layer, as_layer
from tico_quantizers.layers._own_forward import computes_as_its_class, computes_itself, kind_of


def layers_in(model: nn.Module) -> dict[str, Layer]:
    """Return every layer of `model` by its first path.

    >>> list(layers_in(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Conv1d(1, 1, 3))))
    ['0', '2']
    """
    found = ((path, as_layer(module)) for path, module in named_modules(model))
    return {path: layer for path, layer in found if layer is not None}


def reasons_against(model: nn.Module, layers: Mapping[str, Layer]) -> dict[str, str]:
    """Return why the weights of some `layers` of `model` cannot be changed by way of their inputs.

    Such a layer has a forward of its own that computes something else, is read without being called, shares
    its weight with another module, or computes it from other parameters.

    >>> class Doubled(nn.Linear):
    ...     def forward(self, x):
    ...         return 2 * super().forward(x)
    >>> model = nn.Sequential(Doubled(2, 2))
    >>> reasons_against(model, layers_in(model))
    {'0': 'this Doubled has a forward of its own, which computes something else than a Linear does'}
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


def output_embeddings(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the heads of the language models in `model`: what their ``get_output_embeddings`` answers.

    A head that is no layer stands for the layers in it.
    """
    found: dict[int, nn.Module] = {}
    for _, module in named_modules(model):
        getter: object = getattr(module, "get_output_embeddings", None)
        for head in _modules_in(_answer(getter)):
            found |= {id(part): part for _, part in named_modules(head)}
    return tuple(found.values())


def _answer(getter: object) -> object:
    """Return what `getter` gives; many models of transformers inherit one that does not apply to them."""
    if not callable(getter):
        return None
    try:
        answer: object = getter()
    except (NotImplementedError, AttributeError, TypeError):
        return None
    return answer


def _modules_in(answer: object) -> Iterator[nn.Module]:
    match answer:
        case nn.Module():
            yield answer
        case list() | tuple():
            yield from (each for each in answer if isinstance(each, nn.Module))
        case dict():
            yield from (each for each in answer.values() if isinstance(each, nn.Module))
        case _:
            return


def _attention_prefixes(model: nn.Module) -> Iterator[str]:
    for path, module in named_modules(model):
        if isinstance(module, nn.MultiheadAttention):
            yield f"{path}." if path else "out_proj"


def _reason_against(layer: Layer, *, inside_attention: bool) -> str | None:
    if isinstance(layer, IntegerLayer):
        return None
    if inside_attention:
        return "nn.MultiheadAttention reads its weight without calling it"
    reason = _weight_reason(layer)
    if reason is None and computes_itself(layer) and not computes_as_its_class(layer):
        kind, known = type(layer).__name__, kind_of(layer).__name__
        reason = f"this {kind} has a forward of its own, which computes something else than a {known} does"
    return reason


def _weight_reason(layer: FloatLayer) -> str | None:
    weight = layer.weight if isinstance(layer, ExpertLinear) else own_tensor(layer, "weight")
    if parametrize.is_parametrized(layer) or weight is None or _is_recomputed(layer, "weight"):
        return "its weight is computed from other parameters"
    if _is_recomputed(layer, "bias"):
        return "its bias is computed from other parameters"
    if isinstance(weight, UninitializedParameter):
        return "it has no weight before data have passed through it"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    return None if weight.numel() else "its weight is empty"


def _is_recomputed(layer: FloatLayer, name: str) -> bool:
    """Whether a tensor is a plain attribute beside others that it is made of, as pruning leaves it."""
    held: dict[str, nn.Parameter | None] = layer._parameters
    return name in vars(layer) and any(other.startswith(f"{name}_") for other in held)
