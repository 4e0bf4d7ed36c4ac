"""Ranks that begin to convert a model together: what has to be the same for all, and what must not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import attrs
from torch import nn

from tico_config import CalibrationError, Found, LifecycleError, Problem, UnsupportedError
from tico_modules import Edit, library_versions, model_fingerprint, named_modules
from tico_quantizers.calibration._forward_watch import Calibration
from tico_quantizers.calibration._ranks import Ranks


@attrs.frozen(kw_only=True)
class Origin:
    """What a preparation started from: the config as JSON, and the fingerprint of the model."""

    config: str
    model: str


def join_ranks(model: nn.Module, calibration: Calibration, origin: Origin, edit: Edit, ranks: Ranks) -> None:
    """Let `calibration` hold, until `edit` is undone, what one process with the data of all ranks would.

    Raises:
        LifecycleError: the ranks were given different models, configs or versions, or one does not answer.
        CalibrationError: two ranks were given the same batch, or one has loaded a calibration file.
        UnsupportedError: the model or the algorithm cannot be converted by several ranks.
    """
    ranks.bind(model)
    require_same(ranks.gather("what they start from", _about(calibration, origin)), _DIFFERENCES)
    require_apart(ranks.gather("their data", calibration.data.batches))
    _require_whole(model, calibration)
    calibration.hear(ranks.together("what they have seen", calibration.tell), edit)
    edit.set_attribute(calibration, "ranks", ranks)


def require_same_result(root: nn.Module, ranks: Ranks) -> None:
    """Refuse a result that is not that of every rank, bit for bit; it is the last that they exchange.

    Raises:
        LifecycleError: a rank has another one, or has failed.
    """
    if ranks.count > 1:
        results = ranks.gather("the result", model_fingerprint(root))
        require_same([{"result": each} for each in results], _DIFFERENCES)


def _about(calibration: Calibration, origin: Origin) -> Mapping[str, str]:
    kind = type(calibration)
    return {
        "algorithm": f"{kind.__module__}.{kind.__qualname__}",
        "config": origin.config,
        "model": origin.model,
        "versions": ", ".join(f"{name} {version}" for name, version in library_versions()),
    }


_DIFFERENCES: Mapping[str, str] = {
    "algorithm": "prepared their models for different algorithms",
    "config": "prepared their models with different configs",
    "model": "were given models with different weights",
    "versions": "have different versions of the libraries",
    "result": "came to different results, as processors of different kinds may",
}


def require_same(told: Sequence[Mapping[str, str]], differences: Mapping[str, str]) -> None:
    """Refuse ranks that do not all tell the same.

    `differences` say, for each name that is told of, what ranks have done that tell something else.

    Raises:
        LifecycleError: with the ranks, by what they tell.
    """
    problems = [_difference(name, differences[name], [each[name] for each in told]) for name in told[0]]
    found = [problem for problem in problems if problem is not None]
    if found:
        raise LifecycleError(*found)


def _difference(name: str, text: str, values: Sequence[str]) -> Problem | None:
    groups: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        groups.setdefault(value, []).append(rank)
    if len(groups) == 1:
        return None
    sides = " and ".join(_named(ranks) for ranks in groups.values())
    return Problem(
        field=name,
        value=Found("; ".join(f"{_named(ranks)}: {value}" for value, ranks in groups.items())),
        expected="the same on all ranks",
        sentence=f"{sides} {text}",
        remedy="load the same model, and prepare it in the same way, on all ranks",
    )


def _named(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def require_apart(batches: Sequence[Sequence[str]]) -> None:
    """Refuse ranks that were given the same batch.

    Raises:
        CalibrationError: with every two that were.
    """
    problems = list(_overlaps(batches))
    if problems:
        raise CalibrationError(*problems)


def _overlaps(batches: Sequence[Sequence[str]]) -> Iterator[Problem]:
    for (one, own), (other, others) in combinations(enumerate(map(set, batches)), 2):
        count = len(own & others)
        if count:
            found = f"{count} {'batch' if count == 1 else 'batches'} in common"
            yield Problem(
                field="data",
                value=Found(found),
                expected="batches of its own for each rank",
                sentence=f"rank {one} and rank {other} have {found}, which would count twice",
                remedy="give each rank its own part of the data",
            )


def _require_whole(model: nn.Module, calibration: Calibration) -> None:
    """Refuse a model that is not on one device of each rank as a whole, or has seen what no rank has run.

    Raises:
        UnsupportedError: with what it is.
    """
    found = "a model with a calibration file, whose data no rank has run" if calibration.files else None
    if any("_hf_hook" in vars(module) for _, module in named_modules(model)):
        found = "a model that `device_map` has dispatched"
    if found is not None:
        raise UnsupportedError(
            Problem(
                field="group",
                value=Found(found),
                expected="a model on one device that has seen what ranks have run",
                sentence=f"it is {found}, which several ranks cannot convert together",
                remedy="load the model as a whole, run data through it on each rank, or leave group out",
            )
        )
