"""GPTQ on tensors.

Frantar et al. 2022, arXiv 2210.17323. The feedback is that of the equivalent LDLQ (Chee et al. 2023,
arXiv 2307.13304, theorem 6): with the Hessian H = U D Uᵀ, U unit upper triangular, column j is rounded as

    q_j = Q(t_j),  t_j = w_j + Σ_{i<j} (w_i - q_i) U_ij,

so that one factorization is all that is needed, and the loss is Σ_j D_j |t_j - q_j|². The grid of a group
follows from the weights that the recursion of the former paper holds when it comes to the group.

Asymmetric calibration (Li et al. 2025, arXiv 2504.02692) adds Σ_{i<j} t_i S_ij, with S the part above the
diagonal of C U⁻ᵀ D⁻¹ and C = (X̃ - X)ᵀ X for the inputs X̃ that the layer has in the float model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import attrs
import torch
from torch import Tensor

from tico_config import (
    ConfigError,
    FloatFormat,
    Found,
    GPTQConfig,
    MinMaxSpec,
    NumberFormat,
    NumericsError,
    Problem,
)
from tico_observers import AffineParams, require_finite, require_float_tensor
from tico_observers.float_formats import decode_elements
from tico_observers.products import product, total, whole_columns
from tico_quantizers.solvers._columns import Columns, column_norms, transposed
from tico_quantizers.solvers._factor import Factor, Hessian, damped_factor, rounding_only
from tico_quantizers.solvers._grids import GridRule
from tico_quantizers.solvers._group_grid import LARGEST, GroupGrid
from tico_quantizers.solvers._row_gain import has_free_scales, row_products, scaled, with_dead_columns

_LOSS_BLOCK = 128


@attrs.frozen(kw_only=True, eq=False)
class Solution:
    """A weight on a grid: ``dequantize()`` is ``(codes - zero_point) * scale`` of each column's group.

    With a `dtype` of floating-point elements it is ``element(codes) * scale``. Scales in e4m3 are multiples
    of `tensor_scale`.

    `codes` is int32 (rows, columns); `scale` and `zero_point` are (rows, groups). `group_index` (columns,)
    names the group of each column where the groups are not runs of `group_size` columns. An `offset` (rows,
    groups), if there is one, is subtracted; zero points are then 0.

    `loss` is tr((W - Q) H (W - Q)ᵀ) for the undamped H. `damping` is the share of the diagonal's size that
    was added to it. `rounded_only` is True if no damping made H positive definite: every column was then
    rounded to nearest, and `damping` is 0. A value beyond the finite numbers of float32 becomes the largest
    of them.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    dtype: NumberFormat
    group_size: int | None
    group_index: Tensor | None
    loss: float
    damping: float
    dead_columns: int
    rounded_only: bool = False
    offset: Tensor | None = None
    tensor_scale: Tensor | None = None

    def dequantize(self) -> Tensor:
        """Return the quantized weight, float32 (rows, columns)."""
        if isinstance(self.dtype, FloatFormat):
            elements = decode_elements(self.codes, self.dtype.encoding)
            return elements.mul_(self._per_column(self.scale)).clamp_(-LARGEST, LARGEST)
        values = (self.codes - self._per_column(self.zero_point)).to(torch.float32)
        values.mul_(self._per_column(self.scale))
        if self.offset is not None:
            values.sub_(self._per_column(self.offset))
        return values.clamp_(-LARGEST, LARGEST)

    def grids(self) -> list[GroupGrid]:
        """Return the grid of each group, in order."""
        offsets = [None] * self.scale.shape[1] if self.offset is None else self.offset.unbind(1)
        triples = zip(self.scale.unbind(1), self.zero_point.unbind(1), offsets, strict=True)
        return [
            GroupGrid(
                AffineParams(
                    scale=scale, zero_point=zero_point, dtype=self.dtype, tensor_scale=self.tensor_scale
                ),
                offset,
            )
            for scale, zero_point, offset in triples
        ]

    def _per_column(self, values: Tensor) -> Tensor:
        if self.group_index is not None:
            return values.index_select(1, self.group_index)
        if self.group_size is None:
            return values
        return values.repeat_interleave(self.group_size, 1)[:, : self.codes.shape[1]]


def quantize_weight(  # noqa: PLR0913  # the fields of a config, by their names
    weight: Tensor,
    gram: Tensor,
    *,
    bits: int,
    group_size: int | None = None,
    ragged_groups: bool = False,
    symmetric: bool = False,
    act_order: bool = False,
    damping: float = 0.01,
    cross_gram: Tensor | None = None,
) -> Solution:
    """Return `weight` (rows, columns) rounded with feedback by `gram` (columns, columns) = XᵀX.

    Grids are those of the paper: a group spans the values that its columns have when their turn comes. The
    rest of `GPTQConfig` has its defaults; `solve` takes them all. For `cross_gram`, see there.

    Raises:
        UnsupportedError: weight or Gram matrix are no dense floating-point tensors.
        NumericsError: they hold NaN or infinity, or the Gram matrix has a negative diagonal.
        ConfigError: the shapes do not fit each other, an argument is none that `GPTQConfig` takes, or the
            groups do not divide the columns.

    >>> solution = quantize_weight(torch.eye(4), torch.eye(4), bits=4)
    >>> torch.equal(solution.dequantize(), torch.eye(4))
    True
    """
    config = GPTQConfig(
        bits=bits,
        group_size=group_size,
        ragged_groups=ragged_groups,
        symmetric=symmetric,
        observer=MinMaxSpec(),
        row_gain=False,
        static_groups=False,
        act_order=act_order,
        damping=damping,
    )
    _require_fit(weight, gram, cross_gram)
    _require_whole_groups(weight, config)
    return solve(weight, gram, config, cross_gram=cross_gram)


def solve(weight: Tensor, gram: Tensor, config: GPTQConfig, *, cross_gram: Tensor | None = None) -> Solution:
    """Return `weight` (rows, columns) rounded as `config` says with feedback by `gram` = XᵀX.

    Columns whose inputs were always zero are rounded to nearest. The grids span them as they do the others,
    since other data may differ. Where H is not positive definite, ten times the damping is tried, up to 10⁵
    times. If none suffices, or the feedback is beyond the finite numbers, all columns are rounded to nearest.
    `overrides` and `ragged_groups` are ignored: the last group is shorter if need be.

    `cross_gram` (columns, columns) = (X̃ - X)ᵀ X makes the calibration asymmetric (arXiv 2504.02692). X are
    the inputs of the layer in the quantized model, a token a row, from which `gram` comes; X̃ are those in the
    float model. The layer's output then comes near X̃ Wᵀ, which compensates for errors of earlier layers.
    Multiply it by a number below 1 to compensate for that share of them; the authors' code takes 0.25.

    Raises:
        UnsupportedError: weight or Gram matrix are no dense floating-point tensors.
        NumericsError: they hold NaN or infinity, or the Gram matrix is none: its diagonal is negative
            somewhere, or its halves differ.
        ConfigError: the shapes do not fit each other.

    >>> config = GPTQConfig(bits=3, group_size=2, symmetric=True)
    >>> solve(torch.eye(4), torch.eye(4), config).scale.shape
    torch.Size([4, 2])
    """
    _require_fit(weight, gram, cross_gram)
    _require_symmetric(gram.detach())
    return solve_by([weight], factored(gram, config, cross_gram), config)[0]


def factored(gram: Tensor, config: GPTQConfig, cross_gram: Tensor | None = None) -> Factor:
    """Return what `solve_by` needs of `gram` and of the order, the damping and its reference in `config`.

    Raises:
        NumericsError: the matrices hold NaN or infinity, or the Gram matrix has a negative diagonal.
    """
    for name, matrix in {"gram": gram, "cross_gram": cross_gram}.items():
        if matrix is not None:
            _require_finite(matrix.detach(), name)
    lowest = float(gram.diagonal().min())
    if lowest < 0:
        found = Found(f"one with {lowest:g} on it")
        raise NumericsError(Problem(field="gram", value=found, expected="of a diagonal of at least 0"))
    order = torch.argsort(gram.diagonal(), descending=True, stable=True) if config.act_order else None
    return damped_factor(Hessian(gram.detach(), order), config, cross_gram)


def solve_by(weights: Sequence[Tensor], factor: Factor, config: GPTQConfig) -> list[Solution]:
    """Return what `solve` does for each of `weights` (rows, columns), whose layers have read the same.

    `factor` is what `factored` has made of the Gram matrix and the same config. The results are those of the
    weights one by one; together they take less time where they are small.

    Raises:
        NumericsError: a weight holds NaN or infinity.
    """
    weights = [weight.detach().to(torch.float32) for weight in weights]
    for weight in weights:
        _require_finite(weight, "weight")
    columns = _rounded(weights, factor, config)
    if columns is None and len(weights) > 1:
        return [solution for weight in weights for solution in solve_by([weight], factor, config)]
    if columns is None:
        factor = rounding_only(factor.hessian)
        columns = Columns(weights, factor, config)
        columns.solve(0, len(factor.hessian))
    found = [_solution(columns, number, factor) for number in range(len(weights))]
    if not config.row_gain or factor.rounded_only or not has_free_scales(config):
        return found
    shared = config.per_tensor
    pairs = zip(found, weights, strict=True)
    return [_with_gains(each, weight, factor.hessian, shared=shared) for each, weight in pairs]


def _with_gains(solution: Solution, weight: Tensor, hessian: Hessian, *, shared: bool) -> Solution:
    """Return a solution for `weight` (rows, columns) whose outputs are as large as those of the floats."""
    columns, error = (_in_order(each, hessian) for each in (weight, weight - solution.dequantize()))
    products = row_products(columns, error, hessian)
    gains = with_dead_columns(products, columns, error, hessian).gains(shared=shared)
    loss = products.loss(gains, solution.loss)
    return attrs.evolve(solution, scale=scaled(solution.scale, gains), loss=loss)


def _in_order(matrix: Tensor, hessian: Hessian) -> Tensor:
    """Return the columns of `matrix` as rows, in the order in which they are rounded."""
    columns = transposed(matrix)
    return columns if hessian.order is None else columns[hessian.order]


def nearest(weight: Tensor, config: GPTQConfig, diagonal: Tensor | None = None) -> Solution:
    """Return `weight` rounded to nearest, without feedback, on the grids that `config` finds for it.

    `diagonal` (columns,) is that of H, all ones if not given; `loss` is that of an H which has nothing else.

    >>> nearest(torch.eye(4) * 15, GPTQConfig(bits=4)).codes[0].tolist()
    [15, 0, 0, 0]
    """
    error = transposed(weight.detach().to(torch.float32))
    if diagonal is None:
        diagonal = error.new_ones(len(error), dtype=torch.float64)
    rule = GridRule(config, diagonal.to(torch.float64)).for_weight(error)
    grids, codes = [], torch.empty_like(error, dtype=torch.int32)
    for start, grid, steps in _to_nearest(error, rule):
        grids.append(grid)
        codes[start : start + rule.group] = steps
    found = _on_grid(transposed(codes), grids, rule, rounded_only=True)
    return attrs.evolve(found, loss=float(total(column_norms(error).square() * rule.costs)))


def loss_of_nearest(
    weight: Tensor, gram: Tensor, config: GPTQConfig, solved: Solution | None = None
) -> float:
    """Return tr((W - Q) H (W - Q)ᵀ) of what `nearest` makes of `weight`, to the digits of float32.

    With `solved`, whose groups are runs of columns, it is rounded on the grids that this has found.

    >>> loss_of_nearest(torch.tensor([[1.0, 2.25, 15.0]]), torch.eye(3) * 4, GPTQConfig(bits=4))
    0.25
    """
    error = transposed(weight.detach().to(torch.float32))
    if solved is not None:
        for columns, grid in zip(
            torch.split(error, config.shared_columns or len(error)), solved.grids(), strict=True
        ):
            grid.take_nearest(columns)
        return quadratic_loss(error, Hessian(gram, None), torch.float32)
    rule = GridRule(config, gram.diagonal().to(torch.float64)).for_weight(error)
    # Grids of ranges alone are found for all groups at once, which takes half as long.
    whole = len(error) // rule.group * rule.group if rule.is_of_ranges else 0
    if whole:
        groups = error[:whole].view(-1, rule.group, error.shape[1])
        rule.of_ranges(groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)).take_nearest(groups)
    for _ in _to_nearest(error[whole:], rule):
        pass
    return quadratic_loss(error, Hessian(gram, None), torch.float32)


def _to_nearest(columns: Tensor, rule: GridRule) -> Iterator[tuple[int, GroupGrid, Tensor]]:
    """Yield the first column, the grid and the codes of each group, and leave the error in `columns`."""
    for start in range(0, len(columns), rule.span):
        grids = rule.grids(columns[start : start + rule.span], start)
        for place, grid in enumerate(grids):
            first = start + place * rule.group
            yield first, grid, grid.take_nearest(columns[first : first + rule.group])


def _rounded(weights: Sequence[Tensor], factor: Factor, config: GPTQConfig) -> Columns | None:
    """Return the columns, all rounded, or None if a target went beyond the finite numbers."""
    columns = Columns(weights, factor, config)
    try:
        columns.solve(0, len(factor.hessian))
    except NumericsError:  # a group's range
        return None
    return columns if bool(columns.norms.isfinite().all()) else None


def _solution(columns: Columns, number: int, factor: Factor) -> Solution:
    """Return the codes of a weight in the original order of the columns, with the loss."""
    hessian = factor.hessian
    back = None if hessian.order is None else torch.argsort(hessian.order)
    codes = columns.codes[:, columns.parts[number]]
    codes = transposed(codes if back is None else codes[back])
    return attrs.evolve(
        _on_grid(codes, columns.grids[number], columns.rules[number], rounded_only=factor.rounded_only),
        loss=_loss(columns, number, factor),
        group_index=_group_index(columns, back),
        damping=factor.damping,
        dead_columns=int(hessian.dead().sum()),
    )


def _on_grid(codes: Tensor, grids: list[GroupGrid], rule: GridRule, *, rounded_only: bool) -> Solution:
    """Return the solution that the grids of all groups make of `codes` (rows, columns)."""
    rows = len(codes)
    offsets = [grid.offset.expand(rows) for grid in grids if grid.offset is not None]
    return Solution(
        codes=codes,
        scale=torch.stack([grid.scale.expand(rows) for grid in grids], 1),
        zero_point=torch.stack([grid.zero_point.expand(rows) for grid in grids], 1),
        dtype=rule.dtype,
        group_size=rule.config.shared_columns,
        group_index=None,
        loss=0.0,
        damping=0.0,
        dead_columns=int((rule.costs == 0).sum()),
        rounded_only=rounded_only,
        offset=torch.stack(offsets, 1) if offsets else None,
        tensor_scale=rule.tensor_scale,
    )


def _group_index(columns: Columns, back: Tensor | None) -> Tensor | None:
    """Return the group of each column in the original order, None where that tells it itself."""
    config = columns.rule.config
    if back is None or config.shared_columns is None or config.static_groups:
        return None
    return columns.group_of[back].to(torch.int32)


def _require_fit(weight: Tensor, gram: Tensor, cross_gram: Tensor | None) -> None:
    """Refuse what are no matrices, or matrices of sizes that do not fit each other."""
    given = {"weight": weight, "gram": gram} | ({} if cross_gram is None else {"cross_gram": cross_gram})
    for tensor in given.values():
        require_float_tensor(tensor, "gptq")
    shapes = [tuple(tensor.shape) for tensor in given.values()]
    size = weight.shape[1] if weight.ndim == 2 else 0
    if not size or any(shape != (size, size) for shape in shapes[1:]):
        found = Found(" and ".join(map(str, shapes)))
        expected = "(rows, columns) for the weight and (columns, columns) for Gram matrices"
        raise ConfigError(Problem(field="weight", value=found, expected=expected))


def _require_symmetric(gram: Tensor) -> None:
    """Refuse a matrix whose halves differ by more than rounding, measured by the bound |hᵢⱼ|² ≤ hᵢᵢ hⱼⱼ."""
    roots = gram.diagonal().to(torch.float64).clamp(min=0).sqrt()
    difference = (gram - gram.T).abs().to(torch.float64)
    tolerance = max(2.0**-10, 16 * torch.finfo(gram.dtype).eps)
    far = difference > tolerance * roots[:, None] * roots
    if bool(far.any()):
        row, column = torch.nonzero(far)[0].tolist()
        one, other = gram[row, column].item(), gram[column, row].item()
        found = Found(f"{one:g} at {row, column} and {other:g} opposite")
        raise NumericsError(Problem(field="gram", value=found, expected="a symmetric matrix, as XᵀX is"))


def _require_whole_groups(weight: Tensor, config: GPTQConfig) -> None:
    """Refuse groups that do not divide the columns, unless the last one may be shorter."""
    size, width = config.group_size, weight.shape[1]
    if size is None or config.ragged_groups or width % size == 0:
        return
    raise ConfigError(
        Problem(
            field="group_size",
            value=size,
            expected=f"None or a divisor of the {width} columns",
            remedy="choose one, or let the last group be shorter by ragged_groups=True",
            sentence=f"group_size={size} does not divide the {width} columns",
        )
    )


def _require_finite(matrix: Tensor, name: str) -> None:
    # A finite sum has finite terms; only where it is not are they looked at one by one, which takes longer.
    if not bool(torch.isfinite(matrix.sum())):
        require_finite(matrix, "gptq", name)


def _loss(columns: Columns, number: int, factor: Factor) -> float:
    """Return tr((W - Q) H (W - Q)ᵀ) of a weight, read off the residual of each target where that is exact."""
    residuals, errors = columns.norms[number].square()
    damped = float(total(residuals * factor.gains))
    error = float(total(errors))
    loss = damped - factor.added * error
    # A residual is a float32 number as wide as the grid, less its code: what little is left of a large
    # difference would be its rounding. And what drifted is in the residuals too.
    exact = loss > damped / 4 and error > 2**-40 * columns.width(number) and factor.is_plain
    if exact:
        return loss
    return max(quadratic_loss(columns.error_of(number), factor.hessian, torch.float64), 0.0)


def quadratic_loss(errors: Tensor, hessian: Hessian, dtype: torch.dtype) -> float:
    """Return tr(E H Eᵀ) for Eᵀ = `errors` (columns, rows), by products in `dtype` over half of H.

    >>> hessian = Hessian(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), None)
    >>> quadratic_loss(torch.tensor([[1.0], [2.0]]), hessian, torch.float64)
    7.0
    """
    # In units near the largest input, since its square may be beyond float32.
    unit = math.ldexp(1.0, math.frexp(float(hessian.diagonal().max()))[1])
    error, loss = whole_columns(errors.to(dtype)), 0.0
    for low in range(0, len(error), _LOSS_BLOCK):
        high = min(low + _LOSS_BLOCK, len(error))
        block = hessian.block(low, high, low, len(error)).div_(unit)
        block[:, : high - low].div_(2)
        loss += float(total(product(block.to(dtype), error[low:]).mul_(error[low:high])))
    return 2 * loss * unit
