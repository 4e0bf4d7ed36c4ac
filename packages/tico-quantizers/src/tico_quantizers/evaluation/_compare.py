"""compare: where the error of a quantized model enters, and how it accumulates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import partial
from typing import final

import attrs
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tico_config import ConfigError, Found, Problem, UnsupportedError
from tico_modules import Progress, named_modules
from tico_observers import products
from tico_quantizers.calibration import (
    Batch,
    Call,
    Replay,
    Snapshots,
    TokenMask,
    after_call,
    before_call,
    micro_batches,
    quiet_runs,
    unchanged_process,
)
from tico_quantizers.evaluation._comparison import BlockError, Comparison
from tico_quantizers.evaluation._logit_sums import LogitSums
from tico_quantizers.evaluation._outputs import (
    Select,
    called,
    device_of,
    first_output,
    logits_of,
    require_finished,
    rows_of,
)
from tico_quantizers.layers import find_blocks, layers_in


def compare(
    float_model: nn.Module,
    quantized: nn.Module,
    batches: Iterable[Batch],
    mask: TokenMask | None = None,
    *,
    show_progress: bool = True,
) -> Comparison:
    """Return how far `quantized` is from `float_model` on `batches`, block by block and in the end.

    Both are called with one sample at a time, without its padding, as by `calibrate`. In memory are the
    outputs of the float blocks for one sample. The blocks are those that GPTQ works on; a model without any
    is one. Models and process are afterwards what they were.

    Args:
        float_model: the float model, on any device.
        quantized: what `convert` has made of a copy of it: each block has the path that it has there.
        batches: what to call the models with, as for `calibrate`.
        mask: which tokens are real, as for `calibrate`.
        show_progress: show a bar on standard error, if that is a terminal and the extra `progress` is there.

    Raises:
        UnsupportedError: one of the two is no module, or a block of one has no place in the other.
        LifecycleError: one of them is prepared.
        CalibrationError: one is in training mode; there are no batches, or one is something else; or the
            models give no logits, or logits of two shapes.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    >>> found = compare(model, model, [torch.ones(2, 4)])
    >>> found.kl, found.agreement, found.lines
    (0.0, 1.0, (BlockError(path='', own=0.0, accumulated=0.0),))
    """
    for field, model in (("float_model", float_model), ("quantized", quantized)):
        if not isinstance(model, nn.Module):
            raise UnsupportedError(Problem(field=field, value=model, expected="an nn.Module"))
        require_finished(field, model)
    pairs = _pairs(float_model, quantized)
    sums, logits = {path: _BlockSums() for path in pairs}, LogitSums()
    total = len(batches) if isinstance(batches, Sized) else None
    with (
        Progress("COMPARE", total=total, show=show_progress, unit="batch") as bar,
        unchanged_process(),
        quiet_runs(float_model, with_hooks=True),
        quiet_runs(quantized, with_hooks=True),
    ):
        for batch in batches:
            for args, kwargs in micro_batches(batch, 1, mask):
                sample = _Sample(pairs, sums, rows_of(kwargs))
                with sample.in_float():
                    expected = logits_of(called(float_model, args, kwargs), "float_model")
                with sample.in_quantized():
                    found = logits_of(called(quantized, args, kwargs), "quantized")
                logits.add(sample.select(expected), sample.select(found))
            bar.step()
    logits.require_rows()
    lines = tuple(each.line(path) for path, each in sums.items() if each.signal.count)
    return Comparison(lines=lines, kl=logits.mean, agreement=logits.equal / logits.rows, rows=logits.rows)


def _pairs(float_model: nn.Module, quantized: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Return the float and the quantized block at each path.

    Raises:
        UnsupportedError: `quantized` has none at some of the paths.
    """
    blocks = dict(find_blocks(float_model, layers_in(float_model).values())) or {"": float_model}
    there = dict(named_modules(quantized, every_path=True))
    missing = [path for path in blocks if path not in there]
    if missing:
        raise UnsupportedError(
            *(
                Problem(
                    module=path,
                    field="quantized",
                    value=Found("none"),
                    expected=f"what was made of the {type(blocks[path]).__name__} there",
                    sentence="the quantized model has no module at the path of this block",
                    remedy="pass what convert has made of a copy of the float model; graphs have no blocks",
                )
                for path in missing
            )
        )
    return {path: (block, there[path]) for path, block in blocks.items()}


def _again(block: nn.Module, call: Call) -> object:
    """Return what `block` gives for the arguments of `call`."""
    (args, kwargs, autocast), *_ = Replay([call], {})
    args, kwargs = tree_map_only(Tensor, lambda x: x.to(device_of(block)), (args, kwargs))
    with autocast.again():
        return block(*args, **kwargs)


@attrs.define
class _Sum:
    """A sum, and how many numbers were added."""

    value: float = 0.0
    count: int = 0

    def add(self, values: Tensor) -> None:
        self.value += float(products.total(values))
        self.count += 1


@attrs.define
class _BlockSums:
    """The squared norms of what a float block gives, and of both errors."""

    signal: _Sum = attrs.field(factory=_Sum)
    own: _Sum = attrs.field(factory=_Sum)
    accumulated: _Sum = attrs.field(factory=_Sum)

    def line(self, path: str) -> BlockError:
        """Return the errors as shares."""
        return BlockError(
            path=path, own=_share(self.own, self.signal), accumulated=_share(self.accumulated, self.signal)
        )


def _share(error: _Sum, signal: _Sum) -> float:
    """Return an error as a share; that of zeros is infinite, if there is one."""
    if signal.value:
        return error.value / signal.value
    return float("inf") if error.value else 0.0


@final
class _Sample:
    """The blocks of both models while they are called with one sample."""

    def __init__(
        self,
        pairs: Mapping[str, tuple[nn.Module, nn.Module]],
        sums: Mapping[str, _BlockSums],
        select: Select,
    ) -> None:
        self.select = select
        self._pairs = pairs
        self._sums = sums
        self._calls: dict[str, list[Call]] = {path: [] for path in pairs}
        self._outputs: dict[str, list[Tensor | None]] = {path: [] for path in pairs}

    @contextmanager
    def in_float(self) -> Iterator[None]:
        """Watch the blocks of the float model, and run each quantized one on what the float one is given."""
        handles = []
        for path, (block, _) in self._pairs.items():
            handles.append(before_call(block, partial(self._keep_call, path)))
            handles.append(after_call(block, partial(self._keep_output, path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def in_quantized(self) -> Iterator[None]:
        """Watch the blocks of the quantized model."""
        handles = [
            after_call(block, partial(self._compare_output, path)) for path, (_, block) in self._pairs.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep_call(self, path: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Copy the arguments, which the block may change, as it does a cache."""
        self._calls[path].append(Snapshots().take(args, kwargs, lambda _: None))

    def _keep_output(
        self, path: str, args: tuple[object, ...], kwargs: dict[str, object], output: object
    ) -> None:
        call, expected = self._calls[path].pop(), first_output(output)
        self._outputs[path].append(expected)
        block, other = self._pairs[path]
        found = expected if other is block else first_output(_again(other, call))
        if expected is not None and found is not None:
            self._sums[path].signal.add(self.select(expected).double().square())
            self._sums[path].own.add(self._error(path, expected, found))

    def _compare_output(
        self, path: str, args: tuple[object, ...], kwargs: dict[str, object], output: object
    ) -> None:
        kept, found = self._outputs[path], first_output(output)
        expected = kept.pop(0) if kept else None
        if expected is not None and found is not None:
            self._sums[path].accumulated.add(self._error(path, expected, found))

    def _error(self, path: str, expected: Tensor, found: Tensor) -> Tensor:
        """Return the squared differences of real rows.

        Raises:
            ConfigError: the two blocks give tensors of different shapes.
        """
        if expected.shape != found.shape:
            shapes = Found(f"{tuple(expected.shape)} and {tuple(found.shape)}")
            raise ConfigError(
                Problem(module=path, field="quantized", value=shapes, expected="outputs of one shape")
            )
        return (self.select(found.to(expected.device)).double() - self.select(expected).double()).square()
