"""A model with every module that has a wrapper replaced by it."""

from __future__ import annotations

import attrs
import torch
from torch import nn

from tico_config import (
    ConfigError,
    Found,
    NumericsError,
    Problem,
    PTQConfig,
    UnsupportedError,
    unmatched_problems,
)
from tico_quantizers import (
    Edit,
    LayerReport,
    QuantizedModule,
    RestorableModule,
    child_path,
    children,
    named_modules,
    parameter,
    stand_in,
)
from tico_wrapq._quant_module_base import QuantModuleBase
from tico_wrapq._registry import WrapperRegistry, pass_reason

# Modules that read their children's weights without calling them, so that wrapping those changes nothing.
_WHOLES = (nn.MultiheadAttention,)


@attrs.frozen(eq=False, kw_only=True)
class Wrapped:
    """A wrapped model: its root, its wrappers by path, and the modules left as they were with the reason."""

    root: nn.Module
    wrappers: dict[str, QuantModuleBase]
    left: tuple[LayerReport, ...]


@attrs.frozen(eq=False)
class _Site:
    """A module and what is to become of it; without wrapper and reason it is not supported."""

    path: str
    module: nn.Module
    wrapper: type[QuantModuleBase] | None
    reason: str

    @property
    def is_container(self) -> bool:
        """Whether it only holds other modules."""
        return bool(children(self.module)) and pass_reason(type(self.module)) is not None


def wrap(model: nn.Module, config: PTQConfig, registry: WrapperRegistry, edit: Edit) -> Wrapped:
    """Put the wrappers into `model`, through `edit`; everything that is wrong is raised before.

    Raises:
        UnsupportedError: with `strict_wrap`, every module that has no wrapper.
        ConfigError: an override matches nothing, or two contradict each other.
        NumericsError: a weight holds NaN or infinity.
    """
    sites = _sites(model, registry)
    _require_supported(sites, config)
    made = {
        site.path: site.wrapper(site.module, site.path, lambda path: config.resolve(path).spec)
        for site in sites
        if site.wrapper is not None
    }
    _require_matches(made, config)
    root = model
    wrappers: dict[str, QuantModuleBase] = {}
    for site in sites:
        wrapper = made.get(site.path)
        if wrapper is not None and wrapper.is_quantized:
            stand_in_unless_leaf(site.module, wrapper)
            root = edit.replace(root, site.module, wrapper)
            wrappers[site.path] = wrapper
    left = tuple(_left(site) for site in sites if site.path not in wrappers and not site.is_container)
    return Wrapped(root=root, wrappers=wrappers, left=left)


def stand_in_unless_leaf(module: nn.Module, wrapper: QuantModuleBase) -> None:
    """Hand hooks and mode over where the wrapper takes the module apart; a module it calls keeps its own."""
    wrapper.train(module.training)
    if all(child is not module for child in children(wrapper).values()):
        stand_in(module, wrapper)


def _site(path: str, module: nn.Module, registry: WrapperRegistry) -> _Site:
    wrapper = registry.lookup(type(module))
    if wrapper is not None:
        return _Site(path, module, wrapper, "")
    if isinstance(module, RestorableModule):
        return _Site(path, module, None, "it is quantized already")
    passing = pass_reason(type(module))
    if passing is not None or (children(module) and not isinstance(module, _WHOLES)):
        return _Site(path, module, None, passing or "the arithmetic of its own forward stays float")
    return _Site(path, module, None, "")


def _sites(model: nn.Module, registry: WrapperRegistry) -> list[_Site]:
    """Return the modules that are looked at: not the parts of those that are taken as a whole."""
    sites: list[_Site] = []
    wholes: tuple[str, ...] = ()
    for path, module in named_modules(model):
        if not path.startswith(wholes):
            sites.append(_site(path, module, registry))
            if isinstance(module, (RestorableModule, *_WHOLES)):
                wholes = (*wholes, f"{path}." if path else "")
    return sites


def _left(site: _Site) -> LayerReport:
    reason = site.reason or ("the config leaves it float" if site.wrapper else "it has no wrapper")
    return LayerReport(path=site.path, module=type(site.module).__name__, algorithm="ptq", reason=reason)


def _require_supported(sites: list[_Site], config: PTQConfig) -> None:
    unsupported = [site for site in sites if site.wrapper is None and not site.reason]
    if config.strict_wrap and unsupported:
        remedy = "register a wrapper for it, or set strict_wrap=False to leave it float and have it reported"
        raise UnsupportedError(
            *(
                Problem(
                    module=site.path or type(site.module).__name__,
                    value=Found(type(site.module).__qualname__),
                    expected="a module with a wrapper",
                    remedy=remedy,
                )
                for site in unsupported
            )
        )


def _require_matches(made: dict[str, QuantModuleBase], config: PTQConfig) -> None:
    paths = list(made)
    for path, wrapper in made.items():
        paths += [child_path(path, declaration.name) for declaration in wrapper.points]
    problems = unmatched_problems(config.overrides, paths)
    if not any(wrapper.is_quantized for wrapper in made.values()):
        found = Found("none")
        expected = "a model with at least one module to quantize"
        problems.append(Problem(field="model", value=found, expected=expected))
    if problems:
        raise ConfigError(*problems)
    bad = [(path, weight) for path, wrapper in made.items() if (weight := _bad_weight(wrapper)) is not None]
    if bad:
        raise NumericsError(
            *(Problem(module=path, field="weight", value=Found(at), expected="finite") for path, at in bad)
        )


def _bad_weight(wrapper: QuantModuleBase) -> str | None:
    for child in children(wrapper).values():
        weight = None if isinstance(child, QuantizedModule) else parameter(child, "weight")
        if weight is not None and not bool(torch.isfinite(weight).all()):
            index = tuple(torch.nonzero(~torch.isfinite(weight))[0].tolist())
            return f"{weight[index].item()} at {index}"
    return None
