"""Adam on a loss of samples, of whose steps the one counts that is best on other samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import attrs
import torch
from torch import Tensor

from tico_config import CalibrationError, Found, NumericsError, Problem

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8


class Loss(Protocol):
    """A loss of one sample, as a function of tensors that steps move."""

    def __call__(self, sample: int, /) -> Tensor:
        """Return the loss of sample number `sample`, a single number."""


@attrs.frozen(kw_only=True)
class Split:
    """The numbers of the samples that steps learn from, and of those that only say which step is best."""

    learned: tuple[int, ...]
    held_out: tuple[int, ...]

    @classmethod
    def of(cls, count: int, *, share: float, seed: int) -> Split:
        """Return `count` samples with about a `share` of them held out, at least one and never all.

        Raises:
            CalibrationError: there are less than two.

        >>> Split.of(4, share=0.25, seed=0)
        Split(learned=(1, 2, 3), held_out=(0,))
        """
        if count < 2:
            raise CalibrationError(
                Problem(
                    field="model",
                    value=Found(f"{count} sample{'' if count == 1 else 's'}"),
                    expected="at least two, one of them to be held out",
                    sentence="at least two samples are needed, some to learn from and others to check the"
                    f" steps on; there is {count or 'none'}",
                    remedy="run more samples through the prepared model",
                )
            )
        size = min(max(round(count * share), 1), count - 1)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        return cls(learned=tuple(sorted(order[size:])), held_out=tuple(sorted(order[:size])))


@attrs.frozen(kw_only=True)
class Schedule:
    """How a descent goes: Adam, Kingma and Ba 2014, arXiv 1412.6980, its rate falling by half a cosine.

    Attributes:
        steps: the number of steps.
        rate: the length of the first step, which each coordinate takes at most.
        samples: how many samples a step learns from.
        checks: after how many steps the loss of the samples held out is computed, and after the last.
        seed: the seed of the order of samples.
    """

    steps: int
    rate: float
    samples: int = 1
    checks: int = 1
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Return the rate of a step, which are counted from 1.

        >>> schedule = Schedule(steps=2, rate=1.0)
        >>> [round(schedule.rate_at(step), 12) for step in (1, 2)]
        [1.0, 0.5]
        """
        return self.rate * (1 + math.cos(math.pi * (step - 1) / self.steps)) / 2

    def is_checked(self, step: int) -> bool:
        """Return whether the samples held out are looked at after a step."""
        return step % self.checks == 0 or step == self.steps


@attrs.frozen(kw_only=True)
class Descent:
    """What a descent has come to: the mean losses of the samples held out, and the step of the second one.

    Where no step has made it less, `after` is `before`, and `step` is 0.
    """

    before: float
    after: float
    step: int


class Adam:
    """The state of Adam for `values`, leaves with derivatives that it moves where they are.

    >>> value = torch.zeros(1, requires_grad=True)
    >>> Adam([value]).step([torch.tensor([3.0])], rate=0.5)
    >>> round(value.item(), 4)
    -0.5
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        self._values = values
        self._means = [torch.zeros_like(value) for value in values]
        self._squares = [torch.zeros_like(value) for value in values]
        self._count = 0

    @torch.no_grad()
    def step(self, slopes: Sequence[Tensor], rate: float) -> None:
        """Move each value against its slope, by about `rate`."""
        self._count += 1
        first, second = 1 - _FIRST**self._count, 1 - _SECOND**self._count
        for value, slope, mean, square in zip(self._values, slopes, self._means, self._squares, strict=True):
            mean.lerp_(slope, 1 - _FIRST)
            square.mul_(_SECOND).addcmul_(slope, slope, value=1 - _SECOND)
            value.sub_((mean / first).div_((square / second).sqrt_().add_(_EPSILON)), alpha=rate)


def descend(
    values: Sequence[Tensor],
    loss: Loss,
    split: Split,
    schedule: Schedule,
    *,
    within: Callable[[], AbstractContextManager[object]] = nullcontext,
    after_step: Callable[[int, float], object] = lambda step, loss: None,
) -> Descent:
    """Move `values` to where the mean `loss` of the samples held out is least, of all steps looked at.

    In memory are the derivatives of one sample at a time. After an exception the values are anything.

    Args:
        values: leaves with derivatives, which are written to.
        loss: the loss of a sample, which depends on `values`.
        split: which samples are learned from, and which are held out.
        schedule: how the descent goes.
        within: makes the context in which a loss is computed and derived, anew each time.
        after_step: is told the number of each step and the last loss of the samples held out.

    Raises:
        NumericsError: the loss is NaN or infinite before the first step.

    >>> value = torch.zeros(1, requires_grad=True)
    >>> schedule, split = Schedule(steps=8, rate=0.5, checks=1), Split.of(2, share=0.5, seed=0)
    >>> found = descend([value], lambda sample: (value - 1).square().sum(), split, schedule)
    >>> found.before, found.after < 0.1, found.step > 0
    (1.0, True, True)
    """
    run = _Run(values=values, loss=loss, split=split, within=within)
    best = _Best.of(values, run.held_out())
    if not math.isfinite(best.before):
        raise NumericsError(
            Problem(field="loss", value=best.before, expected="finite before the first step is made")
        )
    adam, samples = Adam(values), _endless(split.learned, schedule.seed)
    latest = best.before
    for step in range(1, schedule.steps + 1):
        chosen = [next(samples) for _ in range(schedule.samples)]
        adam.step(run.slopes(chosen), schedule.rate_at(step))
        if schedule.is_checked(step):
            latest = run.held_out()
            best.offer(step, latest)
        after_step(step, latest)
    return best.put_back()


@attrs.define(kw_only=True, eq=False)
class _Best:
    """The values with the least loss so far."""

    before: float
    values: Sequence[Tensor]
    loss: float
    kept: list[Tensor]
    step: int = 0

    @classmethod
    def of(cls, values: Sequence[Tensor], loss: float) -> _Best:
        return cls(values=values, before=loss, loss=loss, kept=_copies(values))

    def offer(self, step: int, loss: float) -> None:
        if loss < self.loss:
            self.loss, self.step, self.kept = loss, step, _copies(self.values)

    def put_back(self) -> Descent:
        with torch.no_grad():
            for value, copy in zip(self.values, self.kept, strict=True):
                value.copy_(copy)
        return Descent(before=self.before, after=self.loss, step=self.step)


def _copies(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.detach().clone() for value in values]


@attrs.frozen(kw_only=True, eq=False)
class _Run:
    """The loss of samples, and its derivatives."""

    values: Sequence[Tensor]
    loss: Loss
    split: Split
    within: Callable[[], AbstractContextManager[object]]

    def held_out(self) -> float:
        """Return the mean loss of the samples held out."""
        numbers = []
        for sample in self.split.held_out:
            with torch.no_grad(), self.within():
                numbers.append(float(self.loss(sample)))
        return math.fsum(numbers) / len(numbers)

    def slopes(self, samples: Sequence[int]) -> list[Tensor]:
        """Return the derivatives of the mean loss of `samples`, 0 by what no loss depends on."""
        sums = [torch.zeros_like(value) for value in self.values]
        for sample in samples:
            with torch.enable_grad(), self.within():
                slopes = torch.autograd.grad(self.loss(sample), list(self.values), allow_unused=True)
            for index, slope in enumerate(slopes):
                if slope is not None:
                    sums[index] += slope / len(samples)
        return sums


def _endless(samples: Sequence[int], seed: int) -> Iterator[int]:
    """Yield all of `samples` in an order drawn from `seed`, then all of them in another one, and so on."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for place in torch.randperm(len(samples), generator=generator).tolist():
            yield samples[place]
