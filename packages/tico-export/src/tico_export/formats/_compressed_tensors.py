"""Folders of the library compressed-tensors, which transformers loads and vLLM runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import ClassVar, Final, final

import attrs
from torch import Tensor, nn

from tico_config import FP8, MXFP4, MXFP6, MXFP8, NVFP4, FloatFormat, Problem
from tico_export.checkpoints import CheckpointExporter, CheckpointTarget
from tico_export.compressed_tensors import (
    cache_problems,
    cache_scheme,
    cache_tensors,
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
    are on grids of at most 8 bits, fixed or made for each token, take a byte a code. Weights may be FP8 and
    MXFP8 in e4m3, MXFP6 in e2m3, MXFP4 and NVFP4 too, and inputs FP8 in e4m3. Keys and values may have one
    fixed symmetric grid a layer, int8 or FP8. Everything else is in float. vLLM runs such folders too;
    `docs/reference/export-formats.md` says which.

    Attributes:
        shard_bytes: the bytes of tensors above which they stand in several files, with an index.

    Raises:
        ConfigError: the size is no positive integer.
    """

    name: ClassVar[str] = "compressed-tensors"


@final
class CompressedTensorsExporter(CheckpointExporter[CompressedTensors]):
    """Writes layers by the library's names for their parts, and a config that says what they are."""

    holds_cache: ClassVar[bool] = True
    float_formats: ClassVar[tuple[type[FloatFormat], ...]] = (FP8, MXFP8, MXFP6, MXFP4, NVFP4)

    def layer_problems(self, source: Source, model: nn.Module) -> Iterator[Problem]:
        """Yield the layers and caches that the format or what loads it has no place for."""
        yield from layer_problems(source, model, schemes_of(source))
        yield from cache_problems(source)

    def layer_tensors(self, source: Source) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the layers, and the scales of keys and values."""
        schemes = schemes_of(source)
        for path, weight in source.weights.items():
            yield from layer_tensors(weight, schemes[path])
        yield from cache_tensors(source)

    def quantization_config(self, source: Source, linear: Collection[str]) -> Mapping[str, object]:
        """Return a group for each scheme, with the patterns of its layers."""
        return quantization_config(schemes_of(source), linear, cache_scheme(source))

    def consumer(self, source: Source) -> Consumer:
        """Return transformers with compressed-tensors, which fake-quantizes inputs and computes in float."""
        return transformers_consumer(source)

    def notes(self, source: Source) -> Iterable[str]:
        """Say how transformers has to load the folder, where it is not by default."""
        if loads_as_floats(source):
            yield (
                "transformers loads packed zero points and embeddings as floats only, and blocks of elements"
                " where the model is not bfloat16: pass"
                " quantization_config=CompressedTensorsConfig(dequantize=True) to from_pretrained"
            )


COMPRESSED_TENSORS_ENTRY: Final = exporter_entry(CompressedTensors, CompressedTensorsExporter)
