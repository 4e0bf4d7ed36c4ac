"""GPTQ on tensors does what the paper says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import gptq_reference as reference
from tico_config import (
    ConfigError,
    DType,
    GPTQConfig,
    HessianMSESpec,
    MinMaxSpec,
    MSESpec,
    NumericsError,
    UnsupportedError,
)
from tico_observers import GramStatistic, products
from tico_quantizers import PackedWeight
from tico_quantizers.solvers import Solution, _columns, quantize_weight, solve
from tico_quantizers.testing import refused
from tiny_models import values

CASES = [
    pytest.param(bits, group_size, symmetric, id=f"{bits} bits, {group_size}, {symmetric=}")
    for bits, group_size, symmetric in [
        (2, None, False),
        (3, 16, False),
        (4, None, False),
        (4, 32, True),
        (4, 5, False),
        (4, 1, False),
        (4, 7, True),
        (8, None, True),
        (8, 40, False),
    ]
]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_solution(one: Solution, other: Solution) -> bool:
    """Tell whether two solutions have the same bits."""
    return (
        torch.equal(one.codes, other.codes)
        and torch.equal(one.scale, other.scale)
        and torch.equal(one.zero_point, other.zero_point)
        and one.loss == other.loss
    )


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), CASES)
def test_it_is_the_algorithm_of_the_paper(bits: int, group_size: int | None, symmetric: bool) -> None:
    """Codes are those of the definition in float64, but for values that float32 rounds across a tie."""
    weight, gram = values(1, 48, 96), reference.correlated_gram(96, 400)
    found = quantize_weight(
        weight, gram, bits=bits, group_size=group_size, ragged_groups=True, symmetric=symmetric
    )
    config = reference.paper(bits=bits, group_size=group_size, symmetric=symmetric)
    expected = reference.gptq(weight, gram, config)
    # A target is a float32 sum of some 100 terms: wrong by about 1e-6 of a step at 8 bits and less at
    # fewer, so about one code in 10⁵ lies that close to a tie. One that flips changes what follows in
    # its row only, and the loss hardly: both choices are equally far.
    assert (found.codes == expected.codes).double().mean() >= 0.999
    wanted = reference.loss(weight, expected.values, gram)
    # Groups of one column have no error but that of their float32 scale: 2⁻²⁴ of each value.
    rounding = reference.loss(weight * 2.0**-24, torch.zeros(()), gram)
    assert reference.loss(weight, found.dequantize(), gram) == pytest.approx(wanted, rel=1e-4, abs=rounding)


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), CASES)
def test_a_diagonal_hessian_rounds_to_nearest(bits: int, group_size: int | None, symmetric: bool) -> None:
    """Where inputs do not depend on each other, no error can be made up for."""
    weight, gram = values(2, 9, 40), torch.diag(torch.arange(1.0, 41.0))
    found = quantize_weight(
        weight, gram, bits=bits, group_size=group_size, ragged_groups=True, symmetric=symmetric
    )
    nearest = PackedWeight.round_to_nearest(
        weight, DType(bits, signed=symmetric), symmetric=symmetric, group_size=group_size
    )
    assert torch.equal(found.codes, nearest.integer_codes())
    assert torch.equal(found.dequantize(), nearest.dequantize())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_weight_on_the_grid_stays(bits: int) -> None:
    """There is no error to make up for, so nothing is changed, however the inputs are correlated."""
    steps = torch.arange(6 * 32).view(6, 32) * 7 % 2**bits
    steps[:, :2] = torch.tensor([0, 2**bits - 1])
    weight = (steps - 1) * 0.25
    found = quantize_weight(weight, reference.correlated_gram(32, 90), bits=bits)
    assert torch.equal(found.dequantize(), weight)
    assert found.loss == 0.0


@pytest.mark.parametrize("leaf", [1, 5, 64])
def test_where_the_columns_are_split_does_not_matter(leaf: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns are corrected at once or later, in blocks of any size, with the same result."""
    weight, gram = values(3, 64, 150), reference.correlated_gram(150, 600)
    whole = quantize_weight(weight, gram, bits=4)
    monkeypatch.setattr(_columns, "_LEAF_COLUMNS", leaf)
    monkeypatch.setattr(products, "_TERMS", 2 * leaf)
    split = quantize_weight(weight, gram, bits=4)
    # Float32 sums in another order: one code in 10⁵ is as close to a tie, see above.
    assert (whole.codes == split.codes).double().mean() >= 0.999
    # And both choices at a tie are equally far.
    assert split.loss == pytest.approx(whole.loss, rel=1e-4)


@pytest.mark.parametrize("exponent", [-80, -20, -1, 1, 20, 80])
def test_scaling_the_hessian_by_a_power_of_four_changes_nothing(exponent: int) -> None:
    """Its factor is scaled by a power of two, which is exact."""
    weight, gram = values(4, 16, 70), reference.correlated_gram(70, 200)
    one = quantize_weight(weight, gram, bits=4)
    scaled = quantize_weight(weight, gram * 4.0**exponent, bits=4)
    assert torch.equal(one.codes, scaled.codes)
    # The undamped loss is a difference of float64 sums over some 1,000 terms: 1,000 * 2⁻⁵³ of each.
    assert scaled.loss == pytest.approx(one.loss * 4.0**exponent, rel=1e-12)


def test_permuting_the_rows_permutes_the_codes() -> None:
    """Rows know nothing of each other."""
    weight, gram = values(5, 40, 70), reference.correlated_gram(70, 200)
    order = torch.arange(40) * 7 % 40
    one = quantize_weight(weight, gram, bits=4)
    permuted = quantize_weight(weight[order], gram, bits=4)
    assert torch.equal(permuted.scale, one.scale[order])
    # The kernel of a product may take the last rows in another way, with another rounding.
    assert (permuted.codes == one.codes[order]).double().mean() >= 0.999


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_in_range_and_the_range_is_used(bits: int, symmetric: bool) -> None:
    """Every code is one of the format, and the outermost ones occur."""
    found = quantize_weight(
        values(6, 64, 48), reference.correlated_gram(48, 100), bits=bits, symmetric=symmetric
    )
    dtype = DType(bits, signed=symmetric)
    # A symmetric grid reaches one end of the range exactly where one of the two limits it.
    ends = {int(found.codes.min()), int(found.codes.max())}
    assert int(found.codes.min()) >= dtype.qmin
    assert int(found.codes.max()) <= dtype.qmax
    assert ends == {dtype.qmin, dtype.qmax}


def test_act_order_handles_the_largest_inputs_first() -> None:
    """The result is that of the reordered weight, its columns put back; the index tells each one's group."""
    weight, gram = values(7, 12, 40), reference.correlated_gram(40, 120)
    gram *= torch.outer(*[1 + torch.arange(40).double() * 11 % 40] * 2)
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    found = quantize_weight(weight, gram, bits=4, group_size=8, act_order=True)
    sorted_first = quantize_weight(weight[:, order], gram[order][:, order], bits=4, group_size=8)
    assert torch.equal(found.codes[:, order], sorted_first.codes)
    assert torch.equal(found.dequantize()[:, order], sorted_first.dequantize())
    assert found.group_index is not None
    assert found.group_index[order].tolist() == [number // 8 for number in range(40)]
    assert sorted_first.group_index is None


def test_act_order_without_groups_needs_no_index() -> None:
    """One grid a row does not depend on the order of the columns."""
    found = quantize_weight(values(8, 4, 20), reference.correlated_gram(20, 50), bits=4, act_order=True)
    assert found.group_index is None
    assert found.scale.shape == (4, 1)


OBSERVERS = [MinMaxSpec(), MSESpec(10), HessianMSESpec(10)]


@pytest.mark.parametrize("group_size", [None, 4, 16])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("observer", OBSERVERS, ids=repr)
def test_dead_columns_are_rounded_on_grids_that_span_them(
    group_size: int | None, act_order: bool, observer: MinMaxSpec | MSESpec | HessianMSESpec
) -> None:
    """Where an input that was always zero comes alive, the output is about as good as that of rounding."""
    weight, gram = values(9, 10, 32), reference.correlated_gram(32, 90)
    dead = torch.zeros(32, dtype=torch.bool)
    dead[[3, 4, 5, 6, 20]] = True
    gram[dead] = 0
    gram[:, dead] = 0
    weight = torch.where(dead, weight * 10, weight)
    config = GPTQConfig(bits=4, group_size=group_size, act_order=act_order, observer=observer)
    found = solve(weight, gram, config)
    nearest = PackedWeight.round_to_nearest(weight, DType.uint(4), symmetric=False, group_size=None)
    error, rounded = (
        (each - weight)[:, dead].square().sum() for each in (found.dequantize(), nearest.dequantize())
    )
    assert found.dead_columns == 5
    assert error < 2 * rounded


def test_a_dead_column_widens_the_grid_of_its_row() -> None:
    """It is the other columns that are rounded more coarsely."""
    weight = torch.tensor([[0.0, 15.0, 3.4, 30.0]])
    gram = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert quantize_weight(weight, gram, bits=4).dequantize().tolist() == [[0.0, 16.0, 4.0, 30.0]]


@pytest.mark.parametrize("exponent", [-140, -80, -40, 40, 100])
@pytest.mark.parametrize("scaled", [24, 5])
def test_powers_of_two_times_inputs_change_no_code(exponent: int, scaled: int) -> None:
    """However small or large the inputs are, or the first of them: no column counts as dead."""
    weight, x = (
        values(2, 6, 24),
        (values(1, 600, 24) * 8).round() / 8,
    )  # few digits: subnormal numbers hold them
    units = torch.ones(24, dtype=torch.float64)
    units[:scaled] = 2.0**exponent
    inputs = (x * units).float()
    assert torch.equal(inputs.double(), x * units)
    plain, other = (GramStatistic(columns=24).observe(each).matrix() for each in (x, inputs))
    assert torch.equal(other, plain * units[:, None] * units)
    if scaled == 24:
        one, two = (quantize_weight(weight, gram, bits=4) for gram in (plain, other))
        assert torch.equal(one.codes, two.codes)
        assert (one.dead_columns, two.dead_columns) == (0, 0)


def test_a_matrix_that_is_not_symmetric_is_refused() -> None:
    """It is no Gram matrix: half of it was left out, or rows and columns were mixed up."""
    gram = reference.correlated_gram(8, 30)
    with refused(None, NumericsError, field="gram"):
        quantize_weight(values(0, 4, 8), gram.triu(), bits=4)
    noise = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    assert quantize_weight(values(0, 4, 8), gram * (1 + 2.0**-12 * noise), bits=4).codes.shape == (4, 8)


def test_all_columns_dead_rounds_to_nearest() -> None:
    """Without any input, each column is rounded on the grid of them all, at no loss."""
    weight = values(10, 6, 24)
    found = quantize_weight(weight, torch.zeros(24, 24), bits=4)
    nearest = PackedWeight.round_to_nearest(weight, DType.uint(4), symmetric=False, group_size=None)
    assert torch.equal(found.dequantize(), nearest.dequantize())
    assert (found.dead_columns, found.loss) == (24, 0.0)


def test_a_hessian_of_rank_one_is_handled() -> None:
    """With one row of data, GPTQ is at least as good as rounding."""
    weight, row = values(11, 8, 64), values(12, 1, 64).double()
    found = quantize_weight(weight, row.T @ row, bits=3)
    nearest = PackedWeight.round_to_nearest(weight, DType.uint(3), symmetric=False, group_size=None)
    losses = [reference.loss(weight, q.dequantize(), row.T @ row) for q in (found, nearest)]
    assert losses[0] <= losses[1]


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1), (3, 128), (3, 129), (2, 17)])
def test_every_shape_equals_the_definition(shape: tuple[int, int]) -> None:
    """One row, one column, and sizes at the borders of blocks are no exceptions."""
    weight, gram = values(13, *shape), reference.correlated_gram(shape[1], 300)
    found = quantize_weight(weight, gram, bits=4)
    expected = reference.gptq(weight, gram, reference.paper(bits=4))
    assert (found.codes == expected.codes).double().mean() >= 0.999
    assert found.codes.shape == shape


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-20, 1e20, 3e38, 3.4e38])
def test_weights_of_every_size_give_finite_results(size: float) -> None:
    """Subnormal rows and rows at the limit of float32 stay finite, and within a step of the weight."""
    weight = torch.stack([values(14, 24).clamp(-1, 1), torch.linspace(-1, 1, 24)]) * size
    found = quantize_weight(weight, torch.eye(24), bits=4)
    assert bool(found.dequantize().isfinite().all())
    error = (found.dequantize().double() - weight.double()).abs().amax(1)
    assert bool((error <= found.scale[:, 0].double()).all())
    packed = PackedWeight.from_codes(
        found.codes, found.scale, found.zero_point, dtype=found.dtype, shape=(2, 24)
    )
    assert torch.equal(packed.dequantize(), found.dequantize())


def test_damping_grows_until_the_hessian_is_positive_definite() -> None:
    """What was added is reported."""
    gram = torch.eye(4, dtype=torch.float64)
    gram[0, 1] = gram[1, 0] = 1.5
    assert quantize_weight(values(15, 2, 4), gram, bits=4, damping=0.01).damping == pytest.approx(1.0)


def test_a_hessian_that_no_damping_helps_rounds_to_nearest() -> None:
    """It is no Gram matrix; the solution says that nothing was made up for."""
    weight, gram = values(16, 5, 2), torch.tensor([[1.0, 1e9], [1e9, 1.0]])
    found = quantize_weight(weight, gram, bits=4)
    nearest = PackedWeight.round_to_nearest(weight, DType.uint(4), symmetric=False, group_size=None)
    assert (found.rounded_only, found.damping) == (True, 0.0)
    assert torch.equal(found.dequantize(), nearest.dequantize())


@pytest.mark.parametrize("damping", [1e-6, 0.01, 1.0])
@pytest.mark.parametrize("rows", [1, 20, 300])
def test_the_loss_is_the_one_that_is_defined(rows: int, damping: float) -> None:
    """The reported loss is tr((W - Q) H (W - Q)ᵀ) for the H that was given."""
    weight, gram = values(17, 20, 60), reference.correlated_gram(60, rows)
    gram[7] = gram[:, 7] = 0
    weight[:, 7] = 1e4
    found = quantize_weight(weight, gram, bits=4, damping=damping)
    # Read off float32 residuals: relative errors of some 1e-7 that partly cancel; four times that where
    # three quarters of the damped loss are subtracted.
    wanted = reference.loss(weight, found.dequantize(), gram)
    assert found.loss == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("group_size", [None, 128, 200])
@pytest.mark.parametrize("size", [160, 257, 600])
def test_one_and_two_threads_give_the_same_bits(size: int, group_size: int | None) -> None:
    """LAPACK and tall products would not: the factor is blocked and products are short."""
    weight, gram = values(18, 96, size), reference.correlated_gram(size, 2 * size)
    found = []
    for count in (1, 2):
        with threads(count):
            found.append(
                quantize_weight(weight, gram, bits=4, damping=1e-4, group_size=group_size, ragged_groups=True)
            )
    assert same_solution(*found)


def test_losses_of_fallbacks_do_not_depend_on_threads() -> None:
    """The loss computed as it is defined is blocked as well."""
    row = values(19, 1, 600).double()
    found = []
    for count in (1, 2):
        with threads(count):
            found.append(quantize_weight(values(20, 64, 600), row.T @ row, bits=4))
    assert same_solution(*found)


def test_the_arguments_are_left_alone() -> None:
    """Weight and Gram matrix are only read, also where they have the format computed in."""
    weight, gram = values(21, 8, 20), reference.correlated_gram(20, 50)
    copies = weight.clone(), gram.clone()
    quantize_weight(weight, gram, bits=4, act_order=True)
    assert torch.equal(weight, copies[0])
    assert torch.equal(gram, copies[1])


EYE = torch.eye(4)


@pytest.mark.parametrize(
    ("weight", "gram", "error", "field"),
    [
        (torch.zeros(2, 3), EYE, ConfigError, "weight"),
        (torch.zeros(4), EYE, ConfigError, "weight"),
        (torch.zeros(2, 0), torch.zeros(0, 0), ConfigError, "weight"),
        (torch.full((2, 4), torch.nan), EYE, NumericsError, "weight"),
        (torch.full((2, 4), 1e300, dtype=torch.float64), EYE, NumericsError, "weight"),
        (torch.zeros(2, 4), EYE * torch.inf, NumericsError, "gram"),
        (torch.zeros(2, 4), -EYE, NumericsError, "gram"),
        (torch.zeros(2, 4, dtype=torch.int32), EYE, UnsupportedError, "dtype"),
    ],
)
def test_tensors_that_cannot_be_meant_are_refused(
    weight: Tensor, gram: Tensor, error: type[ConfigError | NumericsError | UnsupportedError], field: str
) -> None:
    """Shapes that do not fit, numbers that are none, and matrices that are no Gram matrices."""
    with pytest.raises(error) as caught:
        quantize_weight(weight, gram, bits=4)
    assert caught.value.field == field
    assert caught.value.expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("bits", 1), ("bits", 9), ("group_size", 0), ("group_size", -2), ("group_size", 3)),
        *(("group_size", 8), ("damping", 0.0), ("damping", 1.5)),
    ],
)
def test_arguments_are_those_of_the_config(field: str, value: float) -> None:
    """What `GPTQConfig` refuses is refused here, by the same name."""
    arguments: dict[str, float] = {"bits": 4} | {field: value}
    with refused(None, ConfigError, field=field) as caught:
        quantize_weight(torch.zeros(2, 4), EYE, **arguments)  # type: ignore[arg-type]
    assert caught.value.value == value
