"""The choices within a budget: estimated first, then measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import attrs
from torch import nn

from tico_config import ConfigError, GPTQConfig, Problem
from tico_quantizers.analysis._analysis import Analysis, AnalysisLine, CurvePoint, label
from tico_quantizers.analysis._budget import Budget
from tico_quantizers.analysis._choice import choose
from tico_quantizers.analysis._layers import Layers
from tico_quantizers.analysis._measuring import Measured, Sample, Stand, measure
from tico_quantizers.analysis._overriding import Change, with_choices

_HALVINGS: Final = 4

Choices = tuple[int, ...]


@attrs.frozen(eq=False, kw_only=True)
class Search:
    """A search for the bits of `layers`, whose losses are estimates of the divergence.

    `rest` are the bytes of everything but the weights of the layers, and `samples` are held out. `converted`
    returns what `prepare` and `convert` make of a copy of `model` by a config.
    """

    model: nn.Module
    base: GPTQConfig
    candidates: tuple[Change, ...]
    layers: Layers
    rest: int
    samples: Sequence[Sample]
    converted: Callable[[GPTQConfig], nn.Module]
    show_progress: bool

    def within(self, budget: Budget, points: int) -> Analysis:
        """Return the choice within `budget`, and the best ones of `points` sizes.

        Raises:
            ConfigError: no choice is within the budget.
        """
        most = self._most_bytes(budget)
        found = [self.choices(size) for size in self._spread(points)]
        asked = [] if most is None else [self.choices(most)]
        measured = self.measured([*dict.fromkeys([*found, *asked])])
        curve = tuple(sorted(measured.values(), key=lambda point: (point.bytes, point.loss)))
        chosen = measured[asked[0]] if asked else self._of_error(budget.error or 0.0, curve)
        return Analysis(
            base=self.base,
            chosen=chosen,
            curve=curve,
            candidates=self.candidates,
            lines=tuple(self._lines(chosen.choices)),
        )

    def choices(self, most: int) -> Choices:
        """Return the candidate of each layer, of least loss among those whose weights take `most` bytes."""
        items = self.layers.items
        costs = [_sums([self.layers.losses[place] for place in item]) for item in items]
        sizes = [tuple(map(int, _sums([self.layers.sizes[place] for place in item]))) for item in items]
        taken = choose(costs, sizes, most)
        of_place = {place: choice for item, choice in zip(items, taken, strict=True) for place in item}
        return tuple(of_place[place] for place in range(len(of_place)))

    def config(self, choices: Choices) -> GPTQConfig:
        """Return an ordinary config for `choices`."""
        pairs = zip(self.layers.paths, choices, strict=True)
        return with_choices(self.base, {path: self.candidates[choice] for path, choice in pairs})

    def measured(self, found: Sequence[Choices]) -> dict[Choices, CurvePoint]:
        """Return the point of each choice, measured on the held-out samples."""
        stands = [self.layers.stand(dict(enumerate(choices))) for choices in found]
        results = self._measure(stands)
        return {choices: self._point(choices, result) for choices, result in zip(found, results, strict=True)}

    def _measure(self, stands: Sequence[Stand]) -> list[Measured]:
        return measure(self.model, stands, self.samples, show_progress=self.show_progress)

    def _point(self, choices: Choices, result: Measured) -> CurvePoint:
        size = self._size(choices)
        pairs = zip(self.layers.losses, choices, strict=True)
        return CurvePoint(
            bytes=size + self.rest,
            bits=8 * size / sum(self.layers.weights),
            loss=sum(own[choice] for own, choice in pairs),
            divergence=result.divergence,
            error=result.error,
            choices=choices,
        )

    def _size(self, choices: Choices) -> int:
        return sum(own[choice] for own, choice in zip(self.layers.sizes, choices, strict=True))

    def _ends(self) -> tuple[int, int]:
        """Return the bytes of all weights at the least and at the most."""
        sizes = self.layers.sizes
        totals = [sum(own[choice] for own in sizes) for choice in range(len(self.candidates))]
        items = [_sums([sizes[place] for place in item]) for item in self.layers.items]
        return int(sum(map(min, items))), max(totals)

    def _spread(self, points: int) -> list[int]:
        least, most = self._ends()
        steps = max(1, points - 1)
        return [least + (most - least) * step // steps for step in range(points)]

    def _most_bytes(self, budget: Budget) -> int | None:
        """Return how many bytes the weights may take; None for a budget of error.

        Raises:
            ConfigError: the smallest candidates take more.
        """
        count, rest, (least, _) = sum(self.layers.weights), self.rest, self._ends()
        if budget.bits is not None:
            most = int(budget.bits * count / 8)
            name, given, fits = "bits", budget.bits, f"{math.ceil(8000 * least / count) / 1000} or more"
        elif budget.bytes is not None:
            most = budget.bytes - rest
            name, given, fits = "bytes", budget.bytes, f"{least + rest} or more"
        else:
            return None
        if most < least:
            labels = ", ".join(map(label, self.candidates))
            sentence = f"the candidates take {fits.removesuffix(' or more')} {name} at least, of {labels}"
            remedy = "allow more, or add a smaller candidate"
            raise ConfigError(
                Problem(field=f"budget.{name}", value=given, expected=fits, sentence=sentence, remedy=remedy)
            )
        return most

    def _of_error(self, error: float, curve: Sequence[CurvePoint]) -> CurvePoint:
        """Return the smallest choice whose converted model was measured to err by `error` at most.

        Between two points of the curve the size is halved a few times. What is found is converted as the user
        will; if that errs by more, the next larger one that was measured is tried.

        Raises:
            ConfigError: none does.
        """
        fitting = [point for point in curve if point.error <= error]
        tried = self._between(error, curve, fitting[0]) if fitting else []
        found = [point.error for point in curve if point.error > error]
        for point in sorted({*fitting, *tried}, key=lambda each: each.bytes):
            model = self.converted(self.config(point.choices))
            (result,) = self._measure([{"": model}])
            if result.error <= error:
                return attrs.evolve(point, divergence=result.divergence, error=result.error)
            found.append(result.error)
        raise ConfigError(_unmet(error, min(found), self.candidates))

    def _between(self, error: float, curve: Sequence[CurvePoint], fits: CurvePoint) -> list[CurvePoint]:
        """Return smaller choices than `fits` that were measured to err by `error` at most."""
        found: list[CurvePoint] = []
        below = [point.bytes for point in curve if point.bytes < fits.bytes]
        low, high = (max(below) if below else fits.bytes), fits.bytes
        for _ in range(_HALVINGS if below else 0):
            middle = self.choices((low + high) // 2 - self.rest)
            (point,) = self.measured([middle]).values()
            if point.error <= error:
                found.append(point)
                high = point.bytes
            else:
                low = (low + high) // 2
        return found

    def _lines(self, choices: Choices) -> list[AnalysisLine]:
        layers = self.layers
        rows = zip(layers.paths, layers.weights, layers.sizes, layers.losses, choices, strict=True)
        return [
            AnalysisLine(path=path, weights=count, bytes=sizes, loss=losses, chosen=choice)
            for path, count, sizes, losses, choice in rows
        ]


def _sums(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(map(sum, zip(*rows, strict=True)))


def _unmet(error: float, least: float, candidates: Sequence[Change]) -> Problem:
    labels = ", ".join(map(label, candidates))
    return Problem(
        field="budget.error",
        value=error,
        expected=f"{least:.3g} or more",
        sentence=f"no choice of {labels} was measured to err by {error:g} at most: the least is {least:.3g}",
        remedy="allow more, or add a candidate with more bits",
    )
