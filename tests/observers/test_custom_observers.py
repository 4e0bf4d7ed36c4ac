"""An observer of another package, in every place where those of this one are."""

from __future__ import annotations

import copy
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import final

import attrs
import pytest
import torch
from torch import Tensor, nn

from tico.quantization import (
    GPTQConfig,
    PT2EConfig,
    PTQConfig,
    convert,
    load_calibration,
    prepare,
    save_calibration,
)
from tico.quantization.config import (
    UINT8,
    ArtifactError,
    ConfigError,
    CustomObserverSpec,
    DType,
    Granularity,
    PerTensor,
    Problem,
    QuantSpec,
    UnsupportedError,
    affine,
    fingerprint,
    from_json,
    register_observer_spec,
    to_json,
)
from tico_config.validation import as_float, check_number
from tico_observers import (
    AffineParams,
    MinMaxObserver,
    Observer,
    RangeStatistic,
    Record,
    Statistic,
    load_statistics,
    observer_for,
    params_from_range,
    register_observer,
    register_statistic,
    require_finite,
    require_float_tensor,
    save_statistics,
)
from tiny_models import values


@register_observer_spec
@attrs.frozen
class PowerSpec(CustomObserverSpec):
    """A range of so many times the root mean square on both sides of zero."""

    times: float = attrs.field(default=4.0, converter=as_float)

    def field_problems(self) -> list[Problem | None]:
        """Return which number is out of range."""
        return [check_number("times", self.times, 0, open_low=True)]


@attrs.frozen(kw_only=True)
class EnergyStatistic(Statistic):
    """How many values were seen, and the sum of their squares."""

    count: int = 0
    power: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether no element was seen."""
        return self.count == 0

    def observe(self, x: Tensor) -> EnergyStatistic:
        """Return the statistic of everything seen so far and `x`."""
        seen = require_float_tensor(x, "EnergyStatistic")
        require_finite(seen, "EnergyStatistic")
        power = self.power + float(seen.detach().double().square().sum())
        return EnergyStatistic(count=self.count + seen.numel(), power=power)

    def merge(self, other: EnergyStatistic) -> EnergyStatistic:
        """Return the statistic of everything that both have seen."""
        return EnergyStatistic(count=self.count + other.count, power=self.power + other.power)


@final
class PowerObserver(Observer[EnergyStatistic]):
    """The grid spans a range of so many times the root mean square."""

    times = 4.0

    def _empty(self) -> EnergyStatistic:
        return EnergyStatistic()

    def _grid(self) -> AffineParams:
        end = torch.tensor(self.times * (self._seen.power / self._seen.count) ** 0.5)
        return params_from_range(-end, end, self.dtype, symmetric=self.symmetric, granularity=PerTensor())


@register_observer(PowerSpec)
def power_observer(own: PowerSpec, spec: QuantSpec, units: Granularity) -> PowerObserver:
    """Return the observer that a `PowerSpec` asks for."""
    observer = PowerObserver("", spec.dtype, spec.qscheme, granularity=units, on_nonfinite=spec.on_nonfinite)
    observer.times = own.times
    return observer


register_statistic(
    EnergyStatistic,
    lambda seen: Record(settings={"count": seen.count, "power": seen.power}),
    lambda record: EnergyStatistic(count=record.whole("count"), power=record.number("power")),
)

SPEC = affine(DType.int(8), observer=PowerSpec(times=3))


def _model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()


def _scale(model: nn.Module) -> float:
    scales = {name: buffer for name, buffer in model.named_buffers() if name == "0.act_in.scale"}
    return float(scales["0.act_in.scale"])


def test_spec_of_another_package_is_part_of_configs() -> None:
    """JSON, fingerprints, overrides and copies work as for the specs of this library."""
    config = PTQConfig(activation=SPEC, overrides={"*.fc": {"observer": PowerSpec(times=2)}})
    assert from_json(to_json(config)) == config
    assert fingerprint(config) != fingerprint(
        PTQConfig(activation=affine(DType.int(8), observer=PowerSpec()))
    )
    assert config.resolve("a.fc.act_in").spec.observer == PowerSpec(times=2)
    assert copy.deepcopy(config) == config


def test_fields_of_such_a_spec_are_checked() -> None:
    """By their types, by its own check, and by their names."""
    with pytest.raises(ConfigError, match="times must be a number above 0, got 0"):
        PowerSpec(times=0)
    with pytest.raises(ConfigError, match="times must be a number above 0, got 'x'"):
        PowerSpec(times="x")
    with pytest.raises(ConfigError, match="the nearest is 'times'"):
        PowerSpec(time=3)  # type: ignore[call-arg]


def test_grid_is_that_of_the_observer() -> None:
    """The observer is named after its point and sees what passes."""
    observer = observer_for(SPEC, "act_in", PerTensor())
    observer.collect(torch.tensor([3.0, -4.0]))
    assert type(observer).__name__ == "PowerObserver"
    assert observer.name == "act_in"
    assert observer.params.scale.item() == pytest.approx(3 * 12.5**0.5 / 127.5, rel=0.01)
    assert observer_for(SPEC, "act_out", PerTensor()).statistics.is_empty


def test_ptq_takes_it_for_activations_and_weights(tmp_path: Path) -> None:
    """And what it has seen is saved and loaded as a calibration."""
    config = PTQConfig(
        activation=SPEC, weight=affine(DType.int(8), observer=PowerSpec(), granularity=PerTensor())
    )
    prepared, other = prepare(_model(), config), prepare(_model(), config)
    x = values(0, 16, 4)
    prepared(x)
    save_calibration(prepared, tmp_path / "seen")
    load_calibration(other, tmp_path / "seen")
    expected = 3 * float(x.double().square().mean().sqrt()) / 127.5
    for model in (convert(prepared), convert(other)):
        assert _scale(model) == pytest.approx(expected, rel=0.01)


def test_pt2e_takes_it_too() -> None:
    """Graphs are watched by the same observers."""
    prepared = prepare(_model(), PT2EConfig(activation=SPEC), args=(values(0, 8, 4),), inplace=False)
    prepared(values(0, 8, 4))
    assert convert(prepared)(values(1, 3, 4)).isfinite().all()


def test_algorithm_that_knows_its_observers_refuses_others() -> None:
    """GPTQ makes grids of weights itself."""
    with pytest.raises(ConfigError) as caught:
        GPTQConfig(observer=PowerSpec())  # type: ignore[arg-type]
    assert caught.value.field == "observer"


def test_statistic_of_another_package_is_saved(tmp_path: Path) -> None:
    """What was taken apart is built again; a record that is none is refused with its field."""
    seen = EnergyStatistic().observe(values(0, 4))
    save_statistics(tmp_path / "seen", {"a": seen})
    assert load_statistics(tmp_path / "seen") == {"a": seen}
    register_statistic(EnergyStatistic, lambda seen: Record(settings={"count": -1}), _restored)
    save_statistics(tmp_path / "wrong", {"a": seen})
    register_statistic(EnergyStatistic, _recorded, _restored)
    with pytest.raises(ArtifactError) as caught:
        load_statistics(tmp_path / "wrong")
    assert caught.value.field == "a.count"


def _recorded(seen: EnergyStatistic) -> Record:
    return Record(settings={"count": seen.count, "power": seen.power})


def _restored(record: Record) -> EnergyStatistic:
    return EnergyStatistic(count=record.whole("count"), power=record.number("power"))


def test_names_of_statistics_are_taken_once() -> None:
    """A file could not tell two of one name apart."""
    other = attrs.frozen(kw_only=True)(
        type("RangeStatistic", (EnergyStatistic,), {"__module__": "elsewhere"})
    )
    with pytest.raises(ConfigError, match="a second RangeStatistic"):
        register_statistic(other, _recorded, _restored)


@attrs.frozen
class LonelySpec(CustomObserverSpec):
    """A spec that nobody has an observer for, and that JSON does not know."""


def test_spec_without_an_observer_is_refused_with_the_way_on() -> None:
    """At prepare, and nothing is changed."""
    config = PTQConfig(activation=affine(UINT8, observer=LonelySpec()))
    with pytest.raises(ConfigError, match="decorate the class with @register_observer_spec"):
        to_json(config)
    with pytest.raises(
        UnsupportedError, match=r"import the module that says @register_observer\(LonelySpec\)"
    ):
        observer_for(config.activation, "act_in", PerTensor())


@attrs.frozen
class LateSpec(CustomObserverSpec):
    """A spec whose observer is in a module that an entry point names."""


LATE = """
from test_custom_observers import LateSpec
from tico_observers import MinMaxObserver, register_observer

@register_observer(LateSpec)
def late(own, spec, units):
    return MinMaxObserver("", spec.dtype, spec.qscheme, granularity=units)
"""


def test_observers_of_installed_packages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the group tico.observers; one that cannot be imported is named, and stops no other."""
    (tmp_path / "late_observers.py").write_text(LATE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_custom_observers", sys.modules[__name__])
    points = [EntryPoint("broken", "no_such_module", "tico.observers")]
    monkeypatch.setattr("tico_observers._custom_observers.entry_points", lambda group: points)
    spec = affine(UINT8, observer=LateSpec())
    with pytest.raises(
        UnsupportedError, match=r"broken \(no_such_module\) cannot be imported: ModuleNotFoundError"
    ):
        observer_for(spec, "act_in", PerTensor())
    points.append(EntryPoint("late", "late_observers", "tico.observers"))
    assert isinstance(observer_for(spec, "act_in", PerTensor()), MinMaxObserver)


def test_second_observer_of_a_spec_is_refused() -> None:
    """Both functions are named, and the first stays."""
    with pytest.raises(ConfigError, match=r"beside .*power_observer"):

        @register_observer(PowerSpec)
        def another(own: PowerSpec, spec: QuantSpec, units: Granularity) -> PowerObserver:
            raise AssertionError

    assert type(observer_for(SPEC, "a", PerTensor())).__name__ == "PowerObserver"


def test_what_is_no_spec_or_no_observer_is_refused() -> None:
    """The mistakes of an author, each named."""
    with pytest.raises(ConfigError, match="derived from CustomObserverSpec"):
        register_observer(RangeStatistic)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="derived from CustomObserverSpec"):
        register_observer_spec(PTQConfig)  # type: ignore[type-var]

    @attrs.frozen
    class EmptySpec(CustomObserverSpec):
        pass

    register_observer(EmptySpec)(lambda own, spec, units: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(UnsupportedError, match="from the function registered for EmptySpec"):
        observer_for(affine(UINT8, observer=EmptySpec()), "a", PerTensor())
