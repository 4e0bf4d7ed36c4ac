"""GPTQ written down from its definition, in float64, one column after the other."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TypeAlias

import attrs
import torch
from torch import Tensor

from tico_config import DType, GPTQConfig, HessianMSESpec, MinMaxSpec, MSESpec, PercentileSpec


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


def paper(**fields: object) -> GPTQConfig:
    """Return a config with the grids and the order of arXiv 2210.17323, but for the given `fields`."""
    plain = {"observer": MinMaxSpec(), "row_gain": False, "static_groups": False, "act_order": False}
    return GPTQConfig(**{**plain, **fields})  # type: ignore[arg-type]


def fields_of(config: GPTQConfig) -> str:
    """Return a short name for a test's case: the fields that do not have their defaults."""
    default = GPTQConfig()
    names = [field.name for field in attrs.fields(GPTQConfig)]
    changed = {
        name: getattr(config, name) for name in names if getattr(config, name) != getattr(default, name)
    }
    return ", ".join(f"{name}={value}" for name, value in changed.items()) or "defaults"


def gptq(weight: Tensor, gram: Tensor, config: GPTQConfig, *, cross_gram: Tensor | None = None) -> Reference:
    """Return algorithm 1 of arXiv 2210.17323 without its blocks: the factor of H⁻¹ spreads the errors.

    With `cross_gram`, each column's share of the difference of inputs is made up for by the least squares
    over the columns that follow, as arXiv 2504.02692 derives it.
    """
    columns = weight.shape[1]
    order = torch.arange(columns)
    if config.act_order:
        order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    damped, dtype = _damped(gram, config)[order][:, order], DType(config.bits, signed=config.symmetric)
    factor: Tensor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    costs = _costs(gram.diagonal()[order], factor)
    if config.static_groups:
        costs = costs[torch.argsort(order)]
    work = weight.to(torch.float64)[:, order]
    codes, values = torch.zeros_like(work), torch.zeros_like(work)
    size = config.group_size or columns
    grids: dict[int, _Grid] = {}
    for column, original in enumerate(order.tolist()):
        group = original // size if config.static_groups else column // size
        if group not in grids:
            held = weight.to(torch.float64) if config.static_groups else work
            grids |= _opened(group, held, costs, config)
        scale, zero_point, offset = grids[group]
        target = work[:, column].clone()
        steps = ((target + offset) / scale).round()
        codes[:, original] = steps.add(zero_point).clamp(dtype.qmin, dtype.qmax)
        values[:, original] = (codes[:, original] - zero_point) * scale - offset
        error = (target - values[:, original]) / factor[column, column]
        work[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
        if cross_gram is not None:
            later = torch.linalg.inv(damped[column + 1 :, column + 1 :])
            drift = cross_gram[original, order[column + 1 :]] @ later
            work[:, column + 1 :] += target[:, None] * drift
    return Reference(codes=codes.to(torch.int32), values=_gained(weight, values, gram, config))


def _gained(weight: Tensor, values: Tensor, gram: Tensor, config: GPTQConfig) -> Tensor:
    """Return `values` times what gives each row's output the projection on its float output that this has.

    An input that was always zero counts as the mean of the others. The factor is rounded to a 256th.
    """
    if not config.row_gain or config.super_block is not None:
        return values
    diagonal = gram.diagonal().to(torch.float64)
    mean = diagonal.sum() / max(int((diagonal != 0).sum()), 1)
    outputs = weight.to(torch.float64) @ (gram + torch.diag(torch.where(diagonal == 0, mean, 0.0)))
    own, kept = (outputs * weight).sum(1, keepdim=True), (outputs * values).sum(1, keepdim=True)
    if config.per_tensor:
        own, kept = own.sum(), kept.sum()
    gains = torch.where((kept > own / 2) & (kept < own * 2), own / kept, 1.0)
    return values * (gains * 256).round() / 256


_Grid: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Scale, zero point and offset of each row."""


def _opened(group: int, held: Tensor, diagonal: Tensor, config: GPTQConfig) -> dict[int, _Grid]:
    """Return the grid of a group, or of all in its super-block on common grids of scales and of offsets."""
    size, shared = config.group_size or held.shape[1], config.super_block
    count = 1 if shared is None else shared.columns // size
    first = group // count * count
    last = min(first + count, -(-held.shape[1] // size))
    runs = {each: slice(each * size, (each + 1) * size) for each in range(first, last)}
    grids = {each: _grid(held[:, run], diagonal[run], config) for each, run in runs.items()}
    if shared is None:
        return grids
    scales, zeros, offsets = (torch.stack(each) for each in zip(*grids.values(), strict=True))
    rounded = _two_levels(scales, shared.scale_bits, 1)
    if shared.offset_bits is not None:
        # With the middle of the range where it was.
        middles = scales * (2**config.bits - 1) / 2 - offsets
        meant = (rounded * (2**config.bits - 1) / 2 - middles).clamp(min=0)
        offsets = _two_levels(meant, shared.offset_bits, 0)
    return dict(zip(grids, zip(rounded, zeros, offsets, strict=True), strict=True))


def _two_levels(values: Tensor, bits: int, least: int) -> Tensor:
    """Return values (groups, rows) as integers times a float16 that all groups of a row share."""
    most = 2**bits - 1
    unit = (values.amax(0).float() / most).half().double().clamp(min=2.0**-24)
    products: Tensor = (values / unit).round().clamp(least, most) * unit
    return products


def _costs(diagonal: Tensor, factor: Tensor) -> Tensor:
    """Return what an error in each column costs, given the factor of H⁻¹ that spreads it.

    A column whose input was always zero counts as the mean of the others.
    """
    costs = factor.diagonal().square().reciprocal()
    alive = costs[diagonal != 0].tolist()
    return torch.where(diagonal == 0, sum(alive) / max(len(alive), 1), costs)


def _damped(gram: Tensor, config: GPTQConfig) -> Tensor:
    """Return the Gram matrix with the share of its diagonal's size added to its diagonal."""
    alive = sorted(value for value in gram.diagonal().tolist() if value > 0)
    median = alive[(len(alive) - 1) // 2]
    size = median if config.damping_reference == "median" else sum(alive) / len(alive)
    damped: Tensor = gram + config.damping * size * torch.eye(len(gram), dtype=torch.float64)
    return damped


def _grid(columns: Tensor, diagonal: Tensor, config: GPTQConfig) -> _Grid:
    """Return the grid of each row, from every column that counts."""
    units = columns.reshape(1, -1) if config.per_tensor else columns
    weights = diagonal.repeat(len(columns)) if config.per_tensor else diagonal
    found = [_row_grid(row, weights, config) for row in units]
    scale, zero_point, offset = (torch.stack(each).expand(len(columns)) for each in zip(*found, strict=True))
    return scale, zero_point, offset


def _row_grid(row: Tensor, diagonal: Tensor, config: GPTQConfig) -> _Grid:
    observer, ordered = config.grid_observer, row.sort().values
    if isinstance(observer, PercentileSpec):
        low, high = (Fraction(repr(end)) * (len(row) - 1) / 100 for end in attrs.astuple(observer))
        return _affine(ordered[math.floor(low)], ordered[math.ceil(high)], config)
    if not isinstance(observer, MSESpec | HessianMSESpec):
        return _affine(ordered[0], ordered[-1], config)
    weights = diagonal if isinstance(observer, HessianMSESpec) else torch.ones_like(diagonal)
    dtype = DType(config.bits, signed=config.symmetric)
    errors, grids = [], []
    for number in range(observer.steps, 0, -1):
        scale, zero_point, offset = _affine(
            ordered[0] * number / observer.steps, ordered[-1] * number / observer.steps, config
        )
        codes = ((row + offset) / scale).round().add(zero_point).clamp(dtype.qmin, dtype.qmax)
        errors.append(float((((codes - zero_point) * scale - offset - row).square() * weights).sum()))
        grids.append((scale, zero_point, offset))
    return grids[errors.index(min(errors))]


def _affine(low: Tensor, high: Tensor, config: GPTQConfig) -> _Grid:
    """Return the smallest grid that holds 0 and both ends; with offsets, that spans them."""
    low, high, dtype = low.clamp(max=0), high.clamp(min=0), DType(config.bits, signed=config.symmetric)
    if dtype.signed:
        scale = torch.maximum(high / dtype.qmax, low / dtype.qmin).to(torch.float32).to(torch.float64)
        return scale, torch.zeros_like(scale), torch.zeros_like(scale)
    scale = ((high - low) / dtype.qmax).to(torch.float32).to(torch.float64)
    if config.super_block is not None and config.super_block.has_offsets:
        return scale, torch.zeros_like(scale), -low
    return scale, -(low / scale).round(), torch.zeros_like(scale)


def loss(weight: Tensor, values: Tensor, gram: Tensor) -> float:
    """Return tr((W - Q) H (W - Q)ᵀ)."""
    error = weight.to(torch.float64) - values.to(torch.float64)
    return float((error @ gram * error).sum())
