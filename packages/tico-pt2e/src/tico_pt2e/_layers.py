"""Operators with weights as layers of torch.nn, so that what works on modules works on a graph."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tico_pt2e._nodes import argument
from tico_pt2e._weights import SiteView

_CONVS = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
_TRANSPOSED = {
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}


def layer_of(view: SiteView) -> nn.Module | None:
    """Return the layer that computes what the operator does, without its bias; None where there is none."""
    operator, weight = view.site.operator, view.weight
    if operator in _CONVS:
        return _conv(view)
    if operator in _TRANSPOSED:
        # Of several groups, channels in the same place share a scale, which a layer cannot say.
        return _transposed(view) if view.site.groups == 1 else None
    if operator == "embedding" or weight.ndim != 2:
        return None
    return _with_weight(nn.Linear(1, 1, bias=False, device="meta"), rows_of(view, weight))


def rows_of(view: SiteView, weight: Tensor) -> Tensor:
    """Return a weight of the operator in the shape that its layer has: linear ones with outputs in front."""
    return weight.T if view.site.operator in ("addmm", "matmul", "mm") else weight


def _conv(view: SiteView) -> nn.Module:
    weight, axes = view.weight, view.weight.ndim - 2
    padding = argument(view.node, 4)
    layer = _CONVS[view.site.operator](
        weight.shape[1] * view.site.groups,
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]  # one class for each number of axes
        stride=_sizes(view, 3, axes, 1),  # type: ignore[arg-type]
        padding=padding if isinstance(padding, str) else _sizes(view, 4, axes, 0),  # type: ignore[arg-type]
        dilation=_sizes(view, 5, axes, 1),  # type: ignore[arg-type]
        groups=view.site.groups,
        bias=False,
        device="meta",
    )
    return _with_weight(layer, weight)


def _transposed(view: SiteView) -> nn.Module:
    weight, axes = view.weight, view.weight.ndim - 2
    layer = _TRANSPOSED[view.site.operator](
        weight.shape[0],
        weight.shape[1],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]  # one class for each number of axes
        stride=_sizes(view, 3, axes, 1),  # type: ignore[arg-type]
        padding=_sizes(view, 4, axes, 0),  # type: ignore[arg-type]
        output_padding=_sizes(view, 5, axes, 0),  # type: ignore[arg-type]
        dilation=_sizes(view, 7, axes, 1),  # type: ignore[arg-type]
        bias=False,
        device="meta",
    )
    return _with_weight(layer, weight)


def _sizes(view: SiteView, position: int, axes: int, default: int) -> tuple[int, ...]:
    """Return an argument that has a number for each axis; one number alone holds for all."""
    given = argument(view.node, position)
    numbers = [size for size in given if isinstance(size, int)] if isinstance(given, Sequence) else [default]
    return tuple(numbers) * (axes if len(numbers) == 1 else 1)


def _with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    layer.register_parameter("weight", nn.Parameter(weight.clone(), requires_grad=False))
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    return layer.eval()
