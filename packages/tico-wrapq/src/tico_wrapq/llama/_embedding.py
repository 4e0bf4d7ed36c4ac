"""The wrapper of Gemma's embedding, whose rows are scaled."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from tico_modules import Parts, QuantizedEmbedding, QuantizedModule, parameter
from tico_wrapq.base import try_register
from tico_wrapq.torch_nn import QuantEmbedding, why_not_integer


@try_register("transformers.models.gemma.modeling_gemma.GemmaTextScaledWordEmbedding")
class QuantScaledEmbedding(QuantEmbedding):
    """An embedding times its `embed_scale`; becomes a `QuantizedEmbedding` with that factor."""

    kind: ClassVar[str] = "ptq.scaled_embedding"
    replaces_forward: ClassVar[bool] = True

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return why an integer table cannot take the place of `module`, or None."""
        return why_not_integer(module, (type(module).forward,))

    def _integer(self, parts: Parts) -> QuantizedModule:
        weight, factor = parameter(self.layer, "weight"), self.layer.get_buffer("embed_scale")
        return QuantizedEmbedding(parts, torch.float32 if weight is None else weight.dtype, float(factor))
