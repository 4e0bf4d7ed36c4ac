"""A model with every module that has a wrapper replaced by it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial

import attrs
import torch
from torch import nn

from tico_config import (
    ConfigError,
    Found,
    NumericsError,
    Problem,
    PTQConfig,
    QuantSpec,
    TicoError,
    UnsupportedError,
    no_quant,
    unmatched_overrides,
    winning_rule,
)
from tico_modules import (
    Edit,
    LayerReport,
    QuantizedModule,
    child_path,
    children,
    named_modules,
    parameter,
    record_outputs,
)
from tico_quantizers.layers import layer_kind, output_embeddings, routers_in
from tico_wrapq.base import (
    WEIGHT,
    PointDeclaration,
    QuantModuleBase,
    Role,
    WrapperRegistry,
    spec_problem,
)
from tico_wrapq.ptq._sites import ModuleSite, own_floats, sites, with_steps
from tico_wrapq.ptq._targets import target_problems
from tico_wrapq.steps import StepPoints

_ASKED = "the config leaves it float"
_OUT_OF_SCOPE = "scope='linear' is for linear layers"
_NO_LAYERS = "use scope='all', which takes modules that read the weights of their layers, or GPTQConfig"
_HEAD = "scope='linear' is for an output embedding only if an override has its exact path"


@attrs.frozen(eq=False, kw_only=True)
class Wrapped:
    """A wrapped model: its root, its wrappers by path, and the modules left as they were with the reason.

    `paths` are those that overrides may speak of, but of steps, which are found later; `notes` say of
    wrappers, by path, why their weight is float.
    """

    root: nn.Module
    wrappers: dict[str, QuantModuleBase]
    left: tuple[LayerReport, ...]
    paths: tuple[str, ...] = ()
    notes: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def steps(self) -> list[StepPoints]:
        """What runs the forward of modules step by step."""
        return [each for each in self.wrappers.values() if isinstance(each, StepPoints)]


@attrs.frozen
class _Choice:
    """What a config says of weights, but that those of `routers` stay float unless an override names them."""

    config: PTQConfig
    routers: Mapping[str, str]

    def weight(self, path: str) -> QuantSpec:
        """Return the spec of the weight at `path`."""
        return no_quant() if self._reason(path) else self.config.resolve(path, "weight").spec

    def _reason(self, path: str) -> str:
        does = self.routers.get(path.rpartition(".")[0])
        if does is None or self.config.resolve(path, "weight").origin != "weight":
            return ""
        return f"it {does}; its weight is quantized only if an override names it"

    def notes(self, modules: Mapping[str, nn.Module]) -> dict[str, str]:
        """Return why the weights of some of these modules are float, by path."""
        floats = (path for path, module in modules.items() if not isinstance(module, QuantizedModule))
        reasons = {path: self._reason(child_path(path, "weight")) for path in floats}
        return {path: reason for path, reason in reasons.items() if reason}


def wrap(model: nn.Module, config: PTQConfig, registry: WrapperRegistry, edit: Edit) -> Wrapped:
    """Put the wrappers into `model`, through `edit`, once nothing is found to be wrong.

    Raises:
        UnsupportedError: with `strict_wrap`, every module that has no wrapper; or a point that cannot
            have the format it is to have.
        ConfigError: an override matches nothing, or two contradict each other.
        NumericsError: a weight holds NaN or infinity; those on the meta device are not looked at.
    """
    _require_variant(registry, config)
    root = _taken_apart(model, registry, config, edit)
    found = list(_found(root, registry, config))
    _require_supported(found, config)
    choice = _Choice(config, routers_in(root))
    specs = _specs(root, found, choice)
    _require_finite_weights(found)
    parts = _parts_left(root, found)
    record_outputs(root, edit)
    wrappers: dict[str, QuantModuleBase] = {}
    for site in found:
        wanted = any(specs[path].is_quantized for path in _point_paths(site)) or _is_apart(site)
        if site.wrapper is StepPoints:
            named = partial(_is_named, config)
            weights = {name: choice.weight(child_path(site.path, name)) for name in site.floats}
            steps = StepPoints(site.module, site.path, partial(_spec_at, config), named, weights)
            steps.join(site.module, edit)
            wrappers[site.path] = steps
        elif site.wrapper is not None and wanted:
            wrapper = site.wrapper(site.adopted, site.path, lambda path: specs[path])
            root = edit.replace(root, site.module, wrapper)
            wrappers[site.path] = wrapper
    notes = choice.notes({site.path: site.module for site in found})
    left = [_left(site, notes) for site in found if site.path not in wrappers and _is_reported(site)]
    left += parts
    paths = (*_override_paths(found), *specs)
    return Wrapped(root=root, wrappers=wrappers, left=tuple(left), paths=paths, notes=notes)


def _found(root: nn.Module, registry: WrapperRegistry, config: PTQConfig) -> Iterator[ModuleSite]:
    """Yield what is to become of the modules of `root` by `config`."""
    heads = output_embeddings(root)
    for site in sites(root, registry, config.variant):
        if config.scope == "linear" and (reason := _reason_out_of_scope(site, heads, config)):
            yield attrs.evolve(site, wrapper=None, reason=site.reason or reason, refusal="")
        else:
            stepped = config.steps == "auto" and config.scope == "all"
            yield _unless_float(with_steps(site) if stepped else site, config)


def _reason_out_of_scope(site: ModuleSite, heads: tuple[nn.Module, ...], config: PTQConfig) -> str:
    """Return why a module is not among the linear layers to quantize; empty where it is."""
    kind = layer_kind(site.adopted, heads)
    if kind == "head":
        return "" if site.path in config.overrides else _HEAD
    return "" if kind in ("linear", "transposed_linear") else _OUT_OF_SCOPE


def _is_named(config: PTQConfig, path: str) -> bool:
    return config.resolve(path).origin.startswith("overrides[")


def _spec_at(config: PTQConfig, path: str) -> QuantSpec:
    return config.resolve(path).spec


def _taken_apart(model: nn.Module, registry: WrapperRegistry, config: PTQConfig, edit: Edit) -> nn.Module:
    """Return `model` with the modules that wrappers take apart into others replaced, outer ones first."""
    root, last = model, -1
    replaced: list[ModuleSite] = []
    if config.scope == "linear":
        return root
    while len(replaced) > last:
        last = len(replaced)
        for site in list(sites(root, registry, config.variant)):
            if site.wrapper is not None and site.wrapper.makes_parts and not _stays_whole(site, config):
                new = site.wrapper(site.adopted, site.path, lambda _: no_quant())
                root = edit.replace(root, site.module, new)
                replaced.append(site)
    return root


def _stays_whole(site: ModuleSite, config: PTQConfig) -> bool:
    return _is_apart(site) or _asked_float(site, config)


def _is_apart(site: ModuleSite) -> bool:
    """Whether the wrapper's class stands there already, in the place of what it takes apart."""
    return site.wrapper is not None and site.wrapper.makes_parts and isinstance(site.module, site.wrapper)


def _is_reported(site: ModuleSite) -> bool:
    """Whether a module left as it is gets a line: what an earlier run has quantized keeps its own."""
    return not site.is_container and not site.is_quantized


def _left(site: ModuleSite, notes: Mapping[str, str]) -> LayerReport:
    reason = site.reason or site.refusal or notes.get(site.path, _ASKED)
    return LayerReport(path=site.path, module=type(site.module).__name__, algorithm="ptq", reason=reason)


def _parts_left(root: nn.Module, found: list[ModuleSite]) -> list[LayerReport]:
    """Return a line for each module that owns floats inside of one that stays float as a whole."""
    whole = {site.path: site for site in found}
    lines: list[LayerReport] = []
    for path, module in named_modules(root):
        above = path.rpartition(".")[0]
        while above and above not in whole:
            above = above.rpartition(".")[0]
        site = whole.get(above)
        if path not in whole and own_floats(module) and site is not None and _stays_float(site):
            kind, reason = type(module).__name__, f"it is a part of {above}, which stays float"
            lines.append(LayerReport(path=path, module=kind, algorithm="ptq", reason=reason))
    return lines


def _stays_float(site: ModuleSite) -> bool:
    return site.wrapper is None and not site.is_quantized


def _point_paths(site: ModuleSite) -> Iterator[str]:
    return (child_path(site.path, declaration.name) for declaration in site.points)


def _require_variant(registry: WrapperRegistry, config: PTQConfig) -> None:
    if config.variant not in registry.variants:
        names = ", ".join(map(repr, registry.variants))
        sentence = f"no wrapper has the variant {config.variant!r}; there are {names}"
        raise ConfigError(
            Problem(field="variant", value=config.variant, expected=f"one of {names}", sentence=sentence)
        )


def _unless_float(site: ModuleSite, config: PTQConfig) -> ModuleSite:
    """Return `site`, without its refusal where an override says that the module is to stay float."""
    if not site.refusal or not _asked_float(site, config):
        return site
    return attrs.evolve(site, refusal="", reason=_ASKED)


def _asked_float(site: ModuleSite, config: PTQConfig) -> bool:
    """Whether overrides say of the module, or of every weight that it owns, that it is to stay float."""
    owned = [(path, site.path) for path in _float_paths(site)] if site.refusal else []
    asked: list[tuple[str, ...]] = [*owned] or [(site.path,)]
    rules = [winning_rule(config.overrides, paths) for paths in asked]
    changes = [None if rule is None else config.overrides[rule.pattern] for rule in rules]
    return all(isinstance(change, QuantSpec) and not change.is_quantized for change in changes)


def _float_paths(site: ModuleSite) -> list[str]:
    return [child_path(site.path, name) for name in site.floats]


def _require_supported(found: list[ModuleSite], config: PTQConfig) -> None:
    unsupported = [site for site in found if site.refusal]
    if config.strict_wrap and unsupported:
        raise UnsupportedError(*map(_unsupported, unsupported))


def _unsupported(site: ModuleSite) -> Problem:
    kind = type(site.module).__qualname__
    paths = _float_paths(site) if children(site.module) and site.floats else [site.path]
    rules = ", ".join(f"{path!r}: no_quant()" for path in paths)
    return Problem(
        module=site.path or kind,
        value=Found(f"{kind}: {site.refusal}"),
        expected="a module with a wrapper",
        sentence=f"it is a {kind}; {site.refusal}",
        remedy=f"register a wrapper for it, leave it float by overrides={{{rules}}}, "
        "or set strict_wrap=False to leave all such modules float and have them reported",
    )


def _specs(root: nn.Module, found: list[ModuleSite], choice: _Choice) -> dict[str, QuantSpec]:
    """Return the spec of every point by its path, or raise everything that is wrong with any of them."""
    config = choice.config
    specs: dict[str, QuantSpec] = {}
    problems: list[Problem] = []
    unsupported: list[Problem] = []
    for site in found:
        for declaration in site.points:
            path = child_path(site.path, declaration.name)
            try:
                specs[path] = _point_spec(choice, path, declaration)
            except TicoError as error:
                problems += error.problems
                continue
            problem = spec_problem(path, declaration, specs[path])
            unsupported += [] if problem is None else [problem]
        owned = (child_path(site.path, name) for name in (site.floats if site.wrapper is StepPoints else ()))
        weights = (spec_problem(path, WEIGHT, choice.weight(path)) for path in owned)
        unsupported += [problem for problem in weights if problem is not None]
    if not problems:
        problems = [*_match_problems(found, specs, config), *target_problems(root, found, specs, config)]
    if problems:
        raise ConfigError(*problems)
    if unsupported:
        raise UnsupportedError(*unsupported)
    return specs


def _point_spec(choice: _Choice, path: str, declaration: PointDeclaration) -> QuantSpec:
    """Return the spec of a point; that of what a layer gives may be out of scope."""
    config = choice.config
    spec = choice.weight(path) if declaration.role is Role.WEIGHT else config.resolve(path).spec
    if config.scope == "all" or declaration.role is not Role.ACTIVATION_OUT:
        return spec
    rule = winning_rule(config.overrides, (path, path.rpartition(".")[0]))
    return spec if rule is not None and rule.matches(path) else no_quant()


def _override_paths(found: list[ModuleSite]) -> list[str]:
    """Return the paths of modules and of their parameters that overrides may speak of."""
    paths = [site.path for site in found if site.wrapper is not None or site.reason == _ASKED]
    return paths + [path for site in found for path in _float_paths(site)]


def _match_problems(found: list[ModuleSite], specs: dict[str, QuantSpec], config: PTQConfig) -> list[Problem]:
    stepped = {site.path for site in found if site.wrapper is StepPoints}
    every = unmatched_overrides(config.overrides, [*_override_paths(found), *specs])
    problems = [each for each in every if not (stepped and _may_name_step(each, stepped))]
    if not stepped and not any(spec.is_quantized for spec in specs.values()):
        expected, got = "one with a module to quantize", Found("a model with none")
        sentence = "the model has no module with a point or weight to quantize"
        remedy = (
            _NO_LAYERS if config.scope == "linear" else "ask for integers by activation, weight or overrides"
        )
        problems.append(
            Problem(field="model", value=got, expected=expected, sentence=sentence, remedy=remedy)
        )
    return problems


def _may_name_step(problem: Problem, stepped: set[str]) -> bool:
    """Whether a pattern that matches nothing known may speak of steps, which are found later.

    The name of a step has a number in it, and follows the path of a module.
    """
    pattern = str(problem.value)
    module, _, last = pattern.rpartition(".")
    if pattern.startswith("re:") or any(each in last for each in "*?["):
        return True
    numbered = any(character.isdigit() for character in last) and "_" in last
    return numbered and (module in stepped or any(each in module for each in "*?["))


def _require_finite_weights(found: list[ModuleSite]) -> None:
    weights = [
        (site.path, name, site.adopted)
        for site in found
        if site.wrapper is not None
        for name in (site.floats if site.wrapper is StepPoints else ("weight",))
    ]
    bad = [
        (path, name, at)
        for path, name, module in weights
        if (at := _first_nonfinite(module, name)) is not None
    ]
    if bad:
        raise NumericsError(
            *(
                Problem(
                    module=path,
                    field=name,
                    value=Found(at),
                    expected="finite",
                    sentence=f"its {name} is {at}",
                )
                for path, name, at in bad
            )
        )


def _first_nonfinite(module: nn.Module, name: str) -> str | None:
    weight = None if isinstance(module, QuantizedModule) else parameter(module, name)
    if weight is None or weight.is_meta or math.isfinite(weight.detach().sum().item()):
        return None
    bad = torch.nonzero(~torch.isfinite(weight)).tolist()
    return f"{weight[tuple(bad[0])].item()} at {tuple(bad[0])}" if bad else None
