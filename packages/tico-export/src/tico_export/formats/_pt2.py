"""Programs of torch.export, in the dialects of runtimes that read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Final, final

import attrs
import torch
from torch import Tensor, nn

from tico_config import ConfigError, Problem
from tico_export.program import (
    DIALECTS,
    dialect_problems,
    floats_of,
    kernel_bound,
    load_program,
    program_in,
    register_dialect,
)
from tico_export.protocol import Consumer, Example, Exporter, ExportTarget, exporter_entry, given
from tico_export.source import Source
from tico_modules import named_modules


@final
@attrs.frozen(kw_only=True)
class PT2(ExportTarget):
    """A file of `torch.export.save`, read by `load_program`.

    Values are quantized and dequantized by operators of ``quantized_decomposed`` whose scales are plain
    numbers; what unpacks codes is computed, so that weights are integers that are dequantized.

    Attributes:
        dialect: what is to read the program.

            - ``onnx``: torch's exporter to ONNX, or any reader of ``quantized_decomposed``; all grids.
            - ``xnnpack``: ExecuTorch with XNNPACK; int8, weights symmetric, biases in float.
            - ``openvino``: OpenVINO from a program; 8 bits, float weights that are quantized in the graph.
            - ``circle``: ``pt2-to-circle``; 8 and 16 bits and uint4, biases in float.

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
        """Yield the grids that the dialect has no place for."""
        return dialect_problems(DIALECTS[self.target.dialect], source)

    def write(self, source: Source, example: Example | None, path: Path) -> None:
        """Write the program, which is whole in memory first: on a full disk, torch's own writer aborts."""
        register_dialect()
        content = BytesIO()
        torch.export.save(program_in(DIALECTS[self.target.dialect], source, given(example)), content)
        path.write_bytes(content.getbuffer())

    def consumer(self, source: Source) -> Consumer:
        """Return torch itself: it has to give the bits of the reference, but for its own attention."""
        name = f"torch {torch.__version__}"
        if any(isinstance(each, nn.MultiheadAttention) for _, each in named_modules(source.model)):
            why = "outside of programs torch computes attention as one operator, which sums in another order"
            bound = kernel_bound(source)
            return Consumer(
                name=name, run=_run, smallest_sqnr=bound.smallest_sqnr, why=why, steps=bound.steps
            )
        why = "a program has the operators of the reference, in the same order"
        return Consumer(name=name, run=_run, smallest_sqnr=float("inf"), why=why)


def _run(path: Path, example: Example) -> Sequence[Tensor]:
    module = load_program(path).module()
    with torch.no_grad():
        return floats_of(module(*example.args, **example.kwargs))


PT2_ENTRY: Final = exporter_entry(PT2, PT2Exporter)
