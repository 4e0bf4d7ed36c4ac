"""What is to become of every module of a model: a wrapper, or a reason why it stays as it is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import attrs
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from tico_modules import RestorableModule, child_path, children, named_modules
from tico_wrapq.base import PointDeclaration, QuantModuleBase, QuantPoint, WrapperRegistry
from tico_wrapq.steps import STEPS, Stepped, StepPoints, why_not_stepped

# Modules that read their children's weights without calling them, so that wrapping those changes nothing.
_WHOLES = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.LinearCrossEntropyLoss)


# Modules whose steps are computed in one kernel, that have no forward, or no weight before their first call.
_NO_STEPS = (
    *_WHOLES,
    *(nn.RNNBase, nn.RNNCellBase),
    LazyModuleMixin,
)
_ARITHMETIC = "the arithmetic of its own forward stays float"


@attrs.frozen(eq=False, kw_only=True)
class ModuleSite:
    """A module of the model, what a wrapper would wrap there, and which wrapper that is.

    `adopted` is `module`, or the module inside of a wrapper from an earlier run. A module with neither a
    wrapper nor a `reason` is not supported, and `refusal` says why. `passes` is True if its class is
    registered as one that needs no quantization, `is_settled` if a wrapper of its class decides what becomes
    of it. `floats` are the names of the float parameters that a `module` without a wrapper owns itself.
    """

    path: str
    module: nn.Module
    adopted: nn.Module
    wrapper: type[QuantModuleBase] | None = None
    reason: str = ""
    refusal: str = ""
    passes: bool = False
    is_settled: bool = False
    floats: tuple[str, ...] = ()

    @property
    def points(self) -> tuple[PointDeclaration, ...]:
        """The points that the wrapper will have."""
        return () if self.wrapper is None else self.wrapper.points_of(self.adopted)

    @property
    def is_container(self) -> bool:
        """Whether it only holds other modules."""
        return bool(children(self.module)) and self.passes and not self.floats

    @property
    def is_quantized(self) -> bool:
        """Whether an earlier run has left grids here."""
        return isinstance(self.module, RestorableModule | Stepped)


def with_steps(site: ModuleSite) -> ModuleSite:
    """Return `site`, with points for the steps of the module's own forward where nothing else serves it."""
    known = site.wrapper is not None or site.passes or site.is_quantized or site.is_settled
    if known or isinstance(site.module, _NO_STEPS) or parametrize.is_parametrized(site.module):
        return site
    refusal = why_not_stepped(site.module)
    if refusal is not None:
        return attrs.evolve(site, reason="", refusal=refusal)
    return attrs.evolve(site, wrapper=StepPoints, reason="", refusal="")


def _weights_refusal(names: list[str]) -> str:
    return f"it has no wrapper for the weights that it owns: {', '.join(names)}"


def sites(model: nn.Module, registry: WrapperRegistry, variant: str) -> Iterator[ModuleSite]:
    """Yield the modules that are looked at: not the parts of those that are taken as a whole."""
    skipped: set[str] = set()
    for path, module in named_modules(model):
        if path in skipped:
            parts = set(children(module))
        else:
            yield _site(path, module, registry, variant)
            parts = inner(module)
        skipped |= {child_path(path, name) for name in parts}


def inner(module: nn.Module) -> set[str]:
    """Return the names of the children that are no modules of the model, but parts of `module`."""
    names = set(children(module))
    if isinstance(module, Stepped):
        return {STEPS}
    if isinstance(module, QuantModuleBase):
        points = {name for name in names if isinstance(children(module)[name], QuantPoint)}
        return points if module.kept is None else names
    left_whole = isinstance(module, RestorableModule) and not module.holds_modules
    whole = left_whole or isinstance(module, _WHOLES) or parametrize.is_parametrized(module)
    return names if whole else set()


def _site(path: str, module: nn.Module, registry: WrapperRegistry, variant: str) -> ModuleSite:
    passing = registry.pass_reason(type(module))
    kept = module.kept if isinstance(module, QuantModuleBase) else None
    adopted = module if kept is None else children(module)[kept]
    taken_apart = isinstance(module, QuantModuleBase) and kept is None
    wrapper = type(module) if taken_apart else registry.find(type(adopted), variant)
    settled = False
    if wrapper is not None and issubclass(wrapper, QuantModuleBase):
        own = not taken_apart and _has_own_forward(wrapper, adopted, registry)
        refusal = "it has a forward of its own" if own else wrapper.refusal(adopted)
        reason, passing = wrapper.pass_reason(adopted) or "", None
        if refusal is None and not reason:
            return ModuleSite(path=path, module=module, adopted=adopted, wrapper=wrapper)
        settled = not _overrides_forward(wrapper, adopted, registry)
    else:
        reason = _reason(module, passing)
        refusal = "" if reason else _why_no_wrapper(adopted)
    return ModuleSite(
        path=path,
        module=module,
        adopted=adopted,
        reason=reason,
        refusal=refusal or "",
        passes=passing is not None,
        is_settled=settled,
        floats=own_floats(module),
    )


def own_floats(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters of floats that `module` itself owns, but of empty ones.

    One that a module below holds too, as the head of BERT shares its bias with a layer, is that module's.
    """
    own: dict[str, nn.Parameter | None] = module._parameters
    held = {name: each for name, each in own.items() if each is not None and _holds_floats(each)}
    below = (
        {id(each) for child in children(module).values() for each in child.parameters()} if held else set()
    )
    return tuple(name for name, each in held.items() if id(each) not in below)


def _holds_floats(tensor: Tensor) -> bool:
    # A lazy parameter has no number of elements yet.
    return tensor.is_floating_point() and (isinstance(tensor, UninitializedParameter) or tensor.numel() > 0)


def _has_own_forward(wrapper: type[QuantModuleBase], module: nn.Module, registry: WrapperRegistry) -> bool:
    """Tell whether `wrapper` would replace a forward that is not that of a class it is registered for."""
    return wrapper.replaces_forward and _overrides_forward(wrapper, module, registry)


def _overrides_forward(wrapper: type[QuantModuleBase], module: nn.Module, registry: WrapperRegistry) -> bool:
    """Tell whether the forward of `module` is not that of a class that `wrapper` is registered for."""
    known = [inspect.unwrap(base.forward) for base in registry.bases_of(wrapper, type(module))]
    return "forward" in vars(module) or inspect.unwrap(type(module).forward) not in known


def _reason(module: nn.Module, passing: str | None) -> str:
    """Return why it is right that `module` has no wrapper; empty where it is not."""
    if isinstance(module, RestorableModule | Stepped):
        return "it is quantized already"
    holds_others = children(module) and not isinstance(module, _WHOLES) and not own_floats(module)
    return passing or (_ARITHMETIC if holds_others else "")


def _why_no_wrapper(module: nn.Module) -> str:
    """Return why this module is not supported."""
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "it has no wrapper: its steps are computed in one kernel, where no point can be"
    if isinstance(module, LazyModuleMixin):
        return "it has no weight before its first call"
    if isinstance(module, nn.Bilinear):
        return "it has no wrapper: it multiplies two inputs by each weight in one kernel"
    if children(module) and own_floats(module):
        return _weights_refusal(list(own_floats(module)))
    return "it has no wrapper"
