"""Each config type has one quantizer."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import attrs
import pytest

from tico_config import BaseConfig, ConfigError, GPTQConfig, ModuleConfig, PTQConfig, UnsupportedError
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


def test_a_config_whose_base_is_served_is_told_how() -> None:
    """What the error says makes the quantizer of the base serve it."""
    with pytest.raises(UnsupportedError) as caught:
        Registry((ENTRY,)).quantizer(OtherConfig())
    told = "if the quantizer of GPTQConfig is meant, pass a registry with quantizer_entry(OtherConfig, …)"
    assert told in str(caught.value)
    served = Registry((ENTRY,)).with_entries((quantizer_entry(OtherConfig, GPTQQuantizer),))
    assert isinstance(served.quantizer(OtherConfig()), GPTQQuantizer)


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
        ENTRY.make(PTQConfig(), Registry())
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
    monkeypatch.setitem(sys.modules, "example_entries", module)
    assert installed_entries() == tuple(entries.values())


BROKEN = {
    "no_such_module:entry": "ModuleNotFoundError: No module named 'no_such_module'",
    "json:no_such_name": "AttributeError: module 'json' has no attribute 'no_such_name'",
    "json:dumps": "it is <function dumps",
    "failing_plug_in:ENTRY": "ZeroDivisionError: division by zero",
    "example_entries:again": "another quantizer serves GPTQConfig",
}
"""What plug-ins may offer that cannot be used, with the reason."""


@pytest.fixture(params=BROKEN)
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Return the value of an entry point that is broken, between two that are not."""
    (tmp_path / "failing_plug_in.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = type(pytest)("example_entries")
    vars(module)["ptq"] = QuantizerEntry(PTQConfig, ENTRY.make)
    vars(module)["other"] = QuantizerEntry(OtherConfig, ENTRY.make)
    vars(module)["again"] = QuantizerEntry(GPTQConfig, ENTRY.make)
    monkeypatch.setitem(sys.modules, "example_entries", module)
    value = str(request.param)
    offered(monkeypatch, "example_entries:ptq", value, "example_entries:other")
    return value


def test_a_broken_plug_in_is_left_out_with_a_warning(broken: str) -> None:
    """Its name, what it is and why are told; all other configs are served."""
    with pytest.warns(RuntimeWarning) as caught:
        registry = Registry((ENTRY,)).with_installed()
    (warning,) = caught
    assert f"the plug-in 'third 1' ({broken}) cannot be used: {BROKEN[broken]}" in str(warning.message)
    assert registry.config_types == (GPTQConfig, PTQConfig, OtherConfig)


class LostConfig(ModuleConfig):
    """The config of a plug-in whose quantizer could not be imported."""

    name: ClassVar[str] = "lost"


def test_a_config_of_a_broken_plug_in_is_refused_with_the_reason(broken: str) -> None:
    """The error comes where the plug-in is wanted, and not before."""
    with pytest.warns(RuntimeWarning):
        registry = Registry((ENTRY,)).with_installed().with_entries(())
    config = GPTQConfig() if broken == "example_entries:again" else LostConfig()
    with refused(None, UnsupportedError, field="quant_config") as caught:
        registry.quantizer(config)
    assert f"({broken}) cannot be used: {BROKEN[broken]}" in str(caught.value)


def test_the_distribution_of_a_broken_plug_in_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what has to be repaired or uninstalled."""
    about = tmp_path / "tico_lost-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tico-lost\nVersion: 1.0\n", encoding="utf-8"
    )
    (about / "entry_points.txt").write_text("[tico.quantizers]\nlost = tico_lost:ENTRY\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(
        RuntimeWarning, match=r"'lost' \(tico_lost:ENTRY\) of the distribution tico-lost cannot"
    ):
        installed_entries()
