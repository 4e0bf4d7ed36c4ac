"""Calibration of rotations: passes show what writes to a stream and what reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

import attrs
import torch
from torch import nn

from tico_config import (
    CalibrationError,
    ConfigError,
    Found,
    Problem,
    RotationConfig,
    Rule,
    is_left_out,
    unmatched_problems,
)
from tico_modules import Edit, Offload
from tico_quantizers.calibration import Calibration, ReachedLayers, require_watched
from tico_quantizers.equivalence._function_check import moved_by, outputs_of, rounding_limit
from tico_quantizers.equivalence._hook_effects import HookEffects
from tico_quantizers.equivalence._online_rotation import OnlineRotation, online_inputs
from tico_quantizers.equivalence._pair_search import require_finite_weights, told_by_reason
from tico_quantizers.equivalence._rotatable import QUANTIZED, Rotatable
from tico_quantizers.equivalence._rotating import Folds, Turn
from tico_quantizers.equivalence._rotation_trace import StreamTrace, StreamWays
from tico_quantizers.equivalence._rotations import FoundRotations, Rotation, rotations_of
from tico_quantizers.equivalence._shown_ways import (
    ShownWays,
    called_alone,
    follow_forward,
    give_forward_back,
    traced,
)
from tico_quantizers.protocol import Example

_REMEDY: Final = (
    "some weights are quantized already: rotate the float model first, and then quantize what convert returns"
)
EXACT: Final = 1e-5
"""How far a rotation may move the outputs of a model in float32, as a share of their norm."""


class _ShownStreams(ShownWays[StreamWays]):
    """What passes have shown of streams and heads."""

    def __init__(self, model: nn.Module, rotatable: Rotatable) -> None:
        super().__init__(StreamWays())
        self._model = (model,)
        self._rotatable = rotatable

    def trace(self) -> StreamTrace:
        """Return what follows the next pass."""
        return StreamTrace(self._model[0], self._rotatable, self.tensors)


class RotationCalibration(Calibration):
    """The rotations that show in passes of the model.

    What one pass does with a channel that does not fit a rotation ends it.
    """

    told_by_recorders: ClassVar[bool] = True

    def __init__(self, model: nn.Module, config: RotationConfig) -> None:
        self.rotatable = Rotatable.of(model)
        _require_overrides(self.rotatable, config)
        _require_place(config)
        require_finite_weights(self.rotatable.weighted())
        self._config = config
        self._reached = ReachedLayers(self.rotatable.layers)
        self._effects = HookEffects()
        self._shown = _ShownStreams(model, self.rotatable)
        super().__init__(self._reached, self._shown, self._effects)

    def start(self, model: nn.Module, example: Example | None, edit: Edit) -> None:
        """Start to watch, until `finish`; refuse at once what the example shows.

        Raises:
            ConfigError: the model does not run, nothing of it can be rotated, or overrides contradict.
        """
        if example is not None:
            self._shown.learn(*traced(model, self._shown.trace(), example))
            self._chosen(last=False)
        self.handles += self._reached.watch(self, free=self.rotatable.reasons)
        self.handles += self._effects.watch(model, self)
        follow_forward(model, self, self._shown, edit)

    def finish(self, model: nn.Module, edit: Edit) -> None:
        """Give `model` its own `forward` back, when `edit` is done."""
        give_forward_back(model, edit)

    def rotations(self) -> FoundRotations:
        """Return the rotations that the config asks for.

        Raises:
            CalibrationError: the model was never run, or only a part of it.
            ConfigError: there are none; each stream and head that cannot be rotated is named with the reason.
            NumericsError: a weight holds NaN or infinity by now.
        """
        require_finite_weights(self.rotatable.weighted())
        require_watched(self._reached.paths, self._expected())
        alone = sorted(
            path for path in self._reached.paths if path and not self._shown.passages.is_used(path)
        )
        if alone:
            raise CalibrationError(*map(called_alone, alone))
        return self._chosen(last=True)

    def _expected(self) -> tuple[str, ...]:
        """Return the layers of rotations that data must have reached: of experts, some are enough."""
        found = rotations_of(self._shown.passages, self.rotatable)
        members = (each for rotation in found.rotations for each in rotation.members())
        layers = {each.path for each in members if not each.adopted}
        expected = tuple(path for path in self.rotatable.layers if path in layers)
        return expected or tuple(path for path in self.rotatable.layers if self.rotatable.layer(path))

    def _chosen(self, *, last: bool) -> FoundRotations:
        """Return the rotations; unless this is the `last` word, modules may be in one that nothing called."""
        found = rotations_of(self._shown.passages, self.rotatable)
        found = _without_left_out(found, self.rotatable, self._config)
        found = self._with_inputs(found)
        atoms, is_used = self.rotatable.atoms(), self._shown.passages.is_used
        waiting = not last and any(path and not is_used(path) for path, _ in atoms)
        if not (found.rotations or found.inputs or waiting):
            raise ConfigError(*(_refused(found.refused, self.rotatable.reasons)))
        return found

    def _with_inputs(self, found: FoundRotations) -> FoundRotations:
        """Return `found` with the layers whose input the config rotates online."""
        config = self._config
        able, adopted = online_inputs(self._shown.passages, self.rotatable, found.rotations)
        asked = {
            path: layer
            for path, layer in able.items()
            if config.reason_to_leave(path) is None and config.resolve(path).spec.online_inputs
        }
        return attrs.evolve(found, inputs=asked, adopted=adopted & asked.keys())

    def require_same_function(
        self,
        model: nn.Module,
        turns: Sequence[Turn],
        inputs: Sequence[OnlineRotation],
        offload: Offload | None = None,
    ) -> None:
        """Refuse rotations that change what `model` gives for the call that was kept; it stays as it is.

        Outputs may move by 1e-5 of their norm in float32, and in 16 bits by the root of the precision, as
        every weight is rounded once more.

        Raises:
            ConfigError: with every rotation that does.
        """

        def moved(turns: Sequence[Turn], inputs: Sequence[OnlineRotation]) -> float:
            def change(edit: Edit) -> nn.Module:
                return Folds.of(turns, inputs).put(model, self.rotatable, edit)

            return moved_by(model, change, call, expected, with_hooks=self._effects.are_some, offload=offload)

        for call in self._shown.calls:
            expected = outputs_of(model, call, with_hooks=self._effects.are_some)
            weights = [*(each.layer.weight.dtype for each in inputs), *(each.dtype for each in expected)]
            limit = max([*(_limit(turn.rotation) for turn in turns), *map(_limit_of, weights)])
            far = moved(turns, inputs)
            if far <= limit:
                continue
            told = [_rotated_together(turn.rotation) for turn in turns]
            told += [(each.path, each.path) for each in inputs]
            alone = [*(moved([turn], []) for turn in turns), *(moved([], [each]) for each in inputs)]
            pairs = list(zip(told, alone, strict=True))
            blamed = [each for each in pairs if each[1] > limit] or [(each, far) for each in told]
            raise ConfigError(*(_changes(path, readers, share) for (path, readers), share in blamed))


def _limit(rotation: Rotation) -> float:
    return max(_limit_of(each.weight.dtype) for each in rotation.members())


def _limit_of(dtype: torch.dtype) -> float:
    return EXACT if torch.finfo(dtype).bits > 16 else rounding_limit(dtype)


def _without_left_out(found: FoundRotations, rotatable: Rotatable, config: RotationConfig) -> FoundRotations:
    """Return `found` without the rotations that `config` does not ask for, or leaves out.

    Raises:
        ConfigError: two overrides contradict each other.
    """
    left: dict[str, str] = {}
    for rotation in found.rotations:
        paths = rotation.paths()
        reasons = [f"{path} is {why}" for path in paths if (why := config.reason_to_leave(path)) is not None]
        own = config_of(config, rotation)
        asked = own.residual if rotation.kind == "residual" else own.heads
        if reasons or not asked:
            left[rotation.path] = reasons[0] if reasons else f"the config has {rotation.kind}=False"
    found = found.without(left)
    if config.tied_embeddings == "refuse":
        turns = [Turn(rotation=each, matrices=torch.empty(0)) for each in found.rotations]
        untied = Folds.of(turns).untied(rotatable)
        found = found.without(
            {
                rotation.path: f"{head} shares its weight with {table}, and tied_embeddings='refuse' keeps it"
                for rotation in found.rotations
                for head, table in untied.items()
                if {head, rotatable.owner(table)} & set(rotation.paths())
            }
        )
    return found


def config_of(config: RotationConfig, rotation: Rotation) -> RotationConfig:
    """Return what holds for a rotation, by the rules for all that take part in it.

    Raises:
        ConfigError: two rules contradict each other.
    """
    found = [config.resolve(path) for path in rotation.paths()]
    first, *others = [each for each in found if each.origin != "defaults"] or found
    for other in others:
        if other.spec != first.spec:
            both = f"{first.origin} and {other.origin}"
            sentence = f"{both} say different things about channels that are rotated together"
            raise ConfigError(
                Problem(
                    module=rotation.path,
                    field="overrides",
                    value=Found(f"{both}, which say different things"),
                    expected="one rule for all that shares a matrix",
                    sentence=sentence,
                )
            )
    return first.spec


def _require_overrides(rotatable: Rotatable, config: RotationConfig) -> None:
    """Refuse overrides that match no module, or none that could ever be rotated.

    Raises:
        ConfigError: with all of them.
    """
    problems = unmatched_problems(config.overrides, list(rotatable.modules))
    able = {path for path, _ in rotatable.weighted()}
    for pattern, change in config.overrides.items():
        matched = [path for path in rotatable.modules if Rule(pattern).matches(path)]
        starts = tuple(f"{path}." if path else "" for path in matched) if is_left_out(change) else ()
        fits = not able.isdisjoint(matched) or any(path.startswith(starts) for path in able if starts)
        if matched and not fits:
            named = ((path, type(rotatable.modules[path]).__name__) for path in matched[:3])
            kinds = "; ".join(f"{path!r} is a {kind}" for path, kind in named)
            sentence = f"the override {pattern!r} matches no module that can be rotated: {kinds}"
            expected = "a rule that matches a linear layer, a norm or an embedding"
            problems.append(Problem(field="overrides", value=pattern, expected=expected, sentence=sentence))
    if problems:
        raise ConfigError(*problems)


def _require_place(config: RotationConfig) -> None:
    """Refuse online rotations where what is to run the model has no place for them.

    Raises:
        ConfigError: it has none.
    """
    changes = [config.overrides[each] for each in config.overrides]
    asked = config.online_inputs or any(
        isinstance(each, Mapping) and bool(each.get("online_inputs")) for each in changes
    )
    if config.target is not None and not config.target.multiplications and asked:
        sentence = f"{config.target.runtime} has no place for rotations in front of layers"
        remedy = "set online_inputs=False, which leaves the rotations that are folded into weights"
        raise ConfigError(
            Problem(field="online_inputs", value=True, expected="False", sentence=sentence, remedy=remedy)
        )


def _refused(reasons: Mapping[str, str], left: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what is wrong with a model of which nothing can be rotated; modules in `left` never can be."""
    remedy = _REMEDY if QUANTIZED in left.values() else None
    for path, reason in reasons.items():
        yield Problem(
            module=path,
            field="model",
            value=Found(f"channels that cannot be rotated: {reason}"),
            expected="channels that only layers and norms read",
            sentence=f"its output cannot be rotated: {reason}",
            remedy=remedy,
        )
    if not reasons:
        why = told_by_reason(left)
        yield Problem(
            field="model",
            value=Found(f"no channels that can be rotated{why}"),
            expected="a residual stream that norms read, or attention with a layer for its values",
            sentence="the model has no residual stream that norms read, and no attention between a layer that"
            f" gives the values and one that reads the result{why}",
            remedy=remedy,
        )


def _rotated_together(rotation: Rotation) -> tuple[str, str]:
    """Return the path of a rotation, and those of all others that take part."""
    return rotation.path, ", ".join(path for path in rotation.paths() if path != rotation.path)


def _changes(path: str, readers: str, moved: float) -> Problem:
    share = f"by {moved:.2g} of its norm" if math.isfinite(moved) else "beyond recognition"
    return Problem(
        module=path,
        field="model",
        value=Found(f"channels read by {readers}"),
        expected="channels that nothing else reads",
        remedy="leave it out by the override no_quant()",
        sentence=f"rotating its channels and undoing it in {readers} changes the output of the model {share}",
    )
