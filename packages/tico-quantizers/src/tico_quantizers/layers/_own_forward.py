"""Layers with a forward of their own that computes what that of their class does."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tico_config import Found, Problem, UnsupportedError
from tico_modules import TransposedLinear, own_tensor
from tico_quantizers.layers._matrix import FloatLayer, IntegerLayer, Layer, columns, reads_rows, shape
from tico_quantizers.layers._stand_in_values import numbers_of, with_values

_KINDS = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def has_own_forward(module: nn.Module) -> bool:
    """Return whether `module` has an attribute `forward` that is not the method of its class.

    accelerate leaves one that is when its hooks are removed.
    """
    own: object = vars(module).get("forward")
    method = (
        getattr(own, "__func__", None) is type(module).forward and getattr(own, "__self__", None) is module
    )
    return own is not None and not method


def computes_itself(layer: Layer) -> bool:
    """Return whether `layer` is computed by a forward that is not that of its class in torch."""
    if isinstance(layer, IntegerLayer):
        return False
    return has_own_forward(layer) or type(layer).forward is not kind_of(layer).forward


def computes_as_its_class(layer: FloatLayer) -> bool:
    """Return whether a forward of `layer`'s own gives what that of its class gives, for inputs of our own.

    A copy is run, without anybody's hooks, and with numbers of our own for weights on the meta device. That
    it does so for data, too, is for `require_as_its_class`.
    """
    try:
        probe = with_values(copy.deepcopy(layer).eval())
        for hooks in (probe._forward_hooks, probe._forward_pre_hooks):
            hooks.clear()
        with torch.no_grad():
            return all(_is_like(probe, x, probe(x)) for x in _inputs(probe))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError, AssertionError):
        return False  # a forward that wants other inputs computes something else


def require_as_its_class(
    path: str, layer: FloatLayer, args: tuple[object, ...], kwargs: dict[str, object], output: object
) -> None:
    """Refuse a call in which a forward of the layer's own gave something else than that of its class.

    Raises:
        UnsupportedError: with what to do.
    """
    x = args[0] if args else next(iter(kwargs.values()), None)
    alone = len(args) + len(kwargs) == 1 and isinstance(x, Tensor)
    if not (alone and isinstance(x, Tensor) and _is_like(layer, x, output)):
        kind = kind_of(layer).__name__
        sentence = f"its forward gave something else for these data than that of {kind} gives"
        raise UnsupportedError(
            Problem(
                module=path,
                field="forward",
                value=Found(f"{type(layer).__name__}.forward"),
                expected=f"what {kind}.forward gives",
                remedy="leave it out by the override no_quant()",
                sentence=sentence,
            )
        )


def kind_of(layer: FloatLayer) -> type[nn.Module]:
    """Return the class of torch, or of transformers, that `layer` is of."""
    if isinstance(layer, TransposedLinear):
        return next(kind for kind in type(layer).__mro__ if kind.__name__ == "Conv1D")
    return next(kind for kind in _KINDS if isinstance(layer, kind))


def _inputs(layer: FloatLayer) -> Iterator[Tensor]:
    """Yield inputs of several sizes of numbers, zeros among them."""
    weight = layer.weight
    size = (2, 3, shape(layer)[1])
    if not reads_rows(layer):
        taps = zip(weight.shape[2:], getattr(layer, "dilation", ()), strict=True)
        channels: int = getattr(layer, "in_channels")  # noqa: B009  # torch's convolutions have no common type
        size = (2, channels, *(2 * apart * (kernel - 1) + 3 for kernel, apart in taps))
    numbers = numbers_of(size).to(weight.device)
    for factor in (0.0, 1.0, 1000.0):
        yield (numbers * factor).to(weight.dtype)


@torch.no_grad()
def _is_like(layer: FloatLayer, x: Tensor, output: object) -> bool:
    """Return whether `output` is what the class of `layer` gives for `x`, up to the order of sums.

    Any order of a sum of n products is off by at most n roundings of the sum of their magnitudes; short
    floats are summed in float32, and rounded twice: with the bias and without.
    """
    forward = kind_of(layer).forward
    expected: Tensor = forward(layer, x)
    if not isinstance(output, Tensor) or (output.shape, output.dtype) != (expected.shape, expected.dtype):
        return False
    magnitudes = copy.copy(layer)
    magnitudes._parameters, magnitudes._buffers = dict(layer._parameters), dict(layer._buffers)
    for name in ("weight", "bias"):
        value = own_tensor(layer, name)
        if value is not None:
            magnitudes._parameters[name] = nn.Parameter(value.detach().abs(), requires_grad=False)
            magnitudes._buffers.pop(name, None)
            vars(magnitudes).pop(name, None)
    most: Tensor = forward(magnitudes, x.abs())
    terms = columns(layer) + 2
    share = terms * 2.0**-23 + (0 if x.dtype == torch.float32 else 4 * torch.finfo(x.dtype).eps)
    return bool(((output - expected).abs() <= share * most).all())
