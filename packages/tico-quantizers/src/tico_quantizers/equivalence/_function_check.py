"""That scales leave the function of a model what it was: tried on calls of the model before they stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tico_config import ConfigError, Found, Problem
from tico_modules import Edit, Offload
from tico_quantizers.calibration import (
    Call,
    Replay,
    attempted_twice,
    has_foreign_hooks,
    quiet_runs,
    tensor_leaves,
    unchanged_process,
)
from tico_quantizers.equivalence._folding import fold
from tico_quantizers.equivalence._passages import plain
from tico_quantizers.equivalence._smoothing_pairs import Pair

Scaled: TypeAlias = tuple[Pair, Tensor]
_REMEDIES = {
    "mappings": "leave it out of mappings, or name all that read it",
    "model": "leave it out by the override no_quant()",
}


def run_again(model: nn.Module, call: Call, *, with_hooks: bool = False) -> object:
    """Return what the `forward` of `model` gives for a copy of the arguments of `call`.

    Random numbers are the same ones each time, and the user notices nothing: the user's hooks are called
    `with_hooks` only, or where the model does not run without them.
    """

    def run(*, with_hooks: bool) -> tuple[object]:
        (args, kwargs, autocast), *_ = Replay([call], {})
        with unchanged_process(), quiet_runs(model, with_hooks=with_hooks), autocast.again():
            torch.manual_seed(0)
            return (model.forward(*args, **kwargs),)

    quietly = has_foreign_hooks(model) and not with_hooks
    found = attempted_twice(partial(run, with_hooks=False)) if quietly else None
    (output,) = found or run(with_hooks=True)
    return output


def require_same_function(
    model: nn.Module,
    scaled: Sequence[Scaled],
    calls: Sequence[Call],
    readers: Mapping[str, str],
    *,
    field: str,
    with_hooks: bool = False,
    offload: Offload | None = None,
) -> None:
    """Refuse scales with which `model` gives something else for one of `calls`; it stays as it is.

    Rounding moves the outputs by far less than the root of their precision, as a share of their norm; a pair
    is blamed if it moves them further by itself. `readers` says of a pair what else reads its producer, and
    `field` where the pairs come from: ``"mappings"`` or the ``"model"``. The user's hooks are a part of the
    function `with_hooks`. Scaled weights go to the folder of `offload` while they are tried.

    Raises:
        ConfigError: with every pair that changes the function.
    """

    def distance(scaled: Sequence[Scaled], call: Call, expected: list[Tensor]) -> float:
        change = partial(_folded, model, scaled)
        return moved_by(model, change, call, expected, with_hooks=with_hooks, offload=offload)

    for call in calls:
        expected = outputs_of(model, call, with_hooks=with_hooks)
        limit = max(map(rounding_limit, (each.dtype for each in expected)), default=0.0)
        if distance(scaled, call, expected) <= limit:
            continue
        blamed = {
            pair.path: (pair, moved)
            for pair, scale in scaled
            if (moved := distance([(pair, scale)], call, expected)) > limit
        }
        if not blamed:
            moved = distance(scaled, call, expected)
            blamed = {pair.path: (pair, moved) for pair, _ in scaled}
        raise ConfigError(*(_changes(pair, moved, readers, field) for pair, moved in blamed.values()))


def exact_scale(scale: Tensor) -> Tensor:
    """Return powers of two near `scale`, none of them 1 where it is another number.

    No product rounds them, so that a right pair moves no output, not even where a token is routed by a hair.
    """
    exponents = scale.to(torch.float64).log2()
    whole = torch.where(exponents.abs() < 0.5, exponents.sign(), exponents.round())
    return torch.ldexp(torch.ones_like(whole), whole)


def probing_scale(pair: Pair) -> Tensor:
    """Return a scale (channels,) to try `pair` with: powers of two, which no product rounds."""
    like = pair.consumers[0].layer.weight
    return torch.exp2(torch.arange(pair.channels, device=like.device, dtype=torch.float64) % 3)


class _Trial(Edit):
    """An edit that is always undone."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind or _Undone, error, trace)


class _Undone(Exception):  # noqa: N818  # it tells of no error
    """Stands for the exception by which an edit is undone."""


def _folded(model: nn.Module, scaled: Sequence[Scaled], edit: Edit) -> nn.Module:
    for pair, scale in scaled:
        model = fold(model, pair, scale, edit)
    return model


def moved_by(
    model: nn.Module,
    change: Callable[[Edit], nn.Module],
    call: Call,
    expected: list[Tensor],
    *,
    with_hooks: bool,
    offload: Offload | None,
) -> float:
    """Return how far a change moves outputs, as a share of their norm; it is taken back.

    It gives the root of the model.
    """
    with _Trial(None if offload is None else offload.another()) as trial:
        found = outputs_of(change(trial), call, with_hooks=with_hooks)
    if [each.shape for each in found] != [each.shape for each in expected]:
        return math.inf
    return max(map(_moved, found, expected), default=0.0)


def _moved(found: Tensor, expected: Tensor) -> float:
    finite = expected.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return math.inf
    before, after = (torch.where(finite, each.to(torch.float64), 0.0) for each in (expected, found))
    size, error = float(before.norm()), float((after - before).norm())
    return error / size if size else error


def rounding_limit(dtype: torch.dtype) -> float:
    """Return how far rounding to `dtype` may move an output, as a share of its norm, and right scales do."""
    return math.sqrt(torch.finfo(dtype).eps)


def outputs_of(model: nn.Module, call: Call, *, with_hooks: bool) -> list[Tensor]:
    """Return the tensors of floats that `model` gives for `call`."""
    leaves = tensor_leaves(plain(run_again(model, call, with_hooks=with_hooks)))
    return [leaf.detach().clone() for leaf in leaves if leaf.is_floating_point() and leaf.numel()]


def _changes(pair: Pair, moved: float, readers: Mapping[str, str], field: str) -> Problem:
    consumers = ", ".join(consumer.path for consumer in pair.consumers)
    share = f"by {moved:.2g} of its norm" if math.isfinite(moved) else "beyond recognition"
    why = f": {readers[pair.path]}" if pair.path in readers else ""
    sentence = (
        f"scaling its channels and undoing it in {consumers} changes the output of the model {share}{why}"
    )
    return Problem(
        module=pair.path,
        field=field,
        value=Found(f"a pair with {consumers}"),
        expected="a module that only layers of its pair read, each channel in proportion",
        remedy=_REMEDIES[field],
        sentence=sentence,
    )
