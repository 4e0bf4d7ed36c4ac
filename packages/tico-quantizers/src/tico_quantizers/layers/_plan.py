"""What an algorithm does to each layer of a model: decided, and refused, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

import attrs
import torch
from torch import nn

from tico_config import (
    CalibrationError,
    ConfigError,
    Found,
    ModuleConfig,
    NumericsError,
    Problem,
    Rule,
    unmatched_problems,
)
from tico_modules import LayerReport, named_modules
from tico_quantizers.layers._matrix import Layer, columns, matrix
from tico_quantizers.layers._selection import (
    layers_in,
    output_embedding,
    reasons_against,
    stacked_parameters,
)

C = TypeVar("C", bound=ModuleConfig)


@attrs.frozen(eq=False)
class Target(Generic[C]):
    """A layer to quantize, and the config that holds for it."""

    path: str
    layer: Layer
    config: C


@attrs.frozen(eq=False, kw_only=True)
class LayerPlan(Generic[C]):
    """The layers to quantize by path, and the modules that are left alone with the reason."""

    targets: Mapping[str, Target[C]]
    left: Mapping[str, str]

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers to quantize, by path."""
        return {path: target.layer for path, target in self.targets.items()}

    def without(self, reasons: Mapping[str, str]) -> LayerPlan[C]:
        """Return the plan that leaves the layers at the paths of `reasons` alone, too."""
        targets = {path: target for path, target in self.targets.items() if path not in reasons}
        return LayerPlan(targets=targets, left={**self.left, **reasons})

    def lines_left(self, model: nn.Module, algorithm: str) -> dict[str, LayerReport]:
        """Return a line of the report for each module of `model` that is left alone, by path.

        These are the modules in `left`, and all others that own a parameter of floats, such as norms.
        """
        return {
            path: LayerReport(path=path, module=type(module).__name__, algorithm=algorithm, reason=reason)
            for path, module in named_modules(model)
            if path not in self.targets and (reason := self._reason(path, module, algorithm))
        }

    def _reason(self, path: str, module: nn.Module, algorithm: str) -> str | None:
        if path in self.left:
            return self.left[path]
        own: dict[str, nn.Parameter | None] = module._parameters
        floats = any(tensor is not None and tensor.is_floating_point() for tensor in own.values())
        return f"{algorithm} quantizes linear layers and convolutions" if floats else None


def plan_layers(
    model: nn.Module,
    config: C,
    *,
    refuse: Callable[[Layer], str | None] | None = None,
    check: Callable[[Target[C]], Iterable[Problem]] | None = None,
) -> LayerPlan[C]:
    """Return what `config` asks for of each linear layer and convolution of `model`.

    Left alone, with the reason, are layers that `reasons_against` names, those that `refuse` gives a reason
    for, the head of a language model unless an override has its exact path, and weights of several layers
    in one parameter. `check` yields what is wrong with a layer and the config that holds for it.

    Raises:
        ConfigError: nothing is left to quantize, an override changes nothing, or a check failed; with all
            that is wrong at once.
        NumericsError: a weight holds NaN or infinity; with the path of the layer.

    >>> from tico_config import GPTQConfig
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> plan = plan_layers(model, GPTQConfig(overrides={"1": {"bits": 8}}))
    >>> {path: target.config.bits for path, target in plan.targets.items()}
    {'0': 4, '1': 8}
    """
    layers = layers_in(model)
    reasons = _reasons(model, config, layers, refuse)
    wanted = {path: layer for path, layer in layers.items() if path not in reasons}
    problems = _override_problems(model, config, wanted, reasons)
    if not wanted:
        problems.append(_nothing_left(reasons))
    targets = {path: Target(path, layer, config.resolve(path).spec) for path, layer in wanted.items()}
    if check is not None:
        problems += [problem for target in targets.values() for problem in check(target)]
    if problems:
        raise ConfigError(*problems)
    _require_finite_weights(wanted)
    return LayerPlan(targets=targets, left=reasons | dict(stacked_parameters(model, layers)))


def require_in_place(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Refuse a model in which something else stands in the place of one of `modules` now.

    Raises:
        CalibrationError: with every such path.
    """
    now = dict(named_modules(model, every_path=True))
    problems = [
        Problem(
            module=path or None,
            field="module",
            value=Found("none" if path not in now else f"another {type(now[path]).__name__}"),
            expected=f"the {type(module).__name__} that was calibrated",
            sentence="another module stands here than the one that was calibrated",
            remedy="prepare and calibrate the model again",
        )
        for path, module in modules.items()
        if now.get(path) is not module
    ]
    if problems:
        raise CalibrationError(*problems)


def group_size_problem(path: str, layer: Layer, size: int | None, *, ragged: bool) -> Problem | None:
    """Return why groups of `size` columns do not fit the weight of `layer`, or None.

    `ragged` allows the last group of a row to be smaller.
    """
    width = columns(layer)
    if size is None or (size <= width and width % size == 0) or ragged:
        return None
    expected = f"None or a divisor of its {width} input columns"
    remedy = "choose another, for all or by an override for this module, or set ragged_groups"
    sentence = f"group_size={size} does not divide its {width} input columns"
    return Problem(
        module=path, field="group_size", value=size, expected=expected, remedy=remedy, sentence=sentence
    )


def _reasons(
    model: nn.Module,
    config: ModuleConfig,
    layers: Mapping[str, Layer],
    refuse: Callable[[Layer], str | None] | None,
) -> dict[str, str]:
    """Return the layers that are left alone, each with the reason."""
    found = reasons_against(model, layers)
    head = output_embedding(model)
    for path, layer in layers.items():
        own = None if refuse is None else refuse(layer)
        if own is not None:
            found[path] = own
        elif layer is head and path not in config.overrides:
            found.setdefault(path, "the output embedding is quantized only if an override has its exact path")
    return found


def _nothing_left(reasons: Mapping[str, str]) -> Problem:
    found = "; ".join(f"{path}: {why}" for path, why in reasons.items()) or "there is none"
    return Problem(
        field="model",
        value=Found(found),
        expected="a model with a linear layer or convolution to quantize",
        sentence=f"no linear layer or convolution of the model can be quantized ({found})",
    )


def _override_problems(
    model: nn.Module, config: ModuleConfig, wanted: Mapping[str, Layer], reasons: Mapping[str, str]
) -> list[Problem]:
    """Return a problem for each override that changes nothing, with the reason where there is one."""
    problems: list[Problem] = []
    others = {path: type(module).__name__ for path, module in named_modules(model) if path not in wanted}
    for pattern in config.overrides:
        matches = Rule(pattern).matches
        if not any(map(matches, wanted)):
            found = [
                f"{path} stays float: {reasons[path]}" if path in reasons else f"{path!r} is a {kind}"
                for path, kind in others.items()
                if matches(path)
            ]
            if found:
                problems.append(_idle(pattern, config.name, found))
            else:
                problems += unmatched_problems([pattern], [*wanted, *reasons])
    return problems


def _idle(pattern: str, algorithm: str, found: list[str]) -> Problem:
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return Problem(
        field="overrides",
        value=pattern,
        expected=f"a pattern that matches a layer that {algorithm} quantizes",
        remedy=f"{'; '.join(found[:3])}{more}",
        sentence=f"the override {pattern!r} matches no layer that {algorithm} quantizes",
    )


def _require_finite_weights(layers: Mapping[str, Layer]) -> None:
    problems = []
    for path, layer in layers.items():
        weight = matrix(layer)
        if not bool(torch.isfinite(weight).all()):
            index = tuple(torch.nonzero(~torch.isfinite(weight))[0].tolist())
            found = Found(f"{weight[index].item()} at {index}")
            sentence = f"its weight is {found}"
            problems.append(
                Problem(module=path, field="weight", value=found, expected="finite", sentence=sentence)
            )
    if problems:
        raise NumericsError(*problems)
