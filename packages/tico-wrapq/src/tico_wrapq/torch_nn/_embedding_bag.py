"""Bags of embeddings: rows of an integer table, summed, averaged or compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from tico_config import Found, Problem, UnsupportedError
from tico_modules import Layout, Parts, QuantizedModule, parameter
from tico_wrapq.base import ACT_OUT, WEIGHT, PointDeclaration, register
from tico_wrapq.torch_nn._layers import LayerWrapper, QuantIntegerEmbedding

_MODES = ("sum", "mean", "max")
_DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@attrs.frozen(kw_only=True)
class BagSettings:
    """How the rows of a bag are put together, and which index stands for none."""

    mode: str
    include_last_offset: bool
    padding_idx: int | None

    @classmethod
    def of(cls, bag: nn.EmbeddingBag) -> BagSettings:
        """Return the settings of a float layer."""
        return cls(mode=bag.mode, include_last_offset=bag.include_last_offset, padding_idx=bag.padding_idx)


@final
class QuantizedEmbeddingBag(QuantizedModule):
    """Bags of rows of an integer table of shape (num_embeddings, embedding_dim), in `dtype`."""

    kind: ClassVar[str] = "ptq.embedding_bag"

    def __init__(self, parts: Parts, bag: BagSettings, dtype: torch.dtype | None = None) -> None:
        super().__init__(parts)
        if dtype is not None and dtype != self.packed.float_dtype:
            self.take_dtype(dtype)
        self.bag = bag

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the rows."""
        return self.packed.float_dtype

    def forward(
        self,
        input: Tensor,  # noqa: A002  # torch's own name, which callers may use
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Return a row for each bag of the indices `input`, moved to `act_out`'s grid where there is one."""
        output = F.embedding_bag(
            input,
            self._weight_for(input).to(self.dtype),
            offsets,
            mode=self.bag.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.bag.include_last_offset,
            padding_idx=self.bag.padding_idx,
        )
        return self._round_to_grid(self.act_out, output)

    def _compute(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.embedding_bag(x, weight, mode=self.bag.mode)

    def with_parts(self, parts: Parts) -> QuantizedEmbeddingBag:
        """Return a table of the same settings made of other parts."""
        return QuantizedEmbeddingBag(parts, self.bag, self.dtype)

    def settings(self) -> Mapping[str, object]:
        """Return how bags are made, and the dtype of the rows."""
        return {**attrs.asdict(self.bag), "dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def settings_of(cls, original: nn.Module) -> Mapping[str, object]:
        """Return the settings of a float bag."""
        return attrs.asdict(BagSettings.of(original)) if isinstance(original, nn.EmbeddingBag) else {}

    @classmethod
    def from_settings(cls, parts: Parts, settings: Layout) -> Self:
        """Return the table made of `parts`.

        Raises:
            ArtifactError: a setting is none that a bag can have.
        """
        mode, dtype = settings.text("mode"), _DTYPES.get(settings.text("dtype"))
        if mode not in _MODES:
            raise settings.make_error("mode", f"one of {', '.join(_MODES)}")
        if dtype is None:
            raise settings.make_error("dtype", f"one of {', '.join(_DTYPES)}")
        bag = BagSettings(
            mode=mode,
            include_last_offset=settings.boolean("include_last_offset"),
            padding_idx=settings.optional_integer("padding_idx"),
        )
        if bag.padding_idx is not None and bag.padding_idx >= parts.packed.shape[0]:
            raise settings.make_error("padding_idx", f"None or below {parts.packed.shape[0]}")
        return cls(parts, bag, dtype)


@register(nn.EmbeddingBag)
class QuantEmbeddingBag(LayerWrapper):
    """A bag of embeddings; becomes a `QuantizedEmbeddingBag`. Indices have no grid."""

    kind: ClassVar[str] = "ptq.embedding_bag_points"
    points: ClassVar[tuple[PointDeclaration, ...]] = (WEIGHT, ACT_OUT)

    def forward(
        self,
        input: Tensor,  # noqa: A002  # torch's own name, which callers may use
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Return a row for each bag of the indices `input`, passed through its point."""
        output: Tensor = self.layer.forward(input, offsets, per_sample_weights)
        moved: Tensor = self.point("act_out")(output)
        return moved

    def _integer(self, parts: Parts) -> QuantizedModule:
        layer, weight = self.layer, parameter(self.layer, "weight")
        if not isinstance(layer, nn.EmbeddingBag) or weight is None:
            found = Found(type(layer).__name__)
            raise UnsupportedError(Problem(module=self.path, value=found, expected="a bag of embeddings"))
        return QuantizedEmbeddingBag(parts, BagSettings.of(layer), weight.dtype)


register(QuantizedEmbeddingBag)(QuantIntegerEmbedding)
