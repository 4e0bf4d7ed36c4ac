"""Folders of the library compressed-tensors, which transformers loads and vLLM runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import ClassVar, Final, final

import attrs
from torch import Tensor, nn

from tico_config import Problem
from tico_export.checkpoints import CheckpointExporter, CheckpointTarget
from tico_export.compressed_tensors import (
    layer_problems,
    layer_tensors,
    loads_as_floats,
    quantization_config,
    schemes_of,
    transformers_consumer,
)
from tico_export.protocol import Consumer, exporter_entry
from tico_export.source import Source


@final
@attrs.frozen(kw_only=True)
class CompressedTensors(CheckpointTarget):
    """A folder that ``AutoModelForCausalLM.from_pretrained`` of transformers loads.

    Linear layers and embeddings of 2 to 8 bits are packed, with a scale a row or a group; layers whose inputs
    are on grids of at most 8 bits, fixed or made for each token, take a byte a code. Everything else is in
    float. vLLM runs such folders too; `docs/reference/export-formats.md` says which.

    Attributes:
        shard_bytes: the bytes of tensors above which they stand in several files, with an index.

    Raises:
        ConfigError: the size is no positive integer.
    """

    name: ClassVar[str] = "compressed-tensors"


@final
class CompressedTensorsExporter(CheckpointExporter[CompressedTensors]):
    """Writes layers by the library's names for their parts, and a config that says what they are."""

    def layer_problems(self, source: Source, model: nn.Module) -> Iterator[Problem]:
        """Yield the layers that the format or what loads it has no place for."""
        return layer_problems(source, model, schemes_of(source))

    def layer_tensors(self, source: Source) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the layers."""
        schemes = schemes_of(source)
        for path, weight in source.weights.items():
            yield from layer_tensors(weight, schemes[path])

    def quantization_config(self, source: Source, linear: Collection[str]) -> Mapping[str, object]:
        """Return a group for each scheme, with the patterns of its layers."""
        return quantization_config(schemes_of(source), linear)

    def consumer(self, source: Source) -> Consumer:
        """Return transformers with compressed-tensors, which fake-quantizes inputs and computes in float."""
        return transformers_consumer(source)

    def notes(self, source: Source) -> Iterable[str]:
        """Say how transformers has to load the folder, where it is not by default."""
        if loads_as_floats(source):
            yield (
                "transformers loads packed zero points and embeddings as floats only: pass"
                " quantization_config=CompressedTensorsConfig(dequantize=True) to from_pretrained"
            )


COMPRESSED_TENSORS_ENTRY: Final = exporter_entry(CompressedTensors, CompressedTensorsExporter)
