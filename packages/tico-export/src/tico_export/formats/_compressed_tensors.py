"""Folders of the library compressed-tensors, which transformers loads and vLLM runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Final, final

import attrs
from torch import Tensor, nn

from tico_config import ConfigError, Problem
from tico_export.checkpoints import (
    SHARD_BYTES,
    float_model,
    left_in_float,
    unheld_problems,
    write_beside,
    write_shards,
)
from tico_export.compressed_tensors import (
    layer_problems,
    layer_tensors,
    loads_as_floats,
    quantization_config,
    schemes_of,
    transformers_consumer,
)
from tico_export.protocol import Consumer, Example, Exporter, ExportTarget, exporter_entry
from tico_export.source import Source


@final
@attrs.frozen(kw_only=True)
class CompressedTensors(ExportTarget):
    """A folder that ``AutoModelForCausalLM.from_pretrained`` of transformers loads.

    Linear layers and embeddings of 2 to 8 bits are packed, with a scale a row or a group; layers whose inputs
    are on grids of at most 8 bits, fixed or made for each token, take a byte a code. Everything else is in
    float. vLLM runs such folders too; which of them, the README says.

    Attributes:
        shard_bytes: the bytes of tensors above which they stand in several files, with an index.

    Raises:
        ConfigError: the size is no positive integer.
    """

    name: ClassVar[str] = "compressed-tensors"
    is_folder: ClassVar[bool] = True

    shard_bytes: int = SHARD_BYTES

    def __attrs_post_init__(self) -> None:
        """Refuse other options."""
        if type(self.shard_bytes) is not int or self.shard_bytes < 1:
            expected = "a positive integer"
            raise ConfigError(Problem(field="shard_bytes", value=self.shard_bytes, expected=expected))


@final
class CompressedTensorsExporter(Exporter[CompressedTensors]):
    """Writes layers by the library's names for their parts, and a config that says what they are."""

    def problems(self, source: Source) -> Iterable[Problem]:
        """Yield the layers, points and modules that the format has no place for."""
        model = float_model(source)
        yield from layer_problems(source, model, schemes_of(source))
        yield from unheld_problems(source, model, self.target.name)

    def write(self, source: Source, example: Example | None, path: Path) -> None:
        """Write tensors, configs and tokenizer."""
        modules = float_model(source).named_modules()
        linear = [name for name, each in modules if isinstance(each, nn.Linear)]
        path.mkdir()
        write_shards(path, _tensors(source), self.target.shard_bytes)
        write_beside(source, path, quantization_config(schemes_of(source), linear))

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


def _tensors(source: Source) -> Iterator[tuple[str, Tensor]]:
    schemes = schemes_of(source)
    yield from left_in_float(source)
    for path, weight in source.weights.items():
        yield from layer_tensors(weight, schemes[path])


COMPRESSED_TENSORS_ENTRY: Final = exporter_entry(CompressedTensors, CompressedTensorsExporter)
