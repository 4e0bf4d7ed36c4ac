"""Programs of torch.export, in the dialects of runtimes that read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Final, final

import attrs
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from tico_config import ConfigError, Found, Problem
from tico_export.program import exported, load_program, register_dialect
from tico_export.protocol import Consumer, Example, Exporter, ExportTarget, exporter_entry
from tico_export.source import Source

DIALECTS: Final = ("onnx",)


@final
@attrs.frozen(kw_only=True)
class PT2(ExportTarget):
    """A file of `torch.export.save`, read by `load_program`.

    Attributes:
        dialect: ``onnx`` has quantize and dequantize with scales as plain numbers, and codes of weights
            folded: what torch's exporter to ONNX takes.

    Raises:
        ConfigError: the dialect is none of these.
    """

    name: ClassVar[str] = "pt2"
    needs_example: ClassVar[bool] = True

    dialect: str = "onnx"

    def __attrs_post_init__(self) -> None:
        """Refuse other dialects."""
        if self.dialect not in DIALECTS:
            expected = f"one of {', '.join(DIALECTS)}"
            raise ConfigError(Problem(field="dialect", value=self.dialect, expected=expected))


@final
class PT2Exporter(Exporter[PT2]):
    """Exports the graph of a model and saves it."""

    def problems(self, source: Source) -> Iterable[Problem]:
        """Yield nothing: a program holds whatever torch.export traces."""
        return ()

    def write(self, source: Source, example: Example | None, path: Path) -> None:
        """Write the program."""
        if example is None:
            raise ConfigError(Problem(field="args", value=Found("none"), expected="example inputs"))
        register_dialect()
        torch.export.save(exported(source, example), path)

    def consumer(self, source: Source) -> Consumer:
        """Return torch itself, which has to give the bits of the reference."""
        why = "a program has the operators of the reference, in the same order"
        return Consumer(name=f"torch {torch.__version__}", run=_run, smallest_sqnr=float("inf"), why=why)


def _run(path: Path, example: Example) -> Sequence[Tensor]:
    program: ExportedProgram = load_program(path)
    with torch.no_grad():
        output: object = program.module()(*example.args, **example.kwargs)
    leaves: list[object] = pytree.tree_leaves(output)
    return [each for each in leaves if isinstance(each, Tensor) and each.is_floating_point()]


PT2_ENTRY: Final = exporter_entry(PT2, PT2Exporter)
