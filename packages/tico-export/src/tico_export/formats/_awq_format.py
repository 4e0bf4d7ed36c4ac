"""Folders in the format of AWQ, which GPTQModel, transformers and vLLM load."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import ClassVar, Final, final

import attrs
from torch import Tensor, nn

from tico_config import Problem
from tico_export.checkpoints import CheckpointExporter, CheckpointTarget
from tico_export.gptqmodel import awq_config, awq_problems, awq_tensors, gptqmodel_consumer, rounding_notes
from tico_export.protocol import Consumer, exporter_entry
from tico_export.source import Source


@final
@attrs.frozen(kw_only=True)
class AWQFormat(CheckpointTarget):
    """A folder of safetensors with the names and the packing of AutoAWQ's kernel ``gemm``.

    Linear layers of 4 bits, all with the same groups, which are runs of columns. Scales are float16, to which
    those of the model are rounded. Which algorithm chose the codes makes no difference.

    Attributes:
        shard_bytes: the bytes of tensors above which they stand in several files, with an index.

    Raises:
        ConfigError: the size is no positive integer.
    """

    name: ClassVar[str] = "awq"


@final
class AWQFormatExporter(CheckpointExporter[AWQFormat]):
    """Packs codes along the output features, and says which layers are left in float."""

    def layer_problems(self, source: Source, model: nn.Module) -> Iterator[Problem]:
        """Yield the layers that the format has no place for."""
        return awq_problems(source, model)

    def layer_tensors(self, source: Source) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the layers."""
        for weight in source.weights.values():
            yield from awq_tensors(weight)

    def quantization_config(self, source: Source, linear: Collection[str]) -> Mapping[str, object]:
        """Return the scheme that all layers have, and what is left in float."""
        return awq_config(source.weights, linear)

    def consumer(self, source: Source) -> Consumer:
        """Return transformers with GPTQModel, which dequantizes in float16."""
        group_size = next(iter(source.weights.values())).group_size or -1
        settings = {"bits": 4, "group_size": group_size, "backend": "torch_awq"}
        return gptqmodel_consumer(source, "AwqConfig", settings)

    def notes(self, source: Source) -> Iterable[str]:
        """Say what was rounded."""
        return rounding_notes(source)


AWQ_FORMAT_ENTRY: Final = exporter_entry(AWQFormat, AWQFormatExporter)
