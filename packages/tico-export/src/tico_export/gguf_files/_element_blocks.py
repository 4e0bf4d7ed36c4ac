"""Weights of MXFP4 as llama.cpp has them: blocks of 32 columns, each after the code of its scale."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tico_export.gguf_files._tensor_types import BLOCK, MXFP4_BLOCKS, TensorType, half_bytes, tensor_bytes
from tico_export.source import QuantizedWeight


@attrs.frozen(eq=False, kw_only=True)
class ElementBlocks:
    """A weight of MXFP4, which the blocks hold as it is.

    llama.cpp doubles the elements and halves the scales, so that both codes are those of the standard.
    """

    weight: QuantizedWeight
    type: TensorType = MXFP4_BLOCKS
    exact: bool = True

    def content(self, order: Tensor | None) -> bytes:
        """Return the bytes of the blocks, the rows in another `order` where one is given."""
        codes, scales = self.weight.codes().to(torch.uint8), self.weight.elements.stored_scale
        if order is not None:
            codes, scales = codes[order], scales[order]
        return tensor_bytes(
            torch.cat([scales.unsqueeze(-1), half_bytes(codes.view(*scales.shape, BLOCK))], -1)
        )
