"""Each config type has one quantizer."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import ClassVar

import attrs
import pytest

from tico_config import BaseConfig, ConfigError, GPTQConfig, PTQConfig, UnsupportedError
from tico_quantizers import GPTQQuantizer, QuantizerEntry, Registry, installed_entries, quantizer_entry
from tico_quantizers.testing import refused

ENTRY = quantizer_entry(GPTQConfig, GPTQQuantizer)


@attrs.frozen(kw_only=True)
class OtherConfig(GPTQConfig):
    """A config that nobody serves, although its base is served."""

    name: ClassVar[str] = "other"


def test_the_type_of_a_config_finds_its_quantizer() -> None:
    """The quantizer holds the config."""
    quantizer = Registry((ENTRY,)).quantizer(GPTQConfig(bits=3))
    assert isinstance(quantizer, GPTQQuantizer)
    assert quantizer.config == GPTQConfig(bits=3)


@pytest.mark.parametrize("config", [PTQConfig(), OtherConfig()])
def test_a_config_that_nobody_serves_is_refused(config: BaseConfig) -> None:
    """A subclass may mean something else, so it is not served by what serves its base."""
    with refused(None, UnsupportedError, field="quant_config") as caught:
        Registry((ENTRY,)).quantizer(config)
    assert caught.value.value == type(config).__name__
    assert caught.value.expected == "one of GPTQConfig"


def test_two_quantizers_for_one_config_are_refused() -> None:
    """Neither of them wins silently."""
    with refused(None, ConfigError, field="entries") as caught:
        Registry((ENTRY,)).with_entries((ENTRY,))
    assert caught.value.value == "two for GPTQConfig"


def test_entries_are_added_to_a_new_registry() -> None:
    """A registry never changes."""
    empty = Registry()
    assert empty.with_entries((ENTRY,)).config_types == (GPTQConfig,)
    assert empty.config_types == ()


def test_an_entry_refuses_other_configs() -> None:
    """The config type that it was made for is the only one it takes."""
    with refused(None, ConfigError, field="quant_config") as caught:
        ENTRY.make(PTQConfig())
    assert caught.value.expected == "a GPTQConfig"


def offered(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    """Let installed packages offer what `values` name."""
    points = [EntryPoint(f"third {at}", value, "tico.quantizers") for at, value in enumerate(values)]
    monkeypatch.setattr("tico_quantizers.registry.find_entry_points", lambda group: points)


def test_installed_entries_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of their names."""
    offered(monkeypatch, "example_entries:one", "example_entries:two")
    module = type(pytest)("example_entries")
    entries = {
        "one": QuantizerEntry(GPTQConfig, ENTRY.make),
        "two": QuantizerEntry(PTQConfig, ENTRY.make),
    }
    vars(module).update(entries)
    monkeypatch.setitem(__import__("sys").modules, "example_entries", module)
    assert installed_entries() == tuple(entries.values())


@pytest.mark.parametrize("value", ["json:dumps", "no_such_module:entry", "json:no_such_name"])
def test_an_entry_point_that_is_none_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken package is found by the name of its entry point."""
    offered(monkeypatch, value)
    with refused(None, UnsupportedError, field="entry point third 0") as caught:
        installed_entries()
    assert caught.value.expected == "a QuantizerEntry, as quantizer_entry() gives it"
