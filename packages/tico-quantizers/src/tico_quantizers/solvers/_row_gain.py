"""One factor for each row of a quantized weight, so that the layer's output keeps its size."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from tico_config import FloatFormat, GPTQConfig
from tico_observers.products import product, total, whole_columns
from tico_quantizers.solvers._factor import Hessian
from tico_quantizers.solvers._group_grid import LARGEST

_BLOCK = 128
_SMALLEST = torch.finfo(torch.float32).smallest_normal
_STEPS = 2**8
_MOST = 2.0  # a row whose output would change more than that is not like its float one at all


def has_free_scales(config: GPTQConfig) -> bool:
    """Return whether a scale may be any float32, and not only one of a grid."""
    dtype = config.number_format
    free = not isinstance(dtype, FloatFormat) or dtype.scale_format == "float32"
    return free and config.super_block is None


@attrs.frozen(eq=False)
class RowProducts:
    """For each row w of a weight and its error e: w H wᵀ, w H eᵀ and e H eᵀ, float64 (rows,)."""

    own: Tensor
    lost: Tensor
    left: Tensor

    def gains(self, *, shared: bool) -> Tensor:
        """Return what each row has to be multiplied by, or all of them where a scale is `shared`.

        With q = w - e it is w H wᵀ / w H qᵀ: the projection of the quantized output on the float one is then
        the float one. It is 1 where there is no output, or where it would be above 2 or below ½.

        It is rounded to a 256th, so that Gram matrices that differ in their last digits still give the same
        scales. A model that is called with batches of another size may give such inputs.
        """
        own, lost = (total(each).view(1) if shared else each for each in (self.own, self.lost))
        kept = own - lost
        alike = (kept * _MOST > own) & (kept < own * _MOST)
        gains = torch.where(alike, own / torch.where(alike, kept, 1.0), 1.0)
        return gains.mul(_STEPS).round().div(_STEPS).expand(len(self.own))

    def loss(self, gains: Tensor, before: float) -> float:
        """Return the sum of e' H e'ᵀ for e' = w - gain q, given what that of e H eᵀ is, more exactly.

        e' is gain e + (1 - gain) w.
        """
        known = float(total(self.left))
        share = before / known if known > 0 else 1.0
        rest = 1 - gains
        terms = gains.square() * self.left * share + rest * (2 * gains * self.lost + rest * self.own)
        return max(float(total(terms)), 0.0)


def row_products(weight: Tensor, error: Tensor, hessian: Hessian) -> RowProducts:
    """Return the products for `weight` and `error`, float32 (columns, rows), in the order of H's columns.

    >>> hessian = Hessian(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), None)
    >>> found = row_products(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [0.0]]), hessian)
    >>> found.own.item(), found.lost.item(), found.left.item(), found.gains(shared=False).item()
    (7.0, 1.5, 0.75, 1.2734375)
    """
    # In units near the largest input, since its square may be beyond float32.
    unit = math.ldexp(1.0, math.frexp(float(hessian.diagonal().max()))[1])
    rows, weights, errors = weight.shape[1], whole_columns(weight), whole_columns(error)
    own, lost, left = torch.zeros(3, weights.shape[1], dtype=torch.float64, device=weight.device)
    for low in range(0, len(weights), _BLOCK):
        high = min(low + _BLOCK, len(weights))
        # Half of H is enough: the other half gives the same products.
        block = hessian.block(low, high, low, len(weights)).div_(unit)
        block[:, : high - low].div_(2)
        half = block.to(torch.float32)
        of_weight, of_error = product(half, weights[low:]), product(half, errors[low:])
        own += _column_sums(of_weight * weights[low:high])
        lost += _column_sums(of_weight * errors[low:high] + of_error * weights[low:high])
        left += _column_sums(of_error * errors[low:high])
    return RowProducts(2 * own[:rows] * unit, lost[:rows] * unit, 2 * left[:rows] * unit)


def with_dead_columns(products: RowProducts, weight: Tensor, error: Tensor, hessian: Hessian) -> RowProducts:
    """Return the products where H has, for inputs that were always zero, the mean of the others.

    Data to come may have other inputs, and rows must not grow there by what the others need.
    """
    dead = hessian.dead()
    if not bool(dead.any()):
        return products
    rows, mean = weight.shape[1], _mean_of_others(hessian)
    weights, errors = whole_columns(weight[dead]), whole_columns(error[dead])
    own, lost = (_column_sums(weights * each)[:rows] for each in (weights, errors))
    return attrs.evolve(products, own=products.own + mean * own, lost=products.lost + mean * lost)


def _column_sums(values: Tensor) -> Tensor:
    """Return the sum of each column, float64 (columns,), added in pairs, for any thread count alike."""
    sums = values.to(torch.float64)
    while len(sums) > 1:
        half = len(sums) // 2
        sums = torch.cat([sums[:half] + sums[half : 2 * half], sums[2 * half :]])
    return sums[0]


def _mean_of_others(hessian: Hessian) -> float:
    """Return the mean of the diagonal of H where it is not 0."""
    diagonal = hessian.diagonal()
    return float(total(diagonal)) / max(int((diagonal != 0).sum()), 1)


def scaled(scale: Tensor, gains: Tensor) -> Tensor:
    """Return `scale` (rows, groups) with each row multiplied by its gain, positive, normal and finite.

    >>> scaled(torch.ones(2, 1), torch.tensor([1.5, 1.0])).flatten().tolist()
    [1.5, 1.0]
    """
    found = scale * gains.to(torch.float32)[:, None]
    return found.clamp_(_SMALLEST, LARGEST)
