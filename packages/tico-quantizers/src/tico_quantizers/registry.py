"""Which quantizer serves which config type."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar, final

import attrs

from tico_config import BaseConfig, ConfigError, Found, Problem, UnsupportedError
from tico_modules import find_entry_points
from tico_quantizers.calibration import Calibration
from tico_quantizers.protocol import AnyQuantizer, BaseQuantizer

__all__ = ["ENTRY_POINT_GROUP", "QuantizerEntry", "Registry", "installed_entries", "quantizer_entry"]

C = TypeVar("C", bound=BaseConfig)
K = TypeVar("K", bound=Calibration)
ENTRY_POINT_GROUP = "tico.quantizers"


@final
@attrs.frozen
class QuantizerEntry:
    """One algorithm: the config type that asks for it, and what makes its quantizer."""

    config_type: type[BaseConfig]
    make: Callable[[BaseConfig], AnyQuantizer]


def quantizer_entry(config_type: type[C], quantizer: Callable[[C], BaseQuantizer[C, K]]) -> QuantizerEntry:
    """Return the entry that ties a config type to its quantizer; a mismatch is a type error."""

    def make(config: BaseConfig) -> AnyQuantizer:
        if not isinstance(config, config_type):
            expected = f"a {config_type.__name__}"
            raise ConfigError(Problem(field="quant_config", value=config, expected=expected))
        return quantizer(config)

    return QuantizerEntry(config_type, make)


@final
class Registry:
    """Which quantizer serves which config type.

    Raises:
        ConfigError: two entries serve one config type.

    >>> Registry().config_types
    ()
    """

    def __init__(self, entries: Iterable[QuantizerEntry] = ()) -> None:
        self._entries: dict[type[BaseConfig], QuantizerEntry] = {}
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
        return Registry((*self._entries.values(), *entries))

    def quantizer(self, config: BaseConfig) -> AnyQuantizer:
        """Return the quantizer for `config`.

        Raises:
            UnsupportedError: no entry serves its type.
        """
        entry = self._entries.get(type(config))
        if entry is None:
            names = ", ".join(sorted(kind.__name__ for kind in self._entries)) or "nothing"
            kind = Found(type(config).__name__)
            sentence = f"no quantizer serves {kind}; there is one for each of {names}"
            raise UnsupportedError(
                Problem(field="quant_config", value=kind, expected=f"one of {names}", sentence=sentence)
            )
        return entry.make(config)


def installed_entries() -> tuple[QuantizerEntry, ...]:
    """Return the entries that installed packages offer in the group ``tico.quantizers``.

    Raises:
        UnsupportedError: an entry point of the group is not a `QuantizerEntry`.
    """
    found = []
    for point in find_entry_points(ENTRY_POINT_GROUP):
        try:
            entry: object = point.load()
        except (ImportError, AttributeError) as error:
            entry = error
        if not isinstance(entry, QuantizerEntry):
            expected = "a QuantizerEntry, as quantizer_entry() gives it"
            remedy = f"repair or uninstall the package of {point.value}"
            field = f"entry point {point.name}"
            raise UnsupportedError(Problem(field=field, value=entry, expected=expected, remedy=remedy))
        found.append(entry)
    return tuple(found)
