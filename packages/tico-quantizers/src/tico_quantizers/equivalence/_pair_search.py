"""Where the pairs of a model come from: from mappings, or from running it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import attrs
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
    is_left_out,
    unmatched_problems,
)
from tico_modules import named_modules, own_tensor
from tico_quantizers.equivalence._channel_scale import ChannelScale
from tico_quantizers.equivalence._passages import Passages
from tico_quantizers.equivalence._smoothing_pairs import (
    Candidates,
    Consumer,
    FoundPairs,
    Pair,
    with_multiplications,
)
from tico_quantizers.layers import ExpertLinear, computes_itself, groups, shape

_UNDECIDED: Final = "decided by the data: in which pair it is shows when the model is run"


def candidates_of(model: nn.Module, config: SmoothingConfig, *, of_weights: bool = False) -> Candidates:
    """Return the modules of `model` that may be in a pair, and refuse a model that cannot have one.

    For what pairs `of_weights` are, see `Candidates`.

    Raises:
        ConfigError: there can be no pair, or a rule of `config` matches no module.
        NumericsError: a weight holds NaN or infinity; those on the meta device are not looked at.
    """
    candidates = _without_free_forwards(Candidates.of(model, of_weights=of_weights), config)
    problems = _strange_overrides(model, candidates, config)
    consumers = [path for path in candidates.layers if candidates.consumer(path) is not None]
    sources = [path for path, _ in candidates.atoms() if candidates.producer(path) is not None]
    if not consumers or (len({*sources, *consumers}) < 2 and not _inserts(config)):
        problems.append(_no_pair(candidates.reasons))
    problems += _target_problems(config)
    if problems:
        raise ConfigError(*problems)
    require_finite_weights(candidates.atoms())
    return candidates


def _without_free_forwards(candidates: Candidates, config: SmoothingConfig) -> Candidates:
    """Return `candidates` without layers that an override leaves out, and that may compute anything."""
    found = {
        path: why
        for path, layer in candidates.layers.items()
        if computes_itself(layer) and (why := config.reason_to_leave(path)) is not None
    }
    return attrs.evolve(candidates, reasons={**candidates.reasons, **found})


def _strange_overrides(model: nn.Module, candidates: Candidates, config: SmoothingConfig) -> list[Problem]:
    """Return a problem for each override that matches no module, or none that could ever be in a pair."""
    kinds = {path: type(module).__name__ for path, module in named_modules(model)}
    atoms = [path for path, _ in candidates.atoms()]
    problems = unmatched_problems(config.overrides, list(kinds))
    for pattern, change in config.overrides.items():
        matched = [path for path in kinds if Rule(pattern).matches(path)]
        fits = (
            any(_is_below(atom, path) for path in matched for atom in atoms)
            if is_left_out(change)
            else any(path in atoms for path in matched)
        )
        if matched and not fits:
            found = "; ".join(f"{path!r} is a {kinds[path]}" for path in matched[:3])
            sentence = f"the override {pattern!r} matches no module that can be in a pair: {found}"
            expected = "a rule that matches a norm, a linear layer or a convolution"
            problems.append(Problem(field="overrides", value=pattern, expected=expected, sentence=sentence))
    return problems


def _is_below(path: str, parent: str) -> bool:
    return path == parent or not parent or path.startswith(f"{parent}.")


def _target_problems(config: SmoothingConfig) -> Iterator[Problem]:
    """Yield why multiplications of inputs have no place in what is to run the model."""
    if config.target is not None and not config.target.multiplications and _inserts(config):
        yield Problem(
            field="insert_mul",
            value=True,
            expected="False",
            sentence=f"{config.target.runtime} has no place for multiplications in front of layers",
            remedy="set insert_mul=False, which smooths where a module before can take the scales",
        )


def _inserts(config: SmoothingConfig) -> bool:
    return isinstance(config, SmoothQuantConfig) and config.insert_mul


def pairs_of(
    passages: Passages, candidates: Candidates, config: SmoothingConfig, mapped: FoundPairs | None
) -> FoundPairs:
    """Return the pairs that `passages` show or mappings say, without those that `config` leaves out."""
    if mapped is None:
        found = passages.pairs(candidates)
    else:
        found = attrs.evolve(mapped, called=frozenset(passages.readings))
    if _inserts(config):
        found = with_multiplications(found, candidates)
    return _without_left_out(found, candidates, config)


def _without_left_out(found: FoundPairs, candidates: Candidates, config: SmoothingConfig) -> FoundPairs:
    """Return `found` without the pairs whose producer, or all of whose consumers, an override leaves out.

    Where an algorithm has nothing else to leave out, a consumer counts as the whole pair.
    """
    enough = any if config.scales_only else all
    left = {path: why for path, _ in candidates.atoms() if (why := config.reason_to_leave(path)) is not None}
    dropped: dict[str, str] = {}
    for pair in found.pairs:
        consumers = [consumer.path for consumer in pair.consumers]
        if pair.path in left or enough(path in left for path in consumers):
            dropped[pair.path] = next(left[path] for path in (pair.path, *consumers) if path in left)
    pairs = tuple(pair for pair in found.pairs if pair.path not in dropped)
    return attrs.evolve(found, pairs=pairs, left={**found.left, **left, **dropped})


def require_pairs(
    found: FoundPairs, candidates: Candidates, config: SmoothingConfig, *, last: bool = False
) -> None:
    """Refuse a model without pairs, and overrides for modules that are in none.

    Modules that were not called may still be in one, unless this is the `last` word.

    Raises:
        ConfigError: with the reasons.
    """
    waiting = frozenset() if last else _uncalled(found, candidates)
    problems = [] if found.pairs or waiting else [_no_pair(found.left)]
    if config.scales_only:
        problems += _idle_overrides(config, found, waiting)
    if problems:
        raise ConfigError(*problems)


def _uncalled(found: FoundPairs, candidates: Candidates) -> frozenset[str]:
    paths = (path for path, _ in candidates.atoms() if path and path not in candidates.reasons)
    return frozenset(path for path in paths if path not in found.called)


def _idle_overrides(config: SmoothingConfig, found: FoundPairs, waiting: frozenset[str]) -> Iterator[Problem]:
    paired = [path for pair in found.pairs for path in (pair.path, *(each.path for each in pair.consumers))]
    for pattern, change in config.overrides.items():
        matches = Rule(pattern).matches
        if is_left_out(change) or any(map(matches, paired)) or any(map(matches, waiting)):
            continue
        why = [f"{path}: {reason}" for path, reason in found.left.items() if matches(path)]
        yield Problem(
            field="overrides",
            value=pattern,
            expected="a rule that matches a module of a pair",
            remedy="; ".join(why[:3]) or None,
            sentence=f"the override {pattern!r} matches no module of a pair",
        )


def _no_pair(reasons: Mapping[str, str]) -> Problem:
    """Return what is wrong with a model without pairs."""
    why = told_by_reason(reasons)
    return Problem(
        field="model",
        value=Found(f"no pair{why}"),
        expected="one with a norm, linear layer or convolution that only other layers read",
        sentence=f"the model has no norm, linear layer or convolution that only other layers read{why}",
    )


def told_by_reason(reasons: Mapping[str, str]) -> str:
    """Return in parentheses which modules are left alone, by the reason; nothing where there are none."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        by_reason.setdefault(reason, []).append(path)
    lines = [
        f"{', '.join(paths[:3])}{f' and {len(paths) - 3} more' if len(paths) > 3 else ''}: {reason}"
        for reason, paths in by_reason.items()
    ]
    return f" ({'; '.join(lines)})" if lines else ""


def undecided_in(candidates: Candidates, config: SmoothingConfig) -> dict[str, str]:
    """Return, by path, the modules of which only the data show in which pair they are.

    Raises:
        ConfigError: a mapping of `config` is wrong.
    """
    if config.mappings:
        mapped_pairs(candidates, config.mappings)
    free = [
        path
        for path, _ in candidates.atoms()
        if path not in candidates.reasons and config.reason_to_leave(path) is None
    ]
    layers = {path: candidates.layers.get(path) for path in free}
    homes = (path.rsplit(".", 2)[0] for path, each in layers.items() if isinstance(each, ExpertLinear))
    matrices = (each.path for each in candidates.matrices.values())
    return dict.fromkeys([*free, *homes, *matrices], _UNDECIDED)


def scaled_memory(candidates: Candidates) -> tuple[str, int]:
    """Return how many bytes the floats that may get scales take at most, and what that is."""
    free = {id(module): module for path, module in candidates.atoms() if path not in candidates.reasons}
    found = (own_tensor(module, name) for module in free.values() for name in ("weight", "bias"))
    return "scaled floats beside it, at most", sum(each.nbytes for each in found if each is not None)


def require_finite_weights(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse `modules`, with their paths, that hold NaN or infinity.

    Raises:
        NumericsError: with every such weight or bias.
    """
    problems = []
    for path, module in modules:
        for name in ("weight", "bias"):
            value = own_tensor(module, name)
            wrong = None if value is None or value.is_meta else ~torch.isfinite(value.detach())
            if value is not None and wrong is not None and bool(wrong.any()):
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
    return FoundPairs(pairs=pairs, left=left, called=frozenset())


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
    if producer is None or (candidates.of_weights and isinstance(producer, ChannelScale)):
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
    features = shape(layer)[1] * groups(layer)
    if features != channels:
        found = Found(f"of {features} input features")
        expected = f"a layer that reads the {channels} channels one to one"
        remedy = "leave mappings out and pass args, so that the pairs are found by running the model"
        raise ConfigError(
            Problem(
                module=path,
                field="mappings",
                value=found,
                expected=expected,
                remedy=remedy,
                sentence=f"it has {features} input features, and does not read the {channels} channels"
                " one to one",
            )
        )
    return Consumer(path=path, layer=layer, channels=torch.arange(channels, device=layer.weight.device))
