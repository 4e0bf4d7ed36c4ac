"""Laws of the solver of GPTQ, for every way to choose grids and order."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gptq_reference as reference
from tico_config import DType, GPTQConfig, HessianMSESpec, MinMaxSpec, MSESpec, PercentileSpec, PerTensor
from tico_observers import ExactGramStatistic, params_from_range, products
from tico_observers.testing import tensors
from tico_quantizers.solvers import _columns, _shrinking, nearest, solve
from tico_quantizers.solvers._gptq import loss_of_nearest
from tico_quantizers.solvers._group_grid import GroupGrid
from tico_quantizers.solvers._shrinking import least_error_share
from tiny_models import values

OBSERVERS: tuple[MinMaxSpec | MSESpec | HessianMSESpec | PercentileSpec, ...] = (
    MinMaxSpec(),
    MSESpec(7),
    MSESpec(100),
    HessianMSESpec(10),
    PercentileSpec(10, 90),
)


@st.composite
def configs(draw: st.DrawFn) -> GPTQConfig:
    """Draw a config with every field that the solver looks at."""
    per_tensor = draw(st.booleans())
    return GPTQConfig(
        bits=draw(st.integers(2, 8)),
        group_size=None if per_tensor else draw(st.none() | st.integers(1, 12)),
        per_tensor=per_tensor,
        symmetric=draw(st.booleans()),
        observer=draw(st.none() | st.sampled_from(OBSERVERS)),
        static_groups=draw(st.booleans()),
        act_order=draw(st.booleans()),
        damping=draw(st.sampled_from([1e-4, 0.01, 1.0])),
        damping_reference=draw(st.sampled_from(["mean", "median"])),
    )


@st.composite
def inputs(draw: st.DrawFn, columns: int) -> Tensor:
    """Draw rows of inputs, float64 (tokens, columns)."""
    tokens = draw(st.integers(1, 6))
    return draw(tensors((tokens, columns), torch.float32, largest=2.0**10)).to(torch.float64)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Draw a weight and the Gram matrix of some inputs."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    weight = draw(tensors((rows, columns), torch.float32, largest=2.0**20))
    read = draw(inputs(columns))
    return weight, read.T @ read


@given(problems(), configs())
def test_values_are_on_the_grid_of_their_group(problem: tuple[Tensor, Tensor], config: GPTQConfig) -> None:
    """Codes lie in the range of their format, and a value is (code - zero point) * scale, bit for bit."""
    found, dtype = solve(*problem, config), DType(config.bits, signed=config.symmetric)
    assert int(found.codes.min()) >= dtype.qmin
    assert int(found.codes.max()) <= dtype.qmax
    columns = problem[0].shape[1]
    index = found.group_index
    if index is None:
        index = torch.arange(columns) // (config.group_size or columns)
    steps = (found.codes - found.zero_point[:, index]).float()
    assert torch.equal(found.dequantize(), steps * found.scale[:, index])


@given(problems(), configs())
def test_the_loss_is_that_of_the_values(problem: tuple[Tensor, Tensor], config: GPTQConfig) -> None:
    """Loss = tr((W - Q) H (W - Q)ᵀ), whatever the grids, the order and the damping."""
    (weight, gram), found = problem, solve(*problem, config)
    wanted = reference.loss(weight, found.dequantize(), gram)
    # As in test_gptq_laws: the error of each element is a float32 number.
    size = float((weight.double().square().sum() + found.dequantize().double().square().sum()) ** 0.5)
    error = float((weight.double() - found.dequantize().double()).square().sum() ** 0.5)
    trace = float(gram.diagonal().sum())
    assert abs(found.loss - wanted) <= 1e-5 * wanted + 2**-20 * trace * size * error + 1e-30


@given(st.data(), configs())
def test_weights_that_span_their_grids_stay(data: st.DataObject, config: GPTQConfig) -> None:
    """Without an error there is nothing to make up for, however the inputs depend on each other."""
    size = max(config.group_size or 12, 2)
    config = attrs.evolve(config, observer=MinMaxSpec(), static_groups=True)
    if config.group_size is not None:
        config = attrs.evolve(config, group_size=size)
    dtype, columns = DType(config.bits, signed=config.symmetric), 2 * size
    codes = data.draw(st.lists(st.integers(dtype.qmin, dtype.qmax), min_size=columns, max_size=columns))
    for start in (0, size):
        codes[start], codes[start + size - 1] = dtype.qmin, dtype.qmax
    zero_point = 0 if config.symmetric else 2 ** (config.bits - 1)
    weight = (torch.tensor([codes]) - zero_point) * 0.25
    read = data.draw(inputs(columns)) + 1
    found = solve(weight, read.T @ read, config)
    assert torch.equal(found.dequantize(), weight)
    assert found.loss == 0


@given(problems(), configs(), st.integers(-10, 10))
def test_the_hessian_counts_up_to_a_power_of_four(
    problem: tuple[Tensor, Tensor], config: GPTQConfig, exponent: int
) -> None:
    """codes(W, 4ᵏ H) = codes(W, H)."""
    weight, gram = problem
    assert torch.equal(solve(weight, gram * 4.0**exponent, config).codes, solve(weight, gram, config).codes)


@given(st.data(), configs())
def test_the_order_of_samples_does_not_matter(data: st.DataObject, config: GPTQConfig) -> None:
    """With the exact Gram matrix, the same tokens in another order give the same bits."""
    read, weight = data.draw(inputs(6)), values(71, 3, 6)
    order = data.draw(st.permutations(range(len(read))))
    rows = (read.float(), read.float()[order])
    found = []
    for x in rows:
        statistic = ExactGramStatistic(maximum=read.float().abs().amax(0)).observe(x)
        found.append(solve(weight, statistic.matrix(), config))
    assert torch.equal(found[0].codes, found[1].codes)
    assert torch.equal(found[0].scale, found[1].scale)
    assert found[0].loss == found[1].loss


@pytest.mark.parametrize("config", [GPTQConfig(), reference.paper(group_size=16, act_order=True)])
def test_rows_know_nothing_of_each_other(config: GPTQConfig) -> None:
    """Permuted rows give permuted codes and grids."""
    weight, gram = values(72, 48, 64), reference.correlated_gram(64, 150)
    order = torch.arange(48) * 7 % 48
    one, other = solve(weight, gram, config), solve(weight[order], gram, config)
    # The kernel of a product may take the last rows in another way: one code in 10⁵ is so close to a tie.
    assert (other.codes == one.codes[order]).double().mean() >= 0.999
    assert torch.allclose(other.scale, one.scale[order], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(("leaf", "terms"), [(1, 2), (3, 12), (40, 80)])
def test_blocks_of_columns_do_not_matter(leaf: int, terms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corrections made at once or later are the same, up to float32 sums across a tie."""
    weight, gram = values(73, 32, 100), reference.correlated_gram(100, 250)
    config = GPTQConfig(group_size=20, act_order=True, static_groups=True)
    whole = solve(weight, gram, config)
    monkeypatch.setattr(_columns, "_LEAF_COLUMNS", leaf)
    monkeypatch.setattr(products, "_TERMS", terms)
    assert (solve(weight, gram, config).codes == whole.codes).double().mean() >= 0.999


def test_feedback_gains_over_many_cases() -> None:
    """Over 200 random layers the loss is well below that of rounding; of a single one no law says so."""
    ratios = []
    for case in range(200):
        columns, bits = 8 + case % 40, 2 + case % 4
        weight, gram = values(case, 6, columns), reference.correlated_gram(columns, 3 * columns, seed=case)
        found = solve(weight, gram, GPTQConfig(bits=bits))
        nearest = solve(weight, torch.eye(columns), GPTQConfig(bits=bits))
        ratios.append(found.loss / reference.loss(weight, nearest.dequantize(), gram))
    ordered = torch.tensor(ratios).sort().values
    assert ordered.mean() < 0.7
    assert ordered[190] < 1


@given(st.integers(0, 2**20), st.integers(1, 300), st.sampled_from([None, 7]))
def test_loss_of_nearest_is_that_of_the_values_of_nearest(seed: int, size: int, group: int | None) -> None:
    """tr((W - Q) H (W - Q)ᵀ), over half of H, is what the definition gives in float64."""
    config = GPTQConfig(bits=3, group_size=group, ragged_groups=True)
    weight, x = values(seed, 5, size), values(seed + 1, 40, size)
    gram = x.double().T @ x.double()
    error = weight.double() - nearest(weight, config, gram.diagonal()).dequantize().double()
    # A float32 sum of n products errs by at most n * 2⁻²⁴ of |E| |H| |E|ᵀ, and each value, of at most 2 **
    # bits steps, by 2⁻²⁴ of it, which no error of a step would show.
    wide = error.abs() + weight.abs().double() * 2.0**-20
    bound = float(((wide @ gram.abs()) * wide).sum()) * (size + 4) * 2.0**-23
    assert abs(loss_of_nearest(weight, gram, config) - float(((error @ gram) * error).sum())) <= bound
    on_its_grids = loss_of_nearest(weight, gram, config, nearest(weight, config, gram.diagonal()))
    assert on_its_grids == loss_of_nearest(weight, gram, config)


@given(
    st.integers(0, 2**20),
    st.sampled_from([(1, 1), (5, 40), (33, 7), (70, 3)]),
    st.sampled_from([3, 17, 100]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_the_search_for_a_grid_is_that_of_all_candidates(
    seed: int, shape: tuple[int, int], steps: int, weighted: bool, shared: bool, lowered: bool
) -> None:
    """Leaving out candidates, and rows that are done, changes no bit."""
    columns = values(seed, *shape) ** 3
    low, high = (columns.amin(), columns.amax()) if shared else (columns.amin(0), columns.amax(0))
    params = params_from_range(low, high, DType.uint(3), symmetric=False, granularity=PerTensor())
    whole = GroupGrid(params, low.clamp(max=0).neg() if lowered else None)
    importance = values(seed + 1, shape[0]).abs().double() if weighted else None
    found = least_error_share(columns, whole, steps, importance=importance, shared=shared)
    shares = [number / steps for number in range(steps, 0, -1)]
    errors, _ = _shrinking._rows(columns, whole, importance).errors(shares)
    if shared:
        errors = errors.sum(1, keepdim=True)
    assert torch.equal(found, torch.tensor(shares, dtype=torch.float64)[errors.argmin(0)])
