"""Where the pairs of a model come from: from mappings, or from running it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from tico_config import (
    ConfigError,
    Found,
    NumericsError,
    Problem,
    Rule,
    SmoothingConfig,
    SmoothQuantConfig,
    TicoError,
    unmatched_problems,
)
from tico_modules import named_modules
from tico_quantizers.calibration import (
    Replay,
    Snapshots,
    attempted_twice,
    has_foreign_hooks,
    quiet_runs,
    require_evaluation_mode,
    unchanged_process,
)
from tico_quantizers.equivalence._smoothing_pairs import (
    Candidates,
    Consumer,
    FoundPairs,
    Pair,
    find_pairs,
    with_multiplications,
)
from tico_quantizers.layers import shape
from tico_quantizers.protocol import Example


def candidates_of(model: nn.Module, config: SmoothingConfig) -> Candidates:
    """Return the modules of `model` that may be in a pair, and refuse a model that cannot have one.

    Raises:
        ConfigError: there can be no pair, or a rule of `config` matches no module.
        NumericsError: a weight holds NaN or infinity.
    """
    candidates = Candidates.of(model)
    paths = [path for path, _ in named_modules(model)]
    problems = unmatched_problems(config.overrides, paths)
    consumers = [path for path in candidates.layers if candidates.consumer(path) is not None]
    sources = [path for path, _ in candidates.atoms() if candidates.producer(path) is not None]
    if not consumers or (len({*sources, *consumers}) < 2 and not _inserts(config)):
        problems.append(_no_pair(candidates.reasons))
    if problems:
        raise ConfigError(*problems)
    _require_finite_weights(candidates)
    return candidates


def known_pairs(
    model: nn.Module, candidates: Candidates, config: SmoothingConfig, example: Example | None
) -> FoundPairs | None:
    """Return the pairs that mappings or an example tell, None if the first pass has to.

    Raises:
        ConfigError: there are none, or mappings or example do not fit the model.
        CalibrationError: the model is in training mode.
    """
    if config.mappings:
        pairs = mapped_pairs(candidates, config.mappings)
        return with_multiplications(pairs, candidates) if _inserts(config) else pairs
    if example is None:
        return None
    try:
        return traced_pairs(model, candidates, config, example)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        if isinstance(error, TicoError):
            raise
        found = Found(f"inputs for which it raises {type(error).__name__}: {error}")
        raise ConfigError(
            Problem(
                field="args",
                value=found,
                expected="inputs that the model takes",
                sentence=f"the model raises {type(error).__name__} for args: {error}",
            )
        ) from error


def traced_pairs(
    model: nn.Module, candidates: Candidates, config: SmoothingConfig, example: Example
) -> FoundPairs:
    """Return the pairs that show when `model` is run on copies of `example`.

    Raises:
        ConfigError: there are none, or an override matches none of them.
        CalibrationError: the model is in training mode.
    """
    require_evaluation_mode(model)
    call = Snapshots().take(example.args, example.kwargs, lambda _: None)

    def run() -> object:
        (args, kwargs, autocast), *_ = Replay([call], {})
        with autocast.again():
            output: object = model.forward(*args, **kwargs)
        return output

    def find(*, with_hooks: bool) -> FoundPairs:
        with unchanged_process(), quiet_runs(model, with_hooks=with_hooks):
            return find_pairs(model, candidates, run)

    # Some hooks are a part of what the model computes.
    found = attempted_twice(partial(find, with_hooks=False)) if has_foreign_hooks(model) else None
    found = find(with_hooks=True) if found is None else found
    if _inserts(config):
        found = with_multiplications(found, candidates)
    if not found.pairs:
        raise ConfigError(_no_pair(found.left))
    require_overrides_used(config, found)
    return found


def _inserts(config: SmoothingConfig) -> bool:
    return isinstance(config, SmoothQuantConfig) and config.insert_mul


def require_overrides_used(config: SmoothingConfig, found: FoundPairs) -> None:
    """Refuse overrides for modules that are in no pair.

    Raises:
        ConfigError: with the reason where there is one.
    """
    paired = [
        path for pair in found.pairs for path in (pair.path, *(consumer.path for consumer in pair.consumers))
    ]
    problems = []
    for pattern in config.overrides:
        if not any(map(Rule(pattern).matches, paired)):
            why = [f"{path}: {reason}" for path, reason in found.left.items() if Rule(pattern).matches(path)]
            problems.append(
                Problem(
                    field="overrides",
                    value=pattern,
                    expected="a rule that matches a module of a pair",
                    remedy="; ".join(why[:3]) or None,
                    sentence=f"the override {pattern!r} matches no module of a pair",
                )
            )
    if problems:
        raise ConfigError(*problems)


def _no_pair(reasons: Mapping[str, str]) -> Problem:
    """Return what is wrong with a model without pairs, its modules by the reason."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        by_reason.setdefault(reason, []).append(path)
    lines = [
        f"{', '.join(paths[:3])}{f' and {len(paths) - 3} more' if len(paths) > 3 else ''}: {reason}"
        for reason, paths in by_reason.items()
    ]
    why = f" ({'; '.join(lines)})" if lines else ""
    return Problem(
        field="model",
        value=Found(f"no pair{why}"),
        expected="one with a norm, linear layer or convolution that only other layers read",
        sentence=f"the model has no norm, linear layer or convolution that only other layers read{why}",
    )


def _require_finite_weights(candidates: Candidates) -> None:
    problems = []
    for path, module in candidates.atoms():
        for name, value in module.named_parameters(recurse=False):
            wrong = ~torch.isfinite(value.detach())
            if bool(wrong.any()):
                index = tuple(torch.nonzero(wrong)[0].tolist())
                found = Found(f"{value[index].item()} at {index}")
                sentence = f"its {name} is {found}"
                problems.append(
                    Problem(module=path, field=name, value=found, expected="finite", sentence=sentence)
                )
    if problems:
        raise NumericsError(*problems)


def mapped_pairs(candidates: Candidates, mappings: Mapping[str, tuple[str, ...]]) -> FoundPairs:
    """Return the pairs that `mappings` say.

    Raises:
        ConfigError: a pattern matches nothing, a module cannot be in a pair, or is claimed twice.
    """
    sources = [path for path, _ in candidates.atoms()]
    patterns = (pattern for consumers in mappings.values() for pattern in consumers)
    problems = unmatched_problems(mappings, sources, "mappings")
    problems += unmatched_problems(patterns, list(candidates.layers), "mappings")
    claims: dict[str, dict[str, None]] = {}
    for pattern, consumers in mappings.items():
        matched = [path for path in sources if Rule(pattern).matches(path)]
        for path in (
            path for path in candidates.layers if any(Rule(consumer).matches(path) for consumer in consumers)
        ):
            nearest = _nearest(path, matched)
            claims.setdefault(path, {}).update(dict.fromkeys(nearest))
        unread = [path for path in matched if not any(path in claim for claim in claims.values())]
        problems += [_unread(pattern, path) for path in unread]
    problems += [_claimed_twice(path, list(claim)) for path, claim in claims.items() if len(claim) > 1]
    if problems:
        raise ConfigError(*problems)
    by_source: dict[str, list[str]] = {}
    for path, claim in claims.items():
        by_source.setdefault(next(iter(claim)), []).append(path)
    pairs = tuple(_mapped(candidates, path, consumers) for path, consumers in by_source.items())
    left = {path: "no mapping names it" for path in sources if path not in by_source}
    return FoundPairs(pairs=pairs, left=left, called=None)


def _nearest(path: str, sources: list[str]) -> list[str]:
    """Return those of `sources` that share most of their path with `path`."""
    depths = {source: _shared(path, source) for source in sources if source != path}
    return [source for source, depth in depths.items() if depth == max(depths.values())]


def _shared(one: str, other: str) -> int:
    count = 0
    for left, right in zip(one.split("."), other.split("."), strict=False):
        if left != right:
            break
        count += 1
    return count


def _unread(pattern: str, path: str) -> Problem:
    found = Found(f"{pattern!r}, which matches {path}, for which there is none")
    return Problem(
        field="mappings",
        value=found,
        expected="a pattern for modules with a layer that reads them",
        sentence=f"mappings has {pattern!r}, which matches {path}, and no layer for it that reads it",
    )


def _claimed_twice(path: str, sources: list[str]) -> Problem:
    found = Found(f"claimed by {' and '.join(sources)}")
    sentence = f"mappings puts it into the pairs of {' and '.join(sources)}, and it can be in one only"
    return Problem(module=path, field="mappings", value=found, expected="in one pair", sentence=sentence)


def _mapped(candidates: Candidates, path: str, consumers: list[str]) -> Pair:
    producer = candidates.producer(path)
    if producer is None:
        found = Found(candidates.reasons.get(path, "a module that cannot take scales"))
        expected = "a norm, linear layer or convolution that can take scales"
        sentence = f"mappings names it, and it cannot take scales: {found}"
        raise ConfigError(
            Problem(module=path, field="mappings", value=found, expected=expected, sentence=sentence)
        )
    pair = Pair(path=path, producer=producer, consumers=())
    found_consumers = tuple(_mapped_consumer(candidates, consumer, pair.channels) for consumer in consumers)
    return Pair(path=path, producer=producer, consumers=found_consumers)


def _mapped_consumer(candidates: Candidates, path: str, channels: int) -> Consumer:
    layer = candidates.consumer(path)
    if layer is None:
        found = Found(candidates.reasons.get(path, "another module"))
        expected = "a linear layer or convolution whose columns can be scaled"
        sentence = f"mappings names it, and its columns cannot be scaled: {found}"
        raise ConfigError(
            Problem(module=path, field="mappings", value=found, expected=expected, sentence=sentence)
        )
    if shape(layer)[1] != channels:
        found = Found(f"of {shape(layer)[1]} input features")
        expected = f"a layer that reads the {channels} channels one to one"
        remedy = "leave mappings out and pass args, so that the pairs are found by running the model"
        raise ConfigError(
            Problem(
                module=path,
                field="mappings",
                value=found,
                expected=expected,
                remedy=remedy,
                sentence=f"it has {shape(layer)[1]} input features, and does not read the {channels} channels"
                " one to one",
            )
        )
    return Consumer(path=path, layer=layer, channels=torch.arange(channels, device=layer.weight.device))
