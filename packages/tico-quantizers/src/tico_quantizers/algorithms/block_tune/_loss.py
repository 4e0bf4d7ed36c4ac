"""How far a block is from the float one."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tico_quantizers.calibration import BlockRuns


@attrs.frozen(eq=False)
class BlockLoss:
    """The squared distance of what a block gives from what the float one does, over the square of the latter.

    Padding counts nowhere.
    """

    runs: BlockRuns

    def __call__(self, sample: int, /) -> Tensor:
        """Return the loss of a sample."""
        wanted = self.runs.wanted(sample).to(torch.float32)
        errors = _squares(self.runs.output(sample).to(torch.float32) - wanted)
        sizes, real = _squares(wanted), self.runs.real(sample)
        if real is not None:
            errors, sizes = errors * real, sizes * real
        whole = _sum(sizes)
        return _sum(errors) / whole.where(whole > 0, 1)


def _squares(values: Tensor) -> Tensor:
    return values.square().sum(-1)


def _sum(values: Tensor) -> Tensor:
    """Return the sum, made axis by axis: of a sum of all, the number of threads changes bits."""
    while values.ndim:
        values = values.sum(-1)
    return values
