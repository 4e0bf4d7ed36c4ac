"""Which wrapper serves which module class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar, final

import attrs
from torch import nn

from tico_config import ConfigError, Found, Problem, UnsupportedError
from tico_modules import find_entry_points
from tico_wrapq._llama_family import classes_of
from tico_wrapq._quant_module_base import QuantModuleBase

W = TypeVar("W", bound=type[QuantModuleBase])
ENTRY_POINT_GROUP = "tico.wrappers"
DEFAULT_VARIANT = "default"


@attrs.frozen
class WrapperEntry:
    """One wrapper: the dotted path of the module class it serves, and which variant of it."""

    target: str
    wrapper: type[QuantModuleBase]
    variant: str = DEFAULT_VARIANT


def dotted_path(kind: type[nn.Module]) -> str:
    """Return where a class is defined, for example ``torch.nn.modules.linear.Linear``."""
    return f"{kind.__module__}.{kind.__qualname__}"


def wrapper_entry(
    target: type[nn.Module] | str, wrapper: type[QuantModuleBase], variant: str = DEFAULT_VARIANT
) -> WrapperEntry:
    """Return the entry that serves `target`, a class or the dotted path of one that need not be installed.

    Raises:
        UnsupportedError: `wrapper` is no wrapper class.
    """
    _require_wrapper(wrapper)
    return WrapperEntry(target if isinstance(target, str) else dotted_path(target), wrapper, variant)


def _require_wrapper(wrapper: object) -> None:
    if not (isinstance(wrapper, type) and issubclass(wrapper, QuantModuleBase)):
        expected = "a subclass of QuantModuleBase"
        raise UnsupportedError(Problem(field="wrapper", value=wrapper, expected=expected))


@final
class WrapperRegistry:
    """Wrappers by the dotted path of the class they serve, so that looking up imports nothing.

    Raises:
        ConfigError: two entries serve one class as the same variant.
    """

    def __init__(self, entries: Iterable[WrapperEntry] = ()) -> None:
        self._entries: dict[tuple[str, str], WrapperEntry] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: WrapperEntry) -> None:
        """Add one entry.

        Raises:
            ConfigError: another entry serves the class as the same variant.
        """
        key = (entry.target, entry.variant)
        if self._entries.setdefault(key, entry) != entry:
            found = Found(f"{entry.wrapper.__name__} beside {self._entries[key].wrapper.__name__}")
            expected = f"one wrapper for {entry.target} as variant {entry.variant!r}"
            raise ConfigError(Problem(field="wrapper", value=found, expected=expected))

    def lookup(self, kind: type[nn.Module], variant: str = DEFAULT_VARIANT) -> type[QuantModuleBase] | None:
        """Return the wrapper for `kind` or for the nearest of its bases that has one; None without one."""
        for base in kind.__mro__:
            entry = self._entries.get((dotted_path(base), variant))
            if entry is not None:
                return entry.wrapper
        return None

    def served_by(self, wrapper: type[QuantModuleBase], kind: type[nn.Module]) -> list[type[nn.Module]]:
        """Return those of `kind` and its bases that `wrapper` is registered for."""
        targets = {entry.target for entry in self._entries.values() if entry.wrapper is wrapper}
        return [base for base in kind.__mro__ if dotted_path(base) in targets]

    def serving(self, kind: type[nn.Module], variant: str) -> type[QuantModuleBase] | None:
        """Return the wrapper of the nearest base that has one, `variant` before the default one."""
        for base in kind.__mro__:
            for name in (variant, DEFAULT_VARIANT):
                entry = self._entries.get((dotted_path(base), name))
                if entry is not None:
                    return entry.wrapper
        return None

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of all variants."""
        return tuple(sorted({DEFAULT_VARIANT, *(variant for _, variant in self._entries)}))

    @property
    def entries(self) -> tuple[WrapperEntry, ...]:
        """Every entry."""
        return tuple(self._entries.values())

    def with_installed(self) -> WrapperRegistry:
        """Return a registry with the wrappers that installed packages offer in the group ``tico.wrappers``.

        An entry point names a `WrapperEntry` or a tuple of them.

        Raises:
            UnsupportedError: an entry point names something else.
        """
        found: list[WrapperEntry] = []
        for point in find_entry_points(ENTRY_POINT_GROUP):
            value: object = point.load()
            entries = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(entry, WrapperEntry) for entry in entries):
                expected = "a WrapperEntry or a tuple of them"
                raise UnsupportedError(
                    Problem(field=f"entry point {point.name}", value=value, expected=expected)
                )
            found += entries
        return WrapperRegistry((*self.entries, *found))


REGISTRY = WrapperRegistry()


def register(target: type[nn.Module] | str, variant: str = DEFAULT_VARIANT) -> Callable[[W], W]:
    """Register the decorated wrapper for the module class `target`.

    Raises:
        ConfigError: another wrapper serves the class as the same variant.
    """

    def add(wrapper: W) -> W:
        REGISTRY.add(wrapper_entry(target, wrapper, variant))
        return wrapper

    return add


def try_register(*dotted_paths: str, variant: str = DEFAULT_VARIANT) -> Callable[[W], W]:
    """Register the decorated wrapper for classes named by dotted path, installed or not.

    Raises:
        ConfigError: another wrapper serves one of the classes as the same variant.
    """

    def add(wrapper: W) -> W:
        for path in dotted_paths:
            REGISTRY.add(wrapper_entry(path, wrapper, variant))
        return wrapper

    return add


def lookup(kind: type[nn.Module], variant: str = DEFAULT_VARIANT) -> type[QuantModuleBase] | None:
    """Return the registered wrapper for `kind` or the nearest of its bases; None without one.

    >>> lookup(nn.Linear).__name__
    'QuantLinear'
    """
    return REGISTRY.lookup(kind, variant)


_HOLDS = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Sequential,
    nn.ParameterList,
    nn.ParameterDict,
)
_DROPS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)

PASS_THROUGH: Mapping[str, str] = {
    **{dotted_path(kind): "it does not compute" for kind in _HOLDS},
    **{dotted_path(kind): "it does nothing in evaluation mode" for kind in _DROPS},
    **dict.fromkeys(classes_of("RotaryEmbedding"), "it computes constants of the positions"),
    **dict.fromkeys(
        (*classes_of("Model"), *classes_of("ForCausalLM")), "it hands tensors on, and makes the mask"
    ),
}


def pass_reason(kind: type[nn.Module]) -> str | None:
    """Return why modules of this class need no quantization, or None where they may need it.

    A subclass with a forward of its own may.
    """
    bases = [base for base in kind.__mro__ if dotted_path(base) in PASS_THROUGH]
    known = bases and getattr(kind, "forward", None) is getattr(bases[0], "forward", None)
    return PASS_THROUGH[dotted_path(bases[0])] if known else None


def why_no_wrapper(kind: type[nn.Module]) -> str:
    """Return why modules of this class are not supported."""
    if issubclass(kind, nn.RNNBase | nn.RNNCellBase):
        return "it has no wrapper: its steps are computed in one kernel, where no point can be"
    return "it has no wrapper"
