"""What a report tells of a model, taken from the model itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tico_config import DType, FloatFormat
from tico_modules._facts.layer_report import SQNR, LayerReport
from tico_modules._facts.model_facts import CodeCounts, LayerSize, ModelFacts, PointRange, RunFacts
from tico_modules._record.fingerprint import all_tensors
from tico_modules._record.model_bytes import bytes_by_line, line_above, total_bytes
from tico_modules._record.named_grids import named_grids
from tico_modules._record.run import Run
from tico_modules._storage.activation_grid import ActivationGrid
from tico_modules._storage.packed_weight import PackedWeight
from tico_modules._storage.weight_statistics import count_codes
from tico_modules._tree.module_tree import named_modules

_SHOWN: Final = 6
"""Of how many weights the codes are counted."""

_MOST_BITS: Final = 8


def measure(
    model: nn.Module, runs: Iterable[Run], lines: Sequence[LayerReport], earlier: Sequence[LayerReport]
) -> ModelFacts:
    """Return what is known of `model`, which has been through `runs`, beside the `lines` of its report."""
    paths = {line.path for line in lines}
    weights = dict(_weights(model, paths))
    grids = [(path, each) for path, each in named_modules(model) if isinstance(each, ActivationGrid)]
    graphs = {path for path, each in named_modules(model) if "operator_paths" in vars(each)}
    after = total_bytes(model)
    gained = sum(_gain(each) for owned in weights.values() for each in owned)
    codes = sum(math.prod(each.shape) for owned in weights.values() for each in owned)
    return ModelFacts(
        name=type(model).__name__,
        parameters=None if graphs else codes + _floats(model),
        before=None if graphs else after + gained - sum(map(_bytes_of, (grid for _, grid in grids))),
        after=after,
        runs=tuple(map(_facts_of, runs)),
        earlier=tuple(earlier),
        sizes=tuple(_sizes(model, lines, weights, grids, graphs)),
        points=tuple(_range_of(point, grid) for point, grid in named_grids(model)),
        codes=tuple(_worst_codes((*earlier, *lines), weights)),
    )


Weights = dict[str | None, list[PackedWeight]]


def _weights(model: nn.Module, paths: set[str]) -> Weights:
    """Return the integer weights of each line; of None those that no line has."""
    found: Weights = {}
    for path, module in named_modules(model):
        if isinstance(module, PackedWeight):
            found.setdefault(line_above(path, paths), []).append(module)
    return found


def _gain(packed: PackedWeight) -> int:
    """Return how many bytes more the floats would take that `packed` stands for."""
    return math.prod(packed.shape) * packed.float_dtype.itemsize - packed.bytes


def _bytes_of(grid: ActivationGrid) -> int:
    return grid.scale.nbytes + grid.zero_point.nbytes


def _is_parameter(name: str, tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) or name.rpartition(".")[2] == "bias"


def _floats(model: nn.Module) -> int:
    """Return how many floating-point parameters there are, with biases that are buffers of integer layers."""
    tensors = {
        id(tensor): tensor
        for name, tensor in all_tensors(model, every_path=False)
        if _is_parameter(name, tensor) and not is_lazy(tensor) and tensor.is_floating_point()
    }
    return sum(tensor.numel() for tensor in tensors.values())


def _sizes(
    model: nn.Module,
    lines: Sequence[LayerReport],
    weights: Weights,
    grids: Sequence[tuple[str, ActivationGrid]],
    graphs: set[str],
) -> Iterator[LayerSize]:
    paths = [line.path for line in lines]
    known, after = set(paths), bytes_by_line(model, paths)
    beside: Counter[str | None] = Counter()
    for path, grid in grids:
        beside[line_above(path, known)] += _bytes_of(grid)
    for path, size in after.items():
        owned = weights.get(path, [])
        before = size + sum(map(_gain, owned)) - beside[path]
        yield LayerSize(
            path=path,
            before=before if line_above(path, graphs) is None else None,
            after=size,
            packed=sum(each.bytes for each in owned),
            weights=sum(math.prod(each.shape) for each in owned),
        )


def _facts_of(run: Run) -> RunFacts:
    return RunFacts(
        config=run.config,
        model=run.model,
        data=run.data,
        calls=run.calls,
        versions=run.versions,
        seconds=run.seconds,
    )


def _range_of(path: str, grid: ActivationGrid) -> PointRange:
    if not grid.scale.numel() or grid.scale.is_meta:
        return PointRange(path=path, grid=grid.label)
    if isinstance(grid.dtype, FloatFormat):
        highest = grid.dtype.encoding.largest * float(grid.scale.max())
        return PointRange(path=path, grid=grid.label, low=-highest, high=highest)
    scale, zero = grid.scale.double(), grid.zero_point.double()
    low, high = (grid.dtype.qmin - zero) * scale, (grid.dtype.qmax - zero) * scale
    return PointRange(path=path, grid=grid.label, low=float(low.min()), high=float(high.max()))


def _can_be_shown(packed: PackedWeight) -> bool:
    return isinstance(packed.dtype, DType) and packed.bits <= _MOST_BITS and not packed.codes.is_meta


def _worst_codes(lines: Iterable[LayerReport], weights: Weights) -> Iterator[CodeCounts]:
    """Yield the codes of the weights with the lowest SQNR; `lines` has the newest of each path last."""
    ratios = {line.path: value for line in lines for name, value in line.figures if name == SQNR}
    single = {path: owned[0] for path, owned in weights.items() if path is not None and len(owned) == 1}
    known = [path for path in ratios if path in single and _can_be_shown(single[path])]
    for path in sorted(known, key=lambda path: (ratios[path], path))[:_SHOWN]:
        packed = single[path]
        counts, rows = count_codes(packed)
        yield CodeCounts(
            path=path, lowest=packed.dtype.qmin, counts=counts, rows=rows, of_rows=packed.shape[0]
        )
