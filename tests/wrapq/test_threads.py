"""Two threads in one prepared model: every pass counts, or raises an error."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, coverage, prepare
from tico.quantization.config import DType, HistogramSpec, LifecycleError, MinMaxSpec, affine
from tico_observers import HistogramStatistic, RangeStatistic
from tico_quantizers.testing import same_tensors, tensors_of
from tico_wrapq import PTQWrapper, QuantPoint
from tiny_models import values


class Gated(nn.Module):
    """Two layers; between them the model waits until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.stops: dict[int, tuple[threading.Event, threading.Event]] = {}

    def forward(self, x: Tensor, stop: int | None = None, *, late: bool = False) -> Tensor:
        """Return what the layers make of `x`; where `stop` says so, halfway or at the end, it waits."""
        x = self.first(x)
        if stop is not None and not late:
            self._wait(stop)
        x = self.second(x)
        if stop is not None and late:
            self._wait(stop)
        return x

    def _wait(self, stop: int) -> None:
        reached, go = self.stops[stop]
        reached.set()
        assert go.wait(20)


def _gated(observer: MinMaxSpec | HistogramSpec) -> tuple[Gated, nn.Module]:
    torch.manual_seed(0)
    model = Gated().eval()
    return model, prepare(model, PTQConfig(activation=affine(DType.uint(8), observer=observer)))


def _run(
    model: nn.Module, gate: Gated, stop: int, x: Tensor, **how: bool
) -> tuple[Callable[[], BaseException | None], threading.Event]:
    """Start a pass in a thread of its own, which stops; return what ends it and gives its error, if any."""
    gate.stops[stop] = reached, go = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            model(x, stop, **how)
        except LifecycleError as error:
            errors.append(error)
            reached.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert reached.wait(20)

    def end() -> BaseException | None:
        go.set()
        thread.join(20)
        return errors[0] if errors else None

    return end, go


ONE, OTHER, LAST = values(0, 8, 4), 3 * values(1, 8, 4), 2 * values(2, 8, 4)


@pytest.mark.parametrize("observer", [MinMaxSpec(), HistogramSpec()], ids=str)
@pytest.mark.parametrize("late", [False, True], ids=["halfway", "at the end"])
@pytest.mark.parametrize("crossed", [False, True], ids=["one within the other", "crossed"])
def test_what_is_not_counted_raises(observer: MinMaxSpec | HistogramSpec, late: bool, crossed: bool) -> None:
    """However two passes overlap, the one that began first raises, the other counts as if alone."""
    gate, model = _gated(observer)
    end_one, _ = _run(model, gate, 0, ONE, late=late)
    end_other, _ = _run(model, gate, 1, OTHER, late=late)
    ends = (end_one, end_other) if crossed else (end_other, end_one)
    errors = {end: end() for end in ends}
    assert errors[end_other] is None
    assert isinstance(errors[end_one], LifecycleError)
    model(LAST)
    alone = _gated(observer)[1]
    alone(OTHER), alone(LAST)
    assert coverage(model).macs == coverage(alone).macs
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(alone)))


def test_passes_one_after_the_other_all_count() -> None:
    """By whichever thread."""
    gate, model = _gated(MinMaxSpec())
    for stop, x in enumerate((ONE, OTHER, LAST)):
        end, _ = _run(model, gate, stop, x)
        assert end() is None
    alone = _gated(MinMaxSpec())[1]
    for x in (ONE, OTHER, LAST):
        alone(x)
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(alone)))


def test_a_pass_that_failed_is_nobodys() -> None:
    """The next one counts, from whatever thread it comes."""
    gate, model = _gated(MinMaxSpec())
    with pytest.raises(RuntimeError):
        model(torch.zeros(3, 5))
    end, _ = _run(model, gate, 0, ONE)
    assert end() is None
    alone = _gated(MinMaxSpec())[1]
    alone(ONE)
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(alone)))


def test_copies_are_models_of_their_own() -> None:
    """A pass of one does not stand in the way of the other's."""
    gate, model = _gated(MinMaxSpec())
    model(LAST)
    other = copy.deepcopy(model)
    end, _ = _run(model, gate, 0, ONE)
    other(OTHER)
    assert end() is None


def test_a_lone_wrapper_is_held_to_the_same() -> None:
    """`PTQWrapper` has no model around it."""
    gate = Gated()
    wrapper = PTQWrapper(gate.eval())
    wrapper.enable_calibration()
    end_one, _ = _run(wrapper, gate, 0, ONE)
    end_other, _ = _run(wrapper, gate, 1, OTHER)
    assert end_other() is None
    assert isinstance(end_one(), LifecycleError)


@pytest.mark.parametrize("observer", [MinMaxSpec(), HistogramSpec()], ids=str)
def test_points_by_themselves_lose_nothing(observer: MinMaxSpec | HistogramSpec) -> None:
    """Parts of the model that are called by themselves count at once, from several threads too."""
    _, model = _gated(observer)
    layer, batches = model.get_submodule("first"), values(3, 60, 4).view(4, 15, 4)

    def work(index: int) -> None:
        for row in batches[index]:
            layer(row[None])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    point = model.get_submodule("first.act_in")
    assert isinstance(point, QuantPoint)
    assert point.statistics is not None
    kind = RangeStatistic if isinstance(observer, MinMaxSpec) else HistogramStatistic
    assert point.statistics.statistics == kind().observe(batches)
