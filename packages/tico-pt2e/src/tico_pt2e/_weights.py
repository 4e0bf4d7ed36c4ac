"""The weights and biases of operators in a graph: what they are, and integers in their place."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, fx

from tico_config import Found, NumericsError, Problem
from tico_observers import AffineParams, fake_quantize
from tico_pt2e._graph import QuantGraph, WeightSite
from tico_pt2e._integers import bias_params, constant_of_codes, constant_on_grid
from tico_pt2e._nodes import (
    argument,
    constant_value,
    new_constant,
    node_argument,
    node_called,
    operator_of,
    with_argument,
)

_BIAS_STEPS = 2.0**24


@attrs.frozen(eq=False)
class SiteView:
    """The operator at a site of one graph."""

    site: WeightSite
    node: fx.Node
    weight_node: fx.Node
    weight: Tensor

    @property
    def owner(self) -> str:
        """The path of the module that holds the weight."""
        holder = (
            self.weight_node if self.weight_node.op == "get_attr" else self.weight_node.all_input_nodes[0]
        )
        return str(holder.target).rpartition(".")[0]

    @property
    def place(self) -> fx.Node:
        """The node before which a node for the weight has to stand, so that all operators can read it."""
        following: fx.Node = self.weight_node.next if self.weight_node.op == "get_attr" else self.node
        return following

    @property
    def channels(self) -> int:
        """The number of output channels."""
        wide = self.site.operator.startswith("conv_transpose")
        return self.weight.shape[self.site.axis] * (self.site.groups if wide else 1)

    @property
    def activation(self) -> fx.Node | None:
        """The node that the operator reads beside weight and bias."""
        others = (self.site.weight, self.site.bias)
        positions = (position for position in range(3) if position not in others)
        return node_argument(self.node, next(positions))

    def bias(self, model: QuantGraph) -> Tensor | None:
        """Return the bias in float; None where there is none, or none that is constant."""
        node = None if self.site.bias is None else node_argument(self.node, self.site.bias)
        return None if node is None else constant_value(model, node)

    @property
    def input_scale(self) -> float | None:
        """The scale of the grid that the input is on; None where it is in float."""
        node = self.activation
        if node is None or operator_of(node) != "dequantize_per_tensor":
            return None
        scale = argument(node, 1)
        return scale if isinstance(scale, float) else None


def view_of(model: QuantGraph, site: WeightSite) -> SiteView:
    """Return what stands at `site`.

    Raises:
        LookupError: the graph was changed by others.
    """
    node = node_called(model.graph, site.node)
    weight_node = node_argument(node, site.weight)
    weight = None if weight_node is None else constant_value(model, weight_node)
    if weight_node is None or weight is None:
        raise LookupError(site.node)
    return SiteView(site, node, weight_node, weight)


def require_finite_weights(views: list[SiteView]) -> None:
    """Refuse weights that no grid can represent.

    Raises:
        NumericsError: with every one of them.
    """
    problems = []
    for view in views:
        wrong = ~view.weight.isfinite()
        if bool(wrong.any()):
            index = tuple(torch.nonzero(wrong)[0].tolist())
            found = Found(f"{view.weight[index].item()} at {index}")
            sentence = f"its weight is {found}"
            problems.append(
                Problem(
                    module=view.site.path, field="weight", value=found, expected="finite", sentence=sentence
                )
            )
    if problems:
        raise NumericsError(*problems)


def fitted(view: SiteView, params: AffineParams, bias: Tensor | None) -> AffineParams:
    """Return `params` with another scale for channels whose weights are all zero.

    Any scale fits those weights, but the bias has the scale of weight times input: it gets 24 bits.
    """
    scale = view.input_scale
    if bias is None or scale is None or params.scale.numel() != bias.numel():
        return params
    silent = (view.weight == 0).transpose(0, view.site.axis).flatten(1).all(1)
    fine = (bias.abs().to(torch.float64) / (scale * _BIAS_STEPS)).to(torch.float32)
    usable = silent & (fine >= torch.finfo(torch.float32).smallest_normal)
    return attrs.evolve(params, scale=torch.where(usable, fine, params.scale))


def put_weight(model: QuantGraph, view: SiteView, weight: fx.Node, params: AffineParams | None) -> str:
    """Make the operator read `weight`, and its bias as int32 where its input has a grid.

    Where the site wants the bias in float, it is moved to the same grid: runtimes that take biases in float
    round them to it themselves. Without `params`, one grid a channel, the bias stays as it is. Returns what
    is to be said about the bias, nothing where all went as usual.
    """
    with_argument(view.node, view.site.weight, weight)
    bias = view.bias(model) if params is not None else None
    if bias is None or view.site.bias is None:
        return ""
    scale = view.input_scale
    grid = None if scale is None or params is None else bias_params(params, scale, view.channels)
    if grid is None or bias.shape != (view.channels,):
        return "bias in float"
    steps = bias.to(torch.float64).abs() / grid.scale.to(torch.float64)
    if not bool((steps < 2.0**31 - 1).all()):
        return "bias in float, beyond int32 at this scale"
    with model.graph.inserting_before(view.node):
        if view.site.float_bias:
            node = new_constant(model, model.graph, view.owner, "bias_on_grid", fake_quantize(bias, grid))
        else:
            node = constant_on_grid(model, view.owner, "bias", bias, grid)
    with_argument(view.node, view.site.bias, node)
    return ""


def constant_before(model: QuantGraph, view: SiteView, codes: Tensor, params: AffineParams) -> fx.Node:
    """Return a node for the weight with the given codes, before every operator that may read it."""
    with model.graph.inserting_before(view.place):
        return constant_of_codes(model, view.owner, "weight", codes, params, view.weight.dtype)
