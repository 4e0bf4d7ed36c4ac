"""What an algorithm does to each layer of a model: decided, and refused, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, Generic, TypeVar

import attrs
import torch
from torch import nn

from tico_config import (
    CalibrationError,
    ConfigError,
    FloatFormat,
    Found,
    ModuleConfig,
    NumericsError,
    Problem,
    Rule,
    is_left_out,
    unmatched_problems,
)
from tico_modules import LayerReport, named_modules
from tico_quantizers.layers._float_lines import float_lines
from tico_quantizers.layers._layer_formats import target_problems
from tico_quantizers.layers._matrix import Layer, columns, groups, matrix, stored
from tico_quantizers.layers._routers import routers_in
from tico_quantizers.layers._selection import layers_in, output_embeddings, reasons_against

C = TypeVar("C", bound=ModuleConfig)


@attrs.frozen(eq=False)
class Target(Generic[C]):
    """A layer to quantize, the config that holds for it, and the rule that decided: see `Resolution`."""

    path: str
    layer: Layer
    config: C
    rule: str = "defaults"


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
        return float_lines(model, algorithm, self.left, self.targets)


_NO_LAYER: Final = (
    "it {}, and is no layer; what can quantize its weight is PTQConfig(overrides={{'{}.weight': ...}})"
)


def plan_layers(
    model: nn.Module,
    config: C,
    *,
    refuse: Callable[[Layer], str | None] | None = None,
    check: Callable[[Target[C]], Iterable[Problem]] | None = None,
) -> LayerPlan[C]:
    """Return what `config` asks for of each linear layer and convolution of `model`.

    These layers stay float, with the reason: those that `reasons_against` names, those that `refuse` gives a
    reason for, those that an override leaves out, and heads of language models and routers of experts unless
    an override has their exact path. `check` yields what is wrong with a layer and the config that holds for
    it. What the `target` of `config` does not take is found here, without `check`.

    Raises:
        ConfigError: nothing is left to quantize, an override changes nothing, or a check failed; with all
            that is wrong at once.
        NumericsError: a weight holds NaN or infinity; with the path of the layer. Weights on the meta device
            are not looked at.

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
    targets = {path: _target(path, layer, config) for path, layer in wanted.items()}
    if check is not None:
        problems += [problem for target in targets.values() for problem in check(target)]
    asked = {path: target.config for path, target in targets.items()}
    problems += target_problems(model, config, asked, layers)
    if problems:
        raise ConfigError(*problems)
    _require_finite_weights(wanted)
    return LayerPlan(targets=targets, left=reasons)


def _target(path: str, layer: Layer, config: C) -> Target[C]:
    found = config.resolve(path)
    return Target(path, layer, found.spec, found.origin)


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
    if size is None or width % size == 0 or ragged:
        return None
    largest = next(divisor for divisor in range(min(size, width), 0, -1) if width % divisor == 0)
    remedy = (
        f"choose {largest} or another divisor, for all or by an override for this module, let the last group"
        " be shorter by ragged_groups=True, or leave it out by no_quant()"
    )
    sentence = f"group_size={size} does not divide its {width} input columns"
    expected = f"None or a divisor of its {width} input columns"
    return Problem(
        module=path, field="group_size", value=size, expected=expected, remedy=remedy, sentence=sentence
    )


def tensor_scale_problem(path: str, layer: Layer, dtype: FloatFormat | None) -> Problem | None:
    """Return why the groups of a grouped convolution cannot share a scale: each is solved for by itself."""
    parts = groups(layer)
    if parts == 1 or dtype is None or dtype.scale_format != "e4m3":
        return None
    return Problem(
        module=path,
        field="dtype",
        value=dtype,
        expected=f"another for a convolution of {parts} groups of channels",
        remedy="choose an MX format, or leave the layer float by no_quant()",
        sentence=f"the groups of the convolution would have different scales of the tensor in {dtype}",
    )


def _reasons(
    model: nn.Module,
    config: ModuleConfig,
    layers: Mapping[str, Layer],
    refuse: Callable[[Layer], str | None] | None,
) -> dict[str, str]:
    """Return the layers that are left alone, each with the reason."""
    found, routers = reasons_against(model, layers), routers_in(model)
    heads = {id(head) for head in output_embeddings(model)}
    for path, layer in layers.items():
        own = config.reason_to_leave(path) or (None if refuse is None else refuse(layer))
        if own is not None:
            found[path] = own
        elif path in config.overrides:
            continue
        elif id(layer) in heads:
            found.setdefault(path, "the output embedding is quantized only if an override has its exact path")
        elif path in routers:
            why = found.get(path, "it is quantized only if an override has its exact path")
            found[path] = f"it {routers[path]}; {why}"
    others = {path: _NO_LAYER.format(does, path) for path, does in routers.items() if path not in layers}
    return {**others, **found}


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
    for pattern, change in config.overrides.items():
        matches = Rule(pattern).matches
        if is_left_out(change):
            problems += _idle_exclusion(pattern, config.name, model, {*wanted, *reasons})
        elif not any(map(matches, wanted)):
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


def _idle_exclusion(pattern: str, algorithm: str, model: nn.Module, layers: Collection[str]) -> list[Problem]:
    """Return a problem if no layer is at or below a module that `pattern` matches."""
    matched = {path: module for path, module in named_modules(model) if Rule(pattern).matches(path)}
    if not matched:
        return unmatched_problems([pattern], [path for path, _ in named_modules(model) if path])
    if any(_is_below(layer, path) for layer in layers for path in matched):
        return []
    found = [f"{path!r} is a {type(module).__name__}" for path, module in matched.items()]
    return [_idle(pattern, algorithm, found)]


def _is_below(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}.")


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
        if any(each.is_meta for each in stored(layer)):
            continue  # of these there is a plan only
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
