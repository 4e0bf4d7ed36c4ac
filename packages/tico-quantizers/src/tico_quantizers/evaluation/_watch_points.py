"""watch_points: what the grids of a quantized model see of data, and how much of it they clip."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from tico_config import CalibrationError, FloatFormat, Found, PerTensor, Problem, UnsupportedError
from tico_modules import ActivationGrid, Progress, QuantizedLinear, is_fixed, named_grids, named_modules
from tico_observers import LARGEST_PLAUSIBLE, broadcast
from tico_quantizers.calibration import (
    Batch,
    TokenMask,
    before_call,
    micro_batches,
    quiet_runs,
    unchanged_process,
)
from tico_quantizers.evaluation._outputs import called, require_finished
from tico_quantizers.evaluation._seen import Bin, SeenPoint, SeenPoints

_SHIFT: Final = 22
"""A bin has what float32 keeps in its first bits: sign, exponent, and one bit of the fraction."""

_BINS: Final = 2 ** (32 - _SHIFT)


def watch_points(
    model: nn.Module,
    batches: Iterable[Batch],
    mask: TokenMask | None = None,
    *,
    show_progress: bool = True,
) -> SeenPoints:
    """Return what each grid of activations in the quantized `model` sees of `batches`, and clips of it.

    The model is called with one sample at a time, without its padding, as by `calibrate`, and computes by the
    reference back end. Counts of values in fixed bins are added, so that they do not depend on how samples
    are batched or ordered. Model and process are afterwards what they were.

    Args:
        model: what `convert` has returned.
        batches: what to call it with, as for `calibrate`.
        mask: which tokens are real, as for `calibrate`.
        show_progress: show a bar on standard error, if that is a terminal and the extra `progress` is there.

    Raises:
        UnsupportedError: it is no module, or has no grid of activations that is a module.
        LifecycleError: it is prepared.
        CalibrationError: it is in training mode, or there are no batches.

    >>> from tico_modules import Parts, QuantizedLinear
    >>> from tico_observers import AffineParams
    >>> from tico_config import DType
    >>> layer = QuantizedLinear.from_float(nn.Linear(1, 1), DType.uint(8))
    >>> scale, zero = torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
    >>> grid = ActivationGrid.static(AffineParams(scale=scale, zero_point=zero, dtype=DType.int(4)))
    >>> parts = Parts(packed=layer.packed, act_in=grid)
    >>> found = watch_points(nn.Sequential(QuantizedLinear(parts)).eval(), [torch.tensor([[0.5], [3.0]])])
    >>> found.points[0].path, found.points[0].share_clipped
    ('0.act_in', 0.5)
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedError(Problem(field="model", value=model, expected="an nn.Module"))
    require_finished("model", model)
    counts = {path: _Counts(path, grid) for path, grid in named_grids(model)}
    if not counts:
        found, expected = Found("one without any"), "a model whose activations are quantized"
        raise UnsupportedError(Problem(field="model", value=found, expected=expected))
    total, is_empty = len(batches) if isinstance(batches, Sized) else None, True
    with (
        Progress("POINTS", total=total, show=show_progress, unit="batch") as bar,
        unchanged_process(),
        quiet_runs(model, with_hooks=True),
        _by_reference(model),
        _watched(counts.values()),
    ):
        for batch in batches:
            for args, kwargs in micro_batches(batch, 1, mask):
                called(model, args, kwargs)
                is_empty = False
            bar.step()
    if is_empty:
        expected = "at least one batch with a real token"
        raise CalibrationError(Problem(field="batches", value=Found("none"), expected=expected))
    return SeenPoints(points=tuple(each.result() for each in counts.values()))


@contextmanager
def _by_reference(model: nn.Module) -> Iterator[None]:
    """Let all layers compute by the reference meanwhile: other kernels read the numbers of a grid."""
    layers = [each for _, each in named_modules(model) if isinstance(each, QuantizedLinear)]
    before = [(each, each.backend) for each in layers if each.backend != "reference"]
    try:
        for each, _ in before:
            each.use("reference")
        yield
    finally:
        for each, backend in before:
            each.use(backend)


@contextmanager
def _watched(counts: Iterable[_Counts]) -> Iterator[None]:
    with ExitStack() as stack:
        for each in counts:
            stack.callback(before_call(each.grid, partial(_see, each)).remove)
        yield


def _see(counts: _Counts, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    x = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
    if x is not None:
        counts.see(x.detach())


class _Counts:
    """How many values a grid has seen in each bin: whole numbers, so that any order gives the same."""

    def __init__(self, path: str, grid: ActivationGrid) -> None:
        self.grid = grid
        self._path = path
        self._is_fixed = is_fixed(grid.dtype, grid.granularity)
        self._bins = torch.zeros(_BINS, dtype=torch.int64)
        self._values = self._clipped = self._masks = 0
        self._low, self._high = math.inf, -math.inf

    def see(self, x: Tensor) -> None:
        """Count the values of `x`."""
        real = x.abs() < LARGEST_PLAUSIBLE  # NaN is not
        values = x[real].to(torch.float32)
        self._masks += x.numel() - values.numel()
        if not values.numel():
            return
        if self._is_fixed:
            low, high = self._limits(x)
            self._clipped += int((((x < low) | (x > high)) & real).sum())
        self._values += values.numel()
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))
        keys = (values.view(torch.int32) >> _SHIFT) & (_BINS - 1)
        self._bins += torch.bincount(keys, minlength=_BINS).cpu()

    def _limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is half a step beyond the two ends of the grid, as float64 that fits `x`."""
        grid = self.grid
        low, high = self._ends()
        half = torch.zeros_like(low) if isinstance(grid.dtype, FloatFormat) else grid.scale.double() / 2
        ends = low - half, high + half
        first, last = (broadcast(each.to(x.device), grid.granularity, x.shape) for each in ends)
        return first, last

    def _ends(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest value of each unit of the grid, float64."""
        grid = self.grid
        scale = grid.scale.double()
        if isinstance(grid.dtype, FloatFormat):
            highest = grid.dtype.encoding.largest * scale
            return -highest, highest
        zero = grid.zero_point.double()
        return (grid.dtype.qmin - zero) * scale, (grid.dtype.qmax - zero) * scale

    def result(self) -> SeenPoint:
        """Return what was counted."""
        low = high = None
        if self._is_fixed and isinstance(self.grid.granularity, PerTensor):
            low, high = (float(end) for end in self._ends())
        seen = self._low <= self._high
        return SeenPoint(
            path=self._path,
            grid=self.grid.label,
            low=low,
            high=high,
            values=self._values,
            clipped=self._clipped if self._is_fixed else None,
            smallest=self._low if seen else 0.0,
            largest=self._high if seen else 0.0,
            masks=self._masks,
            bins=tuple(_bins(self._bins)),
        )


def _bins(counts: Tensor) -> Iterator[Bin]:
    """Yield the bins that have values, from the lowest to the highest."""
    keys: list[int] = counts.nonzero().flatten().tolist()
    half = _BINS // 2
    negative, positive = [key for key in keys if key >= half], [key for key in keys if key < half]
    for key in (*reversed(negative), *positive):
        size = key % half
        near, far = _edge(size), _edge(size + 1)
        ends = (-far, -near) if key >= half else (near, far)
        yield Bin(low=ends[0], high=ends[1], count=int(counts[key]))


def _edge(key: int) -> float:
    """Return the number that begins with the bits of `key`, all others being 0."""
    value: float = struct.unpack("<f", struct.pack("<I", key << _SHIFT))[0]
    return min(value, float(torch.finfo(torch.float32).max))
