"""Which wrapper serves which module class, and which classes need none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint
from typing import TypeAlias, TypeVar, final

import attrs
from torch import nn
from typing_extensions import assert_never

from tico_config import ConfigError, Found, Problem, UnsupportedError
from tico_modules import BrokenPlugIn, find_entry_points, load_plug_in
from tico_wrapq.base._quant_module_base import QuantModuleBase

W = TypeVar("W", bound=type[QuantModuleBase])
ENTRY_POINT_GROUP = "tico.wrappers"
DEFAULT_VARIANT = "default"


@attrs.frozen
class WrapperEntry:
    """One wrapper: the dotted path of the module class it serves, and which variant of it."""

    target: str
    wrapper: type[QuantModuleBase]
    variant: str = DEFAULT_VARIANT


@attrs.frozen
class PassThroughEntry:
    """A module class, by dotted path, that needs no quantization, and the reason in the words of a report."""

    target: str
    reason: str


RegistryEntry: TypeAlias = WrapperEntry | PassThroughEntry


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
    return WrapperEntry(_path_of(target), wrapper, variant)


def pass_through_entry(target: type[nn.Module] | str, reason: str) -> PassThroughEntry:
    """Return the entry that says why modules of the class `target` need no quantization.

    `target` is a class or the dotted path of one that need not be installed. A subclass with a forward of its
    own is not meant.

    >>> pass_through_entry(nn.Dropout, "it does nothing in evaluation mode").target
    'torch.nn.modules.dropout.Dropout'
    """
    return PassThroughEntry(_path_of(target), reason)


def _path_of(target: type[nn.Module] | str) -> str:
    return target if isinstance(target, str) else dotted_path(target)


def _require_wrapper(wrapper: object) -> None:
    if not (isinstance(wrapper, type) and issubclass(wrapper, QuantModuleBase)):
        expected = "a subclass of QuantModuleBase"
        raise UnsupportedError(Problem(field="wrapper", value=wrapper, expected=expected))


@final
class WrapperRegistry:
    """Wrappers by the dotted path of the class they serve, so that looking up imports nothing.

    Beside them are the classes that need no quantization, with the reason.

    Raises:
        ConfigError: two entries contradict each other.
    """

    def __init__(self, entries: Iterable[RegistryEntry] = ()) -> None:
        self._wrappers: dict[tuple[str, str], WrapperEntry] = {}
        self._pass_through: dict[str, PassThroughEntry] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: RegistryEntry) -> None:
        """Add one entry.

        Raises:
            ConfigError: another wrapper serves the class as the same variant, or the class needs no
                quantization for another reason.
        """
        match entry:
            case WrapperEntry():
                self._add_wrapper(entry)
            case PassThroughEntry():
                self._add_pass_through(entry)
            case unreachable:
                assert_never(unreachable)

    def _add_wrapper(self, entry: WrapperEntry) -> None:
        known = self._wrappers.setdefault((entry.target, entry.variant), entry)
        if known != entry:
            found = Found(f"{entry.wrapper.__name__} beside {known.wrapper.__name__}")
            expected = f"the only one for {entry.target} as variant {entry.variant!r}"
            raise ConfigError(Problem(field="wrapper", value=found, expected=expected))

    def _add_pass_through(self, entry: PassThroughEntry) -> None:
        known = self._pass_through.setdefault(entry.target, entry)
        if known != entry:
            found = Found(f"{entry.reason!r} beside {known.reason!r}")
            expected = f"the only one why {entry.target} needs no quantization"
            raise ConfigError(Problem(field="reason", value=found, expected=expected))

    def lookup(self, kind: type[nn.Module], variant: str = DEFAULT_VARIANT) -> type[QuantModuleBase] | None:
        """Return the wrapper for `kind` or for the nearest of its bases that has one; None without one."""
        return self._nearest(kind, (variant,))

    def find(self, kind: type[nn.Module], variant: str) -> type[QuantModuleBase] | None:
        """Return the wrapper of the nearest base that has one, `variant` before the default one."""
        return self._nearest(kind, (variant, DEFAULT_VARIANT))

    def _nearest(self, kind: type[nn.Module], variants: tuple[str, ...]) -> type[QuantModuleBase] | None:
        for base in kind.__mro__:
            for variant in variants:
                entry = self._wrappers.get((dotted_path(base), variant))
                if entry is not None:
                    return entry.wrapper
        return None

    def bases_of(self, wrapper: type[QuantModuleBase], kind: type[nn.Module]) -> list[type[nn.Module]]:
        """Return those of `kind` and its bases that `wrapper` is registered for."""
        targets = {entry.target for entry in self._wrappers.values() if entry.wrapper is wrapper}
        return [base for base in kind.__mro__ if dotted_path(base) in targets]

    def pass_reason(self, kind: type[nn.Module]) -> str | None:
        """Return why modules of this class need no quantization, or None where they may need it.

        A subclass with a forward of its own may.
        """
        bases = [base for base in kind.__mro__ if dotted_path(base) in self._pass_through]
        same = bases and getattr(kind, "forward", None) is getattr(bases[0], "forward", None)
        return self._pass_through[dotted_path(bases[0])].reason if same else None

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of all variants."""
        return tuple(sorted({DEFAULT_VARIANT, *(variant for _, variant in self._wrappers)}))

    @property
    def entries(self) -> tuple[RegistryEntry, ...]:
        """Every entry."""
        return (*self._wrappers.values(), *self._pass_through.values())

    def with_installed(self) -> WrapperRegistry:
        """Return a registry with the entries that installed packages offer in the group ``tico.wrappers``.

        An entry point names a `WrapperEntry`, a `PassThroughEntry`, or a tuple of them. One that cannot be
        used, or contradicts an entry that is there, is left out with a warning.
        """
        registry = WrapperRegistry(self.entries)
        for point in find_entry_points(ENTRY_POINT_GROUP):
            offered = _entries_of(point)
            if not isinstance(offered, BrokenPlugIn):
                try:
                    registry = WrapperRegistry((*registry.entries, *offered))
                except ConfigError as error:
                    offered = BrokenPlugIn(point, str(error).removesuffix("."))
            if isinstance(offered, BrokenPlugIn):
                offered.warn()
        return registry


def _entries_of(point: EntryPoint) -> tuple[RegistryEntry, ...] | BrokenPlugIn:
    value = load_plug_in(point)
    if isinstance(value, BrokenPlugIn):
        return value
    offered: tuple[object, ...] = value if isinstance(value, tuple) else (value,)
    entries = tuple(entry for entry in offered if isinstance(entry, WrapperEntry | PassThroughEntry))
    if len(entries) == len(offered):
        return entries
    return BrokenPlugIn(
        point, f"it is {value!r}, and not a WrapperEntry, a PassThroughEntry or a tuple of them"
    )


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


def register_pass_through(*targets: type[nn.Module] | str, reason: str) -> None:
    """Say why modules of the classes `targets` need no quantization, in the words of a report.

    Classes may be named by dotted path, installed or not. Subclasses with a forward of their own are not
    meant.

    Raises:
        ConfigError: one of the classes has another reason already.
    """
    for target in targets:
        REGISTRY.add(pass_through_entry(target, reason))
