"""A plan of layers carried out on a model without values: what `convert` will leave."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Final, TypeVar

from torch import nn

from tico_config import ModuleConfig
from tico_modules import Edit
from tico_quantizers.calibration import gram_bytes
from tico_quantizers.conversion._conversion import Conversion
from tico_quantizers.layers import Layer, LayerPlan, QuantizedWeight, Target, find_blocks
from tico_quantizers.protocol import Planned

C = TypeVar("C", bound=ModuleConfig)
SKIPPED: Final = "what no calibration data reach stays float: on_uncalibrated is 'skip'"
NEVER_CALLED: Final = "a layer whose weight is read, but which is never called, stays float"
STARVED: Final = "decided by the data: if fewer than {} tokens go to it, it is rounded to nearest"


def planned_layers(
    model: nn.Module,
    plan: LayerPlan[C],
    outlined: Callable[[Target[C]], QuantizedWeight],
    algorithm: str,
    edit: Edit,
) -> Planned:
    """Return what is left when each layer of `plan` has become what `outlined` says."""
    work = Conversion(model, plan.layers, edit, None)
    work.put_all(outlined(target) for target in plan.targets.values())
    converted = work.converted(plan.lines_left(work.close_experts(), algorithm))
    rules = {path: target.rule for path, target in plan.targets.items()}
    return Planned(converted=converted, rules=rules)


def gram_memory(
    model: nn.Module, layers: Mapping[str, Layer], *, most: int | None = None, paired: bool = False
) -> tuple[str, int]:
    """Return how many bytes the Gram matrices of `layers` take at most at a time, and what that is.

    These are of the layers outside of blocks, and of the block that has the largest, which `most` bounds.
    Each layer counts with a matrix of its own, where layers that read the same share one.
    """
    sizes = {path: gram_bytes(layer, paired=paired) for path, layer in layers.items()}
    blocks = [path for path, _ in find_blocks(model, layers.values())]
    inside = {path: block for path in sizes if (block := _block_of(path, blocks)) is not None}
    by_block: dict[str, int] = {}
    for path, block in inside.items():
        by_block[block] = by_block.get(block, 0) + sizes[path]
    largest = max(by_block.values(), default=0)
    outside = sum(size for path, size in sizes.items() if path not in inside)
    bounded = largest if most is None else min(largest, most)
    return "Gram matrices of what layers read, at most", outside + bounded


def _block_of(path: str, blocks: Container[str]) -> str | None:
    while path and path not in blocks:
        path = path.rpartition(".")[0]
    return path or None
