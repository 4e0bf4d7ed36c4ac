"""Folders in the format of GPTQ, which GPTQModel, transformers and vLLM load."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import ClassVar, Final, Literal, final

import attrs
from torch import Tensor, nn

from tico_config import ConfigError, Problem
from tico_export.checkpoints import CheckpointExporter, CheckpointTarget
from tico_export.gptqmodel import (
    GPTQ_LAYERS,
    gptq_config,
    gptq_problems,
    gptq_tensors,
    gptqmodel_consumer,
    rounding_notes,
)
from tico_export.protocol import Consumer, exporter_entry
from tico_export.source import Source


@final
@attrs.frozen(kw_only=True)
class GPTQFormat(CheckpointTarget):
    """A folder of safetensors with the names and the packing of AutoGPTQ and GPTQModel.

    Linear layers of 2, 3, 4 or 8 bits, all with the same bits and groups, the same ones in each block. Scales
    are float16, to which those of the model are rounded; columns in an order of their own keep it. Which
    algorithm chose the codes makes no difference.

    Attributes:
        version: 1 has zero points less 1, as AutoGPTQ wrote them, and every reader knows it; 2 has them as
            they are.
        shard_bytes: the bytes of tensors above which they stand in several files, with an index.

    Raises:
        ConfigError: the version is neither, or the size no positive integer.
    """

    name: ClassVar[str] = "gptq"

    version: Literal[1, 2] = 1

    def __attrs_post_init__(self) -> None:
        """Refuse other options."""
        super().__attrs_post_init__()
        given: object = self.version
        if type(given) is not int or given not in (1, 2):
            raise ConfigError(Problem(field="version", value=given, expected="1 or 2"))


@final
class GPTQFormatExporter(CheckpointExporter[GPTQFormat]):
    """Packs codes along the input features, and says which layers of a block are integers."""

    layer_types = GPTQ_LAYERS

    def layer_problems(self, source: Source, model: nn.Module) -> Iterator[Problem]:
        """Yield the layers that the format has no place for."""
        return gptq_problems(source, model, self.target.version)

    def layer_tensors(self, source: Source) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the layers."""
        for weight in source.weights.values():
            yield from gptq_tensors(weight, self.target.version)

    def quantization_config(self, source: Source, linear: Collection[str]) -> Mapping[str, object]:
        """Return the scheme that all layers have, and which they are."""
        return gptq_config(source.weights, linear, self.target.version)

    def consumer(self, source: Source) -> Consumer:
        """Return transformers with GPTQModel, which dequantizes in float16."""
        bits = next(iter(source.weights.values())).dtype.bits
        return gptqmodel_consumer(source, "GPTQConfig", {"bits": bits, "backend": "torch"})

    def notes(self, source: Source) -> Iterable[str]:
        """Say what was rounded."""
        return rounding_notes(source)


GPTQ_FORMAT_ENTRY: Final = exporter_entry(GPTQFormat, GPTQFormatExporter)
