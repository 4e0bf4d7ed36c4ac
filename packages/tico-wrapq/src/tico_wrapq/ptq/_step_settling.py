"""What becomes of the steps of modules when the grids are fixed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

from tico_config import (
    CalibrationError,
    ConfigError,
    Found,
    Problem,
    PTQConfig,
    UnsupportedError,
    unmatched_overrides,
)
from tico_modules import Edit, child_path
from tico_quantizers import Recorder
from tico_wrapq.base import QuantModuleBase, QuantPoint
from tico_wrapq.ptq._wrapping import Wrapped
from tico_wrapq.steps import StepPoints

IDLE = "no step with data was reached in its own forward"


def settle_steps(wrapped: Wrapped, config: PTQConfig, edit: Edit) -> dict[str, str]:
    """Leave steps float to which no grid does justice; return the notes by module.

    Raises:
        CalibrationError: no data have reached a point of the model.
        ConfigError: an override matches nothing, with the steps that there are.
        UnsupportedError: with `strict_wrap`, every step that can't have a point.
    """
    if not wrapped.steps:
        return {}
    points = [point for each in wrapped.wrappers.values() for _, point in each.named_points()]
    _require_reached(points, wrapped)
    if problems := unmatched_overrides(config.overrides, [*wrapped.paths, *step_paths(wrapped, points)]):
        raise ConfigError(*problems)
    require_known_steps(wrapped, config)
    notes = {each.path: each.leave_unfit(edit) for each in wrapped.steps}
    return {path: note for path, note in notes.items() if note}


def require_known_steps(wrapped: Wrapped, config: PTQConfig) -> None:
    """Refuse steps of which calibration has shown that they can't have a point, or not the right one.

    Raises:
        UnsupportedError: with `strict_wrap`, every such step.
    """
    problems = [problem for each in wrapped.steps for problem in each.problems()]
    if config.strict_wrap and problems:
        raise UnsupportedError(*problems)


@final
class StepRefusal(Recorder):
    """Refuses steps that `convert` would refuse, at the end of the first forward pass that meets them."""

    def __init__(self, wrapped: Wrapped, config: PTQConfig) -> None:
        self._wrapped = wrapped
        self._config = config

    def digest(self) -> None:
        """Refuse what the pass has met.

        Raises:
            UnsupportedError: with every such step of this pass and of those before.
        """
        require_known_steps(self._wrapped, self._config)

    def accept(self) -> None:
        """Keep nothing."""

    def drop_unfinished(self) -> None:
        """Keep nothing."""

    def tell(self) -> None:
        """Return nothing: it keeps nothing."""


def step_paths(wrapped: Wrapped, points: Iterable[QuantPoint]) -> list[str]:
    """Return the paths of points and of unknown steps that overrides may speak of."""
    unknown = (child_path(each.path, name) for each in wrapped.steps for name in each.findings.unknown)
    return [*(point.path for point in points), *unknown]


def _require_reached(points: list[QuantPoint], wrapped: Wrapped) -> None:
    declared = any(not isinstance(each, StepPoints) for each in wrapped.wrappers.values())
    found = any(each.findings.has_any for each in wrapped.steps)
    if points or declared or found:
        return
    expected, remedy = "calibration data", "run data through the prepared model"
    sentence = "no calibration data have reached a step of the model"
    raise CalibrationError(Problem(value=Found("none"), expected=expected, sentence=sentence, remedy=remedy))


def idle_steps(wrappers: Mapping[str, QuantModuleBase]) -> dict[str, StepPoints]:
    """Return the step points of modules in which, and below which, no step was found.

    Of those around others the outermost tells data from constants, so that they have to stay.
    """
    steps = {path: each for path, each in wrappers.items() if isinstance(each, StepPoints)}
    busy = [path for path, each in steps.items() if not each.is_idle]
    return {path: each for path, each in steps.items() if not any(_holds(path, other) for other in busy)}


def _holds(path: str, other: str) -> bool:
    return other == path or not path or other.startswith(f"{path}.")
