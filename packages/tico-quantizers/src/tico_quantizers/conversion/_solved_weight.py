"""A layer's weight from what a solver has found for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tico_config import SuperBlock
from tico_modules import PackedWeight
from tico_quantizers.layers import Layer, shape
from tico_quantizers.solvers import Solution


def solved_weight(
    layer: Layer, solutions: Sequence[Solution], super_block: SuperBlock | None = None
) -> PackedWeight:
    """Return the weight of `layer` whose runs of rows, one for each of its groups, the `solutions` hold.

    >>> from torch import nn
    >>> from tico_config import GPTQConfig
    >>> from tico_quantizers.layers import matrix
    >>> from tico_quantizers.solvers import nearest
    >>> layer = nn.Linear(8, 4)
    >>> solved_weight(layer, [nearest(matrix(layer), GPTQConfig(bits=3))]).bits
    3
    """
    first = solutions[0]
    offsets = [solution.offset for solution in solutions if solution.offset is not None]
    return PackedWeight.from_codes(
        torch.cat([solution.codes for solution in solutions]),
        torch.cat([solution.scale for solution in solutions]),
        torch.cat([solution.zero_point for solution in solutions]),
        dtype=first.dtype,
        shape=shape(layer),
        group_size=first.group_size,
        group_index=first.group_index,
        offset=torch.cat(offsets) if offsets else None,
        super_block=super_block,
        tensor_scale=first.tensor_scale,
    )
