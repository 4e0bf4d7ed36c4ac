"""Observers that several threads feed."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tico_observers import (
    AnyObserver,
    EMAObserver,
    EntropyObserver,
    HistogramObserver,
    IdentityObserver,
    MinMaxObserver,
    MSEObserver,
    MXObserver,
    PercentileObserver,
)

KINDS: tuple[Callable[[], AnyObserver], ...] = (
    MinMaxObserver,
    HistogramObserver,
    PercentileObserver,
    MSEObserver,
    EntropyObserver,
    IdentityObserver,
    MXObserver,
)
BATCHES = torch.linspace(-3, 5, 4 * 30 * 7).view(4, 30, 7)


@pytest.fixture(autouse=True)
def switching_often() -> Iterator[None]:
    """Let threads take turns as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def _feed(observer: AnyObserver) -> None:
    start = threading.Barrier(len(BATCHES))

    def feed(index: int) -> None:
        start.wait()
        for batch in BATCHES[index]:
            observer.collect(batch)

    with ThreadPoolExecutor(len(BATCHES)) as pool:
        list(pool.map(feed, range(len(BATCHES))))


@pytest.mark.parametrize("kind", KINDS)
def test_no_update_is_lost(kind: Callable[[], AnyObserver]) -> None:
    """Four threads show an observer what one thread shows another: both have seen the same."""
    alone, shared = kind(), kind()
    for batch in BATCHES.flatten(0, 1):
        alone.collect(batch)
    _feed(shared)
    assert shared.statistics == alone.statistics
    assert shared._batches == alone._batches == 120


def test_every_batch_counts_in_an_average() -> None:
    """The order is that in which the threads came, but none is left out."""
    shared = EMAObserver(momentum=0.5)
    _feed(shared)
    assert shared._batches == 120


@pytest.mark.parametrize("kind", KINDS)
def test_observers_are_copied_and_pickled(kind: Callable[[], AnyObserver]) -> None:
    """Whatever keeps threads apart is no part of their state."""
    observer = kind()
    observer.collect(BATCHES)
    for other in (copy.copy(observer), copy.deepcopy(observer), _pickled(observer)):
        assert other.statistics == observer.statistics


def _pickled(observer: AnyObserver) -> AnyObserver:
    copied: AnyObserver = pickle.loads(pickle.dumps(observer))  # noqa: S301  # its own bytes
    return copied
