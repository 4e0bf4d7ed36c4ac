"""Laws of finding pairs: whatever functions stand between layers, scales that are folded in cancel."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from flow_models import SHAPE, Between, Flow, StreamFlow, pairs_of, rotated, rotations_in, scaled
from tico.quantization import SmoothQuantConfig, convert, prepare
from tico_config import ConfigError
from tico_quantizers.testing import seeded
from tiny_models import values

X = values(0, *SHAPE)

Step = Callable[[Tensor, Tensor, random.Random], Tensor]


def _axis(x: Tensor, choice: random.Random) -> int:
    return choice.randrange(x.ndim)


def _for(x: Tensor, choice: random.Random, *shape: int) -> Tensor:
    """Return constants of the type of `x`, none of them near zero."""
    drawn = values(choice.randrange(100), *shape)
    return (drawn.sign() * (drawn.abs() + 0.5)).to(x.dtype)


def _permuted(x: Tensor, _: Tensor, choice: random.Random) -> Tensor:
    return x.permute(choice.sample(range(x.ndim), x.ndim))


def _unflattened(x: Tensor, _: Tensor, choice: random.Random) -> Tensor:
    axis = _axis(x, choice)
    return torch.unflatten(x, axis, (2, -1)) if x.shape[axis] % 2 == 0 and x.ndim < 5 else x


def _flattened(x: Tensor, _: Tensor, choice: random.Random) -> Tensor:
    start = _axis(x, choice)
    return x.flatten(start, min(start + 1, x.ndim - 1))


def _some(x: Tensor, _: Tensor, choice: random.Random) -> Tensor:
    axis = _axis(x, choice)
    order = torch.tensor(choice.sample(range(x.shape[axis]), choice.randint(1, x.shape[axis])))
    return choice.choice([x.index_select(axis, order), torch.split(x, 1, axis)[-1], x.chunk(2, axis)[0]])


def _pooled(x: Tensor, _: Tensor, choice: random.Random) -> Tensor:
    size = 1 if min(x.shape[2:], default=1) == 1 else 2
    if x.ndim == 3:
        return choice.choice([F.max_pool1d(x, size), F.avg_pool1d(x, size), F.adaptive_avg_pool1d(x, size)])
    if x.ndim == 4:
        return choice.choice([F.max_pool2d(x, size), F.avg_pool2d(x, size), F.adaptive_avg_pool2d(x, size)])
    return x


def _mean(x: Tensor, _: Tensor, choice: random.Random) -> Tensor:
    return x.mean(_axis(x, choice), keepdim=choice.random() < 0.5 or x.ndim == 1)


def _joined(x: Tensor, _: Tensor, choice: random.Random) -> Tensor:
    axis = _axis(x, choice)
    nothing = torch.empty([0 if each == axis else size for each, size in enumerate(x.shape)], dtype=x.dtype)
    return torch.cat(
        choice.choice([[nothing, x], [x, nothing], [x], [x, x], [x, _for(x, choice, *x.shape)]]), axis
    )


def _rows_combined(x: Tensor, _: Tensor, choice: random.Random) -> Tensor:
    return _for(x, choice, 3, x.shape[-2]) @ x if x.ndim > 1 else x


def _attended(x: Tensor, _: Tensor, choice: random.Random) -> Tensor:
    if x.ndim < 3:
        return x
    query, key = _for(x, choice, *x.shape[:-2], 5, 3), _for(x, choice, *x.shape[:-1], 3)
    return F.scaled_dot_product_attention(query, key, x)


def _with_other(x: Tensor, y: Tensor, choice: random.Random) -> Tensor:
    """Return something of `x` and `y`, which has the shape that `x` had at first."""
    if x.shape != y.shape:
        return x
    ways = [
        lambda: x * y,
        lambda: y * x,
        lambda: x / (1 + y.abs()),
        lambda: x @ y.mT,
        lambda: y @ x.transpose(-2, -1),
        lambda: x.transpose(-2, -1) @ y,
        lambda: F.scaled_dot_product_attention(x, x, y),
        lambda: x + y,
    ]
    return choice.choice(ways)()


STEPS: Mapping[str, Step] = {
    "permuted": _permuted,
    "unflattened": _unflattened,
    "flattened": _flattened,
    "flipped": lambda x, _, choice: x.flip(_axis(x, choice)),
    "repeated": lambda x, _, choice: x.repeat_interleave(choice.randint(1, 2), _axis(x, choice)),
    "expanded": lambda x, _, choice: x.expand(choice.randint(1, 2), *x.shape),
    "some": _some,
    "pooled": _pooled,
    "mean": _mean,
    "joined": _joined,
    "positive": lambda x, _, choice: choice.choice([torch.relu(x), -x, F.leaky_relu(x)]),
    "scaled": lambda x, _, choice: choice.choice(
        [x * _for(x, choice, *x.shape), x / _for(x, choice, *x.shape)]
    ),
    "rows combined": _rows_combined,
    "columns combined": lambda x, _, choice: x @ _for(x, choice, x.shape[-1], 3),
    "attended": _attended,
    "with the other": _with_other,
    "added": lambda x, _, choice: x + _for(x, choice, x.shape[-1]),
}


def between(names: list[str], seed: int) -> Between:
    """Return the function that takes these steps one after the other, always in the same way."""

    def function(x: Tensor, y: Tensor) -> Tensor:
        choice = random.Random(seed)  # noqa: S311  # nothing secret
        for name in names:
            x = STEPS[name](x, y, choice)
        return x

    return function


chains = st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4)
seeds = st.integers(0, 2**31)


@given(chains, seeds)
def test_scales_that_are_folded_in_cancel(names: list[str], seed: int) -> None:
    """Powers of two from 2⁻¹⁶ to 2¹⁶ in every channel of every pair that is found change no bit."""
    model = Flow(between(names, seed), X)
    event(f"{len(pairs_of(model, X).pairs)} pairs")
    assert torch.equal(scaled(model, X, seed)(X), model(X))


@given(chains, seeds)
def test_smoothquant_keeps_the_function_or_refuses(names: list[str], seed: int) -> None:
    """In bfloat16 its scales are powers of two: the same bits, with channels of the norm from 2⁻⁸ to 2⁸."""
    model = Flow(between(names, seed), X).bfloat16().eval()
    with torch.no_grad():
        model.norm.weight.mul_(torch.exp2(torch.arange(-8, 8, 2)))
        model.norm.bias.mul_(torch.exp2(torch.arange(-8, 8, 2)))
    x = X.bfloat16()
    try:
        prepared = prepare(model, SmoothQuantConfig(alpha=1.0), args=(x,), inplace=False)
    except ConfigError as error:
        assert error.field == "model"  # noqa: PT017  # most models have a pair
        return
    prepared(x)
    assert torch.equal(convert(prepared)(x), model(x))


@given(chains, seeds)
def test_rotations_that_are_folded_in_cancel(names: list[str], seed: int) -> None:
    """Random matrices in every rotation that is found move the output in float64 by rounding alone.

    The functions stand between layers and a norm, or between a norm and a layer.
    """
    x, function = X.double(), between(names, seed)
    behind_norm = nn.Sequential(seeded(lambda: nn.Linear(SHAPE[-1], SHAPE[-1])), Flow(function, X))
    model = (behind_norm if seed % 2 else StreamFlow(function, X)).double()
    event(f"{len(rotations_in(model, x)[1])} rotations")
    with torch.no_grad():
        expected, found = model(x), rotated(model, x, seed)(x)
    # A wrong matrix moves outputs by about their size; the condition of a norm is that of its input.
    assert float((found - expected).norm()) <= 1e-9 * float(expected.norm())
