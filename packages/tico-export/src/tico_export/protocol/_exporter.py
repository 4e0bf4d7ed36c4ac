"""What an exporter does, and when it is called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from tico_config import FloatFormat, Found, Problem
from tico_export.protocol._consumer import Consumer
from tico_export.protocol._example import Example
from tico_export.protocol._target import ExportTarget
from tico_export.source import Source

T = TypeVar("T", bound=ExportTarget)


class Exporter(ABC, Generic[T]):
    """Writes converted models in the format of one target.

    `export` calls `every_problem` first, and nothing is written where there is any. Then `write` is given a
    path in a new folder beside the one asked for; what it leaves there is moved to its place only when all
    went well. Between the two, `consumer` is asked for what reads the file, and that runs it. An exporter
    knows no algorithm, changes nothing of the model, and gives the same bytes for the same model in every
    process.

    Args:
        target: the format with its options.
    """

    takes_offsets: ClassVar[bool] = False
    """Whether `write` keeps the offsets of groups, `QuantizedWeight.offset`; otherwise they are refused."""

    float_formats: ClassVar[tuple[type[FloatFormat], ...]] = ()
    """The formats of floating-point elements of which `problems` says where they have a place; all others,
    integers aside, are refused."""

    def __init__(self, target: T) -> None:
        self.target = target

    def every_problem(self, source: Source) -> Iterator[Problem]:
        """Yield what `problems` yields, after the formats and offsets that the exporter does not take.

        A model with formats that it does not know has no other problems: nobody else looks at such codes.
        """
        unknown = list(self._format_problems(source))
        yield from unknown
        if not unknown:
            yield from self._offset_problems(source)
            yield from self.problems(source)

    def _format_problems(self, source: Source) -> Iterator[Problem]:
        known = " and ".join(["integers", *(each.__name__ for each in self.float_formats)])
        for path, dtype in source.float_formats.items():
            if not isinstance(dtype, self.float_formats):
                yield Problem(
                    module=path or None,
                    field="dtype",
                    value=Found(str(dtype)),
                    expected=known,
                    sentence=f"its codes are {dtype}, and {self.target.name} has no place for them",
                    remedy="save it by save_quantized, or quantize to integers what is to be exported",
                )

    def _offset_problems(self, source: Source) -> Iterator[Problem]:
        for path, weight in source.weights.items():
            if weight.offset is not None and not self.takes_offsets:
                yield Problem(
                    module=path or None,
                    field="offset",
                    value=Found(str(weight.format)),
                    expected="scales and zero points alone",
                    sentence=f"{self.target.name} has no place for offsets of groups, and this one has them",
                    remedy="convert it with a super_block without offset_bits, or export it by GGUF()",
                )

    @abstractmethod
    def problems(self, source: Source) -> Iterable[Problem]:
        """Yield everything of `source` that the format cannot hold, each with its module and a way out.

        What a format would drop in silence belongs here: a bias, a grid of an activation, a tied weight.
        """

    @abstractmethod
    def write(self, source: Source, example: Example | None, path: Path) -> None:
        """Write `source` to `path`, a folder to be made or a file; other files may stand beside it.

        `example` is None where none was given, which a target that needs one never sees.

        Raises:
            UnsupportedError: the model cannot be written after all.
            MissingExtraError: what writes the format is not installed; the error names the extra.
        """

    @abstractmethod
    def consumer(self, source: Source) -> Consumer:
        """Return what is to read an export of `source`.

        Raises:
            MissingExtraError: it is not installed; the error names the extra.
            UnsupportedError: nothing that can be had runs this one, and why.
        """

    def notes(self, source: Source) -> Iterable[str]:
        """Return what a user of the export has to know, such as parts left in float, one sentence each.

        They are in the result, whether the export was verified or not. By default there is nothing to say.
        """
        return ()
