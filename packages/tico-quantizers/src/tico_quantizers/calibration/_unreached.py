"""Layers that no calibration data have reached, and why."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from torch import Tensor
from torch.overrides import TorchFunctionMode

from tico_modules import parameter
from tico_quantizers.calibration._attempts import attempted_twice
from tico_quantizers.calibration._block_calls import BlockCalls
from tico_quantizers.calibration._passes import Passes
from tico_quantizers.calibration._quiet_runs import quiet_runs
from tico_quantizers.calibration._ways import needs_hooks
from tico_quantizers.layers import Layer

UNCALLED = "its weight is read, but the layer is never called, so nothing tells what it reads; it stays float"
UNREACHED = "no calibration data reached it, so it stays float"


def read_without_a_call(calls: BlockCalls, passes: Passes, layers: Mapping[str, Layer]) -> frozenset[str]:
    """Return which of `layers`, none of which is ever called, have weights that the first passes read.

    So are the convolutions of Mamba and its relatives, which hand their weights to a kernel.
    """
    if not layers or not passes.are_whole:
        return frozenset()
    reads = _WeightReads(layers)
    with_hooks = needs_hooks(calls, passes)

    def run() -> None:
        with quiet_runs(passes.root, with_hooks=with_hooks), reads:
            for _ in itertools.islice(passes.run(), calls.flow.trial_passes()):
                pass

    attempted_twice(run)  # one that cannot be run again tells what it has read until then
    return frozenset(reads.found)


class _Function(Protocol):
    def __call__(self, *args: object, **kwargs: object) -> object: ...


class _WeightReads(TorchFunctionMode):
    """Notes whose weight is among the arguments of a function of torch that makes a tensor of it."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        super().__init__()
        self.found: set[str] = set()
        weights = ((parameter(layer, "weight"), path) for path, layer in layers.items())
        self._paths = {id(weight): path for weight, path in weights if weight is not None}

    def __torch_function__(
        self,
        func: _Function,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if _holds_tensor(result):
            given = (*args, *(kwargs or {}).values())
            self.found.update(self._paths[id(x)] for x in _flat(given) if id(x) in self._paths)
        return result


def _flat(values: Iterable[object]) -> Iterable[object]:
    for value in values:
        yield from value if isinstance(value, list | tuple) else (value,)


def _holds_tensor(result: object) -> bool:
    return any(isinstance(item, Tensor) for item in _flat((result,)))
