"""Folders of safetensors as targets, and what writes them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

import attrs
from torch import Tensor, nn

from tico_config import ConfigError, Problem
from tico_export.checkpoints._float_model import float_model, left_in_float, write_beside
from tico_export.checkpoints._shards import SHARD_BYTES, write_shards
from tico_export.checkpoints._unheld import unheld_problems
from tico_export.protocol import Example, Exporter, ExportTarget
from tico_export.source import Source


@attrs.frozen(kw_only=True)
class CheckpointTarget(ExportTarget):
    """A folder of safetensors with a config beside them.

    Attributes:
        shard_bytes: the bytes of tensors above which they stand in several files, with an index.

    Raises:
        ConfigError: the size is no positive integer.
    """

    is_folder: ClassVar[bool] = True

    shard_bytes: int = SHARD_BYTES

    def __attrs_post_init__(self) -> None:
        """Refuse other sizes."""
        if type(self.shard_bytes) is not int or self.shard_bytes < 1:
            expected = "a positive integer"
            raise ConfigError(Problem(field="shard_bytes", value=self.shard_bytes, expected=expected))


C = TypeVar("C", bound=CheckpointTarget)


class CheckpointExporter(Exporter[C]):
    """Writes what is left in float by the names of the float model, and layers as a format has them."""

    layer_types: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)
    """The float layers in whose place what reads the folder puts integer ones, unless they are left out."""

    holds_cache: ClassVar[bool] = False
    """Whether `layer_problems` says which caches of keys and values have a place; otherwise none has."""

    @abstractmethod
    def layer_problems(self, source: Source, model: nn.Module) -> Iterator[Problem]:
        """Yield the layers that the format has no place for; `model` is the float model, without values."""

    @abstractmethod
    def layer_tensors(self, source: Source) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the integer layers of `source`, by their names in the checkpoint."""

    @abstractmethod
    def quantization_config(self, source: Source, linear: Collection[str]) -> Mapping[str, object]:
        """Return ``quantization_config``, given the paths of all `layer_types` of the float model."""

    def problems(self, source: Source) -> Iterable[Problem]:
        """Yield the layers, points and modules that the format has no place for."""
        model = float_model(source)
        yield from self.layer_problems(source, model)
        yield from unheld_problems(source, model, self.target.name, cache=self.holds_cache)

    def write(self, source: Source, example: Example | None, path: Path) -> None:
        """Write tensors, configs and tokenizer."""
        modules = float_model(source).named_modules()
        linear = [name for name, each in modules if isinstance(each, self.layer_types)]
        path.mkdir()
        write_shards(path, self._tensors(source), self.target.shard_bytes)
        write_beside(source, path, self.quantization_config(source, linear))

    def _tensors(self, source: Source) -> Iterator[tuple[str, Tensor]]:
        yield from left_in_float(source)
        yield from self.layer_tensors(source)
