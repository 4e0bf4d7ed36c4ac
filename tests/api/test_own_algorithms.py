"""An algorithm of somebody else, with the least that its author can write."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import attrs
import pytest
from torch import nn

from tico.quantization import BUILT_IN, Report, convert, prepare, quantizer_entry
from tico.quantization.config import BaseConfig, ConfigError, register_config
from tico_quantizers import BaseQuantizer, Calibration, Converted, Edit, Example, QuantizerEntry, Registry
from tico_quantizers.testing import unchanged


@register_config
@attrs.frozen(kw_only=True)
class LeavingConfig(BaseConfig):
    """A config straight from the base of all."""

    name: ClassVar[str] = "leaving"

    rate: int = 1


class LeavingQuantizer(BaseQuantizer[LeavingConfig, Calibration]):
    """Leaves a model as it is."""

    def prepare(self, model: nn.Module, example: Example | None, edit: Edit) -> tuple[nn.Module, Calibration]:
        """Watch nothing."""
        return model, Calibration()

    def convert(self, model: nn.Module, calibration: Calibration, edit: Edit) -> Converted:
        """Change nothing."""
        return Converted(root=model, modules=(model,), report=Report(layers=()))


def test_config_of_the_base_of_all_goes_through() -> None:
    """A name and two methods are all that an algorithm needs."""
    registry = BUILT_IN.with_entries([quantizer_entry(LeavingConfig, LeavingQuantizer)])
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    assert convert(prepare(model, LeavingConfig(rate=2), registry=registry)) is model


@attrs.frozen(kw_only=True)
class UnregisteredConfig(BaseConfig):
    """A config whose author forgot to register it."""

    name: ClassVar[str] = "unregistered"


@attrs.frozen(kw_only=True)
class NamelessConfig(BaseConfig):
    """A config whose author forgot its name."""


@pytest.mark.parametrize(
    ("config", "way"),
    [(UnregisteredConfig(), "@register_config"), (NamelessConfig(), "@register_config")],
    ids=["unregistered", "nameless"],
)
def test_what_an_author_forgot_is_told(config: BaseConfig, way: str) -> None:
    """At prepare, in one sentence."""
    entry = QuantizerEntry(type(config), lambda config, _: LeavingQuantizer(config))  # type: ignore[arg-type]
    registry = Registry([entry])
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    with unchanged(model), pytest.raises(ConfigError, match=way) as caught:
        prepare(model, config, registry=registry)
    assert type(config).__name__ in str(caught.value)


def test_name_that_is_missing_is_told_with_what_to_write() -> None:
    """When the class is registered."""
    with pytest.raises(ConfigError, match=r"write for example name: ClassVar\[str\] = "):
        register_config(NamelessConfig)


class HalfQuantizer(LeavingQuantizer):
    """A quantizer with a step that another class has to define."""

    @abstractmethod
    def scales(self, model: nn.Module) -> list[float]:
        """Return the scales."""


class EmptyQuantizer(BaseQuantizer[LeavingConfig, Calibration]):
    """A quantizer without its two methods."""


def test_methods_that_are_missing_are_named_with_what_they_return() -> None:
    """All of them, where the entry is made."""
    with pytest.raises(ConfigError) as caught:
        quantizer_entry(LeavingConfig, EmptyQuantizer)
    assert [problem.field for problem in caught.value.problems] == ["convert", "prepare"]
    told = "EmptyQuantizer: the method convert is not defined; write def convert(self, model: nn.Module, "
    assert told in str(caught.value)
    assert "-> Converted" in str(caught.value)
    with pytest.raises(ConfigError, match=r"def scales\(self, model: nn.Module\) -> list\[float\]"):
        quantizer_entry(LeavingConfig, HalfQuantizer)
