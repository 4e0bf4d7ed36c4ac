"""analyze: which layer is to get how many bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from torch import nn

from tico_config import CalibrationError, Found, GPTQConfig, Problem, apply_partial
from tico_config.validation import check_instance, check_integer, refuse
from tico_quantizers.analysis._analysis import Analysis
from tico_quantizers.analysis._budget import Budget
from tico_quantizers.analysis._candidates import as_batches, convert_candidates
from tico_quantizers.analysis._choice import require_solver
from tico_quantizers.analysis._layers import Layers
from tico_quantizers.analysis._measuring import Sample, measure, on_device_of
from tico_quantizers.analysis._overriding import Change, with_choices
from tico_quantizers.analysis._search import Search
from tico_quantizers.calibration import Batch, TokenMask, micro_batches
from tico_quantizers.lifecycle import calibrate, convert, plan, prepare
from tico_quantizers.registry import Registry

CANDIDATES: Final[tuple[Change, ...]] = ({"bits": 2}, {"bits": 3}, {"bits": 4}, {"bits": 8})
"""What `analyze` chooses from unless it is told otherwise."""

_EVERY: Final = 4


def analyze(  # noqa: PLR0913  # what an analysis depends on, by name
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    budget: Budget,
    base: GPTQConfig | None = None,
    candidates: Sequence[Change] = CANDIDATES,
    together: Sequence[str] = (),
    heldout: Iterable[Batch] | None = None,
    mask: TokenMask | None = None,
    points: int = 9,
    show_progress: bool = True,
    registry: Registry,
) -> Analysis:
    """Return the bits of each layer that cost least within `budget`.

    This is `tico.quantization.analyze`, which says more, without a registry of its own.
    """
    base = GPTQConfig(group_size=64) if base is None else base
    _require_arguments(budget, base, candidates, points)
    require_solver()
    paths = _planned(model, base, candidates, registry)
    samples, tests = _samples(model, batches, heldout, mask)
    made = convert_candidates(model, paths, base, candidates, samples, registry)
    layers = Layers.of(model, made, together)
    first = plan(model, with_choices(base, dict.fromkeys(layers.paths, candidates[0])), registry=registry)
    search = Search(
        model=model,
        base=base,
        candidates=tuple(candidates),
        layers=_fitted(model, layers, tests, show_progress=show_progress),
        rest=first.bytes - sum(sizes[0] for sizes in layers.sizes),
        samples=tests,
        converted=lambda config: _converted(model, config, samples, registry),
        show_progress=show_progress,
    )
    return search.within(budget, points)


def _fitted(model: nn.Module, layers: Layers, samples: Sequence[Sample], *, show_progress: bool) -> Layers:
    """Return `layers` with losses that fit what is measured of each block and of each role."""
    blocks, roles = layers.grouped(layers.blocks), layers.grouped(layers.roles)
    found = measure(model, [*blocks.values(), *roles.values()], samples, show_progress=show_progress)
    values = iter([each.divergence for each in found])
    return layers.fitted(
        {name: next(values) for name in blocks},
        {name: next(values) for name in roles},
    )


def _planned(
    model: nn.Module, base: GPTQConfig, candidates: Sequence[Change], registry: Registry
) -> list[str]:
    """Return the paths of the layers that `base` quantizes, after every candidate was found to fit them.

    Raises:
        TicoError: one does not.
    """
    lines = plan(model, base, registry=registry).lines
    for change in candidates:
        plan(model, apply_partial(base, "candidates", change, base.fixed_fields), registry=registry)
    return [line.path for line in lines if line.bits is not None]


def _samples(
    model: nn.Module, batches: Iterable[Batch], heldout: Iterable[Batch] | None, mask: TokenMask | None
) -> tuple[list[Sample], list[Sample]]:
    """Return the samples to calibrate on, and those to measure on: without others, every fourth is held out.

    Raises:
        CalibrationError: there are none.
    """
    samples = _read("batches", model, batches, mask)
    if heldout is not None:
        return samples, _read("heldout", model, heldout, mask)
    every = min(_EVERY, len(samples))
    tests = samples[every - 1 :: every]
    return [each for number, each in enumerate(samples, 1) if number % every] or samples, tests


def _read(field: str, model: nn.Module, batches: Iterable[Batch], mask: TokenMask | None) -> list[Sample]:
    found = [on_device_of(model, each) for batch in batches for each in micro_batches(batch, 1, mask)]
    if not found:
        expected = "at least one batch with a real token"
        raise CalibrationError(Problem(field=field, value=Found("none"), expected=expected))
    return found


def _converted(
    model: nn.Module, config: GPTQConfig, samples: Sequence[Sample], registry: Registry
) -> nn.Module:
    prepared = prepare(model, config, inplace=False, registry=registry)
    return convert(calibrate(prepared, as_batches(samples), show_progress=config.show_progress))


def _require_arguments(budget: object, base: object, candidates: object, points: object) -> None:
    """Refuse arguments that say nothing.

    Raises:
        ConfigError: naming all of them, or the fields of a candidate that are wrong.
    """
    refuse(
        check_instance("budget", budget, Budget, "a Budget, such as Budget(bits=4.5)"),
        check_instance("base", base, GPTQConfig, "a GPTQConfig"),
        _candidates_problem(candidates),
        check_integer("points", points, 2),
    )


def _candidates_problem(candidates: object) -> Problem | None:
    fits = isinstance(candidates, list | tuple) and all(isinstance(each, Mapping) for each in candidates)
    if fits and isinstance(candidates, list | tuple) and len(candidates) > 1:
        return None
    expected = "two mappings or more with fields of GPTQConfig, such as ({'bits': 3}, {'bits': 4})"
    return Problem(field="candidates", value=candidates, expected=expected)
