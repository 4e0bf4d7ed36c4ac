"""Tensors in, tensors out: the mathematics of the algorithms."""

from tico_quantizers.solvers._awq import Grid, best_scale, best_shares, magnitudes
from tico_quantizers.solvers._cle import ChannelMagnitudes, Reader, equalizing_scales
from tico_quantizers.solvers._consumer import ConsumerWeight
from tico_quantizers.solvers._factor import Factor
from tico_quantizers.solvers._gptq import (
    Solution,
    factored,
    loss_of_nearest,
    nearest,
    quantize_weight,
    solve,
    solve_by,
)
from tico_quantizers.solvers._hadamard import hadamard_matrix
from tico_quantizers.solvers._hqq import LpGrid, half_quadratic
from tico_quantizers.solvers._orthogonal import orthogonal_factors, orthogonal_matrix
from tico_quantizers.solvers._output_error import output_error, row_errors
from tico_quantizers.solvers._powers import power
from tico_quantizers.solvers._smoothquant import best_alpha, smoothing_scale

__all__ = [
    "ChannelMagnitudes",
    "ConsumerWeight",
    "Factor",
    "Grid",
    "LpGrid",
    "Reader",
    "Solution",
    "best_alpha",
    "best_scale",
    "best_shares",
    "equalizing_scales",
    "factored",
    "hadamard_matrix",
    "half_quadratic",
    "loss_of_nearest",
    "magnitudes",
    "nearest",
    "orthogonal_factors",
    "orthogonal_matrix",
    "output_error",
    "power",
    "quantize_weight",
    "row_errors",
    "smoothing_scale",
    "solve",
    "solve_by",
]
