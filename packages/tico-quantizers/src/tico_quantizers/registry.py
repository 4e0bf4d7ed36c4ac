"""Which quantizer serves which config type."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint
from typing import TypeVar, final

import attrs

from tico_config import BaseConfig, ConfigError, Found, Problem, UnsupportedError
from tico_modules import BrokenPlugIn, find_entry_points, load_plug_in
from tico_quantizers.calibration import Calibration
from tico_quantizers.protocol import AnyQuantizer, BaseQuantizer

__all__ = [
    "ENTRY_POINT_GROUP",
    "QuantizerEntry",
    "Registry",
    "composed_entry",
    "installed_entries",
    "quantizer_entry",
]

C = TypeVar("C", bound=BaseConfig)
B = TypeVar("B", bound=BaseConfig)
K = TypeVar("K", bound=Calibration)
ENTRY_POINT_GROUP = "tico.quantizers"


@final
@attrs.frozen
class QuantizerEntry:
    """One algorithm: the config type that asks for it, and what makes its quantizer with a registry."""

    config_type: type[BaseConfig]
    make: Callable[[BaseConfig, Registry], AnyQuantizer]


def quantizer_entry(config_type: type[C], quantizer: Callable[[C], BaseQuantizer[B, K]]) -> QuantizerEntry:
    """Return the entry that ties a config type to its quantizer; a mismatch is a type error.

    The quantizer of a base may serve a class derived from it that adds nothing to be read.

    Raises:
        ConfigError: `quantizer` is a class that lacks methods; each is named, with what it takes and returns.
    """
    _require_complete(quantizer)

    def make(config: BaseConfig, registry: Registry) -> AnyQuantizer:
        return quantizer(_of_type(config, config_type))

    return QuantizerEntry(config_type, make)


def composed_entry(
    config_type: type[C],
    quantizer: Callable[[C, AnyQuantizer], BaseQuantizer[B, K]],
    base: Callable[[C], BaseConfig],
) -> QuantizerEntry:
    """Return the entry of an algorithm that goes on from what another one leaves, in one conversion.

    Its quantizer is made of the config, and of the quantizer that the registry has for the config `base` in
    it.

    Raises:
        ConfigError: `quantizer` is a class that lacks methods; each is named, with what it takes and returns.
    """
    _require_complete(quantizer)

    def make(config: BaseConfig, registry: Registry) -> AnyQuantizer:
        own = _of_type(config, config_type)
        return quantizer(own, registry.quantizer(base(own)))

    return QuantizerEntry(config_type, make)


def _of_type(config: BaseConfig, config_type: type[C]) -> C:
    """Return `config`, which is to be of the given type.

    Raises:
        ConfigError: it is of another one.
    """
    if not isinstance(config, config_type):
        expected = f"a {config_type.__name__}"
        raise ConfigError(Problem(field="quant_config", value=config, expected=expected))
    return config


def _require_complete(quantizer: object) -> None:
    missing: frozenset[str] = getattr(quantizer, "__abstractmethods__", frozenset())
    problems = [
        Problem(
            module=getattr(quantizer, "__name__", None),
            field=name,
            value=Found("nothing"),
            expected="defined",
            sentence=f"the method {name} is not defined",
            remedy=f"write def {name}{inspect.signature(getattr(quantizer, name))}".replace("'", ""),
        )
        for name in sorted(missing)
    ]
    if problems:
        raise ConfigError(*problems)


@final
class Registry:
    """Which quantizer serves which config type.

    `broken` are the plug-ins that were left out; errors about configs that are not served name them.

    Raises:
        ConfigError: two entries serve one config type.

    >>> Registry().config_types
    ()
    """

    def __init__(
        self, entries: Iterable[QuantizerEntry] = (), *, broken: Iterable[BrokenPlugIn] = ()
    ) -> None:
        self._entries: dict[type[BaseConfig], QuantizerEntry] = {}
        self._broken = tuple(broken)
        self._contested: dict[type[BaseConfig], BrokenPlugIn] = {}
        for entry in entries:
            if entry.config_type in self._entries:
                found = Found(f"two for {entry.config_type.__name__}")
                sentence = f"there are two entries for {entry.config_type.__name__}"
                raise ConfigError(
                    Problem(
                        field="entries", value=found, expected="one entry a config type", sentence=sentence
                    )
                )
            self._entries[entry.config_type] = entry

    @property
    def config_types(self) -> tuple[type[BaseConfig], ...]:
        """The config types that are served."""
        return tuple(self._entries)

    def with_entries(self, entries: Iterable[QuantizerEntry]) -> Registry:
        """Return a registry with `entries` besides these."""
        made = Registry((*self._entries.values(), *entries), broken=self._broken)
        made._contested = dict(self._contested)
        return made

    def with_installed(self) -> Registry:
        """Return a registry with what installed packages offer in the group ``tico.quantizers``, too.

        A plug-in that cannot be used is left out with a warning: one that cannot be imported, that offers
        something else, or a second quantizer for a config type. Only a config of its own is then refused.
        """
        entries, broken = dict(self._entries), list(self._broken)
        contested = dict(self._contested)
        for point in find_entry_points(ENTRY_POINT_GROUP):
            offered = _entry_of(point)
            if isinstance(offered, QuantizerEntry):
                kind = offered.config_type
                if entries.setdefault(kind, offered) is offered:
                    continue
                offered = contested[kind] = BrokenPlugIn(point, f"another quantizer serves {kind.__name__}")
            offered.warn()
            broken.append(offered)
        made = Registry(entries.values(), broken=broken)
        made._contested = contested
        return made

    def quantizer(self, config: BaseConfig) -> AnyQuantizer:
        """Return the quantizer for `config`.

        A class derived from one that is served is not served with it: what it adds would not be read.

        Raises:
            UnsupportedError: no entry serves its type, or two plug-ins do.
        """
        entry = self._entries.get(type(config))
        if entry is None:
            raise self._not_served(type(config))
        if type(config) in self._contested:
            sentence = str(self._contested[type(config)])
            remedy = "uninstall the distribution, or pass the registry that is meant"
            raise UnsupportedError(
                Problem(
                    field="quant_config",
                    value=Found(type(config).__name__),
                    expected="a config with one quantizer",
                    sentence=sentence,
                    remedy=remedy,
                )
            )
        return entry.make(config, self)

    def _not_served(self, kind: type[BaseConfig]) -> UnsupportedError:
        names = ", ".join(sorted(served.__name__ for served in self._entries)) or "nothing"
        return UnsupportedError(
            Problem(
                field="quant_config",
                value=Found(kind.__name__),
                expected=f"one of {names}",
                sentence=f"no quantizer serves {kind.__name__}; there is one for each of {names}",
                remedy=self._remedy(kind),
            )
        )

    def _remedy(self, kind: type[BaseConfig]) -> str | None:
        """Return how a config that is not served could be: by a plug-in repaired, or as its base is."""
        package = kind.__module__.partition(".")[0]
        own = [broken for broken in self._broken if broken.point.module.partition(".")[0] == package]
        base = next((base for base in kind.__mro__ if base in self._entries), None)
        if own or base is None:
            return "; ".join(map(str, own or self._broken)) or None
        entry = f"quantizer_entry({kind.__name__}, …)"
        return f"if the quantizer of {base.__name__} is meant, pass a registry with {entry} that makes it"


def _entry_of(point: EntryPoint) -> QuantizerEntry | BrokenPlugIn:
    entry = load_plug_in(point)
    if isinstance(entry, QuantizerEntry | BrokenPlugIn):
        return entry
    return BrokenPlugIn(point, f"it is {entry!r}, and not a QuantizerEntry, as quantizer_entry() gives it")


def installed_entries() -> tuple[QuantizerEntry, ...]:
    """Return the entries that installed packages offer in the group ``tico.quantizers``.

    Those that cannot be used are left out with a warning, see `Registry.with_installed`.
    """
    return tuple(Registry().with_installed()._entries.values())
