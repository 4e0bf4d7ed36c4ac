"""The solver is pinned to the definition where it works by blocks, and to itself on other thread counts."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
import torch
from torch import Tensor

import gptq_reference as reference
from tico_config import GPTQConfig, MSESpec, PercentileSpec, SuperBlock
from tico_quantizers.algorithms.gptq import Solution, quantize_weight, solve
from tico_quantizers.solvers import factored, solve_by
from tiny_models import values


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def on_threads(
    count: int, weight: Tensor, gram: Tensor, config: GPTQConfig, cross: Tensor | None
) -> Solution:
    """Return the solution that `count` threads find."""
    torch.set_num_threads(count)
    return solve(weight, gram, config, cross_gram=cross)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [None, 32, 100, 192])
def test_many_blocks_give_the_codes_of_the_definition(group_size: int | None, act_order: bool) -> None:
    """Several blocks of the factor, groups that cross the splits of the columns, and ragged ends."""
    weight, gram = values(31, 24, 333), reference.correlated_gram(333, 1000)
    config = reference.paper(group_size=group_size, act_order=act_order)
    found, expected = solve(weight, gram, config), reference.gptq(weight, gram, config)
    # Targets are float32 sums: one code in 10⁵ is so close to a tie that it may flip, see test_gptq_core.
    assert (found.codes == expected.codes).double().mean() >= 0.999
    wanted = reference.loss(weight, expected.values, gram)
    # And both choices at a tie are equally far.
    assert found.loss == pytest.approx(wanted, rel=1e-4)


@pytest.mark.usefixtures("_threads_restored")
@pytest.mark.parametrize(
    "config",
    [
        reference.paper(group_size=32),
        reference.paper(act_order=True),
        GPTQConfig(group_size=40),
        GPTQConfig(per_tensor=True, observer=MSESpec(20)),
        GPTQConfig(symmetric=True, observer=PercentileSpec(1, 99), damping_reference="median"),
    ],
    ids=reference.fields_of,
)
@pytest.mark.parametrize(("rows", "columns"), [(1, 700), (2501, 70)])
def test_threads_do_not_change_a_bit(rows: int, columns: int, config: GPTQConfig) -> None:
    """A single row is a matrix-vector product; many rows are divided among threads at odd places."""
    config = attrs.evolve(config, damping=1e-4)
    weight, gram = values(32, rows, columns), reference.correlated_gram(columns, 2 * columns)
    cross = values(34, columns, columns).double() if config.group_size is None else None
    one, *others = (on_threads(count, weight, gram, config, cross) for count in (1, 2, 3))
    for other in others:
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.scale, other.scale)
        assert torch.equal(one.zero_point, other.zero_point)
        assert one.loss == other.loss


def _same(one: Solution, other: Solution) -> bool:
    """Return whether two solutions are equal in every field."""
    pairs = zip(attrs.astuple(one, recurse=False), attrs.astuple(other, recurse=False), strict=True)
    return all(
        isinstance(b, Tensor) and torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs
    )


@pytest.mark.parametrize(
    "config",
    [
        reference.paper(group_size=32),
        GPTQConfig(group_size=40),
        reference.paper(group_size=40, act_order=True),
        GPTQConfig(per_tensor=True, observer=MSESpec(20)),
        GPTQConfig(symmetric=True, observer=PercentileSpec(1, 99)),
        reference.paper(group_size=32, super_block=SuperBlock(scale_bits=6, offset_bits=6)),
    ],
    ids=reference.fields_of,
)
@pytest.mark.parametrize("drifts", [False, True])
def test_weights_together_have_the_bits_of_each_alone(config: GPTQConfig, drifts: bool) -> None:
    """Whatever their numbers of rows are; a weight that is all zeros, too."""
    columns = 333 if config.super_block is None else 256
    gram = reference.correlated_gram(columns, 1000)
    factor = factored(gram, config, values(36, columns, columns).double() if drifts else None)
    weights = [values(seed, rows, columns) for seed, rows in ((1, 31), (2, 1), (3, 48), (4, 100))]
    weights.append(torch.zeros(5, columns))
    together = solve_by(weights, factor, config)
    alone = [solve_by([weight], factor, config)[0] for weight in weights]
    assert all(map(_same, together, alone))


def test_a_hopeless_weight_is_rounded_to_nearest_alone() -> None:
    """Targets that drift beyond the finite numbers in one weight leave the others what they are."""
    config = GPTQConfig()
    gram = reference.correlated_gram(40, 1000)
    factor = factored(gram, config, torch.full_like(gram, 0.1 * float(gram.diagonal().mean())))
    good, bad = values(1, 8, 40), values(2, 8, 40) * 1e37
    found = solve_by([good, bad], factor, config)
    assert [each.rounded_only for each in found] == [False, True]
    assert _same(found[0], solve_by([good], factor, config)[0])


@pytest.mark.usefixtures("_threads_restored")
@pytest.mark.parametrize("shift", [0.02, 0.5, 1e9])
def test_threads_do_not_change_the_damping(shift: float) -> None:
    """What no Gram matrix is takes the same steps of damping, or is rounded to nearest, on every count."""
    weight, gram = values(35, 6, 300), reference.correlated_gram(300, 900)
    gram -= shift * gram.diagonal().mean() * torch.eye(300)
    gram.diagonal().clamp_(min=0)
    found = [on_threads(count, weight, gram, GPTQConfig(), None) for count in (1, 2, 3)]
    assert len({each.damping for each in found}) == 1
    assert all(torch.equal(each.codes, found[0].codes) for each in found)
    assert bool(found[0].dequantize().isfinite().all())


def test_a_gram_matrix_of_any_format_is_read_as_float64() -> None:
    """It is converted where it is read, block by block."""
    weight, gram = values(33, 8, 150), reference.correlated_gram(150, 400).to(torch.float32)
    narrow, wide = (quantize_weight(weight, g, bits=4, act_order=True) for g in (gram, gram.double()))
    assert torch.equal(narrow.codes, wide.codes)
    assert narrow.loss == wide.loss
