"""GPTQ written down from its definition, in float64, one column after the other."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tico_config import DType


@attrs.frozen(kw_only=True)
class Reference:
    """Codes (rows, columns) and the weight that they stand for."""

    codes: Tensor = attrs.field(eq=False)
    values: Tensor = attrs.field(eq=False)


def correlated_gram(columns: int, rows: int, seed: int = 0) -> Tensor:
    """Return the Gram matrix of random rows whose columns depend on each other."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=random) / columns**0.5 + torch.eye(columns)
    inputs = (torch.randn(rows, columns, generator=random) @ mixing).to(torch.float64)
    gram: Tensor = inputs.T @ inputs
    return gram


def gptq(
    weight: Tensor,
    gram: Tensor,
    *,
    bits: int,
    group_size: int | None = None,
    symmetric: bool = False,
    damping: float = 0.01,
    static_groups: bool = False,
    cross_gram: Tensor | None = None,
) -> Reference:
    """Return algorithm 1 of arXiv 2210.17323 without its blocks: the factor of H⁻¹ spreads the errors.

    With `cross_gram`, each column's share of the difference of inputs is made up for by the least squares
    over the columns that follow, as arXiv 2504.02692 derives it.
    """
    columns = weight.shape[1]
    dtype = DType(bits, signed=symmetric)
    alive = gram.diagonal() > 0
    damped = gram + damping * gram.diagonal()[alive].mean() * torch.eye(columns, dtype=torch.float64)
    factor: Tensor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    work, codes = weight.to(torch.float64), []
    values = torch.zeros_like(work)
    for column in range(columns):
        if column % (group_size or columns) == 0:
            stop = min(column + (group_size or columns), columns)
            held = (weight.to(torch.float64) if static_groups else work)[:, column:stop]
            scale, zero_point = _grid(held, alive[column:stop], dtype)
        code = (work[:, column] / scale).round().add(zero_point).clamp(dtype.qmin, dtype.qmax)
        values[:, column] = (code - zero_point) * scale
        target = work[:, column].clone()
        error = (target - values[:, column]) / factor[column, column]
        work[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
        if cross_gram is not None:
            later = torch.linalg.inv(damped[column + 1 :, column + 1 :])
            work[:, column + 1 :] += target[:, None] * (cross_gram[column, column + 1 :] @ later)
        codes.append(code)
    return Reference(codes=torch.stack(codes, 1).to(torch.int32), values=values)


def _grid(columns: Tensor, alive: Tensor, dtype: DType) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of each row: the smallest grid with 0 for every column that counts."""
    counted = columns[:, alive] if bool(alive.any()) else columns
    low, high = counted.amin(1).clamp(max=0), counted.amax(1).clamp(min=0)
    if dtype.signed:
        scale = torch.maximum(high / dtype.qmax, low / dtype.qmin).to(torch.float32).to(torch.float64)
        return scale, torch.zeros_like(scale)
    scale = ((high - low) / dtype.qmax).to(torch.float32).to(torch.float64)
    return scale, -(low / scale).round()


def loss(weight: Tensor, values: Tensor, gram: Tensor) -> float:
    """Return tr((W - Q) H (W - Q)ᵀ)."""
    error = weight.to(torch.float64) - values.to(torch.float64)
    return float((error @ gram * error).sum())
