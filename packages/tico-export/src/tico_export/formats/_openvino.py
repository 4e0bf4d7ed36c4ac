"""OpenVINO's intermediate representation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Final, final

import attrs
from torch import Tensor

from tico_config import ConfigError, Problem
from tico_export.onnx_files import onnx_model, onnx_problems, onnx_program, save_onnx
from tico_export.program import fed, floats_of, grids_in, kernel_bound
from tico_export.protocol import (
    Consumer,
    Example,
    Exporter,
    ExportTarget,
    exporter_entry,
    given,
    require_extra,
)
from tico_export.source import Source

_OPSET: Final = 21


@final
@attrs.frozen(kw_only=True)
class OpenVINO(ExportTarget):
    """A file ``*.xml`` with its weights beside it, ``*.bin``, made by way of ONNX.

    From a program OpenVINO takes no weights that are integers already; from ONNX it takes int8, and int4 in
    groups.
    """

    name: ClassVar[str] = "openvino"
    needs_example: ClassVar[bool] = True


@final
class OpenVINOExporter(Exporter[OpenVINO]):
    """Writes a model of ONNX, and has OpenVINO convert it."""

    def problems(self, source: Source) -> Iterable[Problem]:
        """Yield weights whose groups are no blocks."""
        return onnx_problems(source)

    def write(self, source: Source, example: Example | None, path: Path) -> None:
        """Write both files.

        Raises:
            ConfigError: the path does not end in ``.xml``, which is how OpenVINO finds the weights.
        """
        if path.suffix != ".xml":
            raise ConfigError(Problem(field="path", value=path.name, expected="a name that ends in .xml"))
        openvino = require_extra("openvino", "openvino")
        model = onnx_model(onnx_program(source, given(example)), _OPSET)
        with TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            save_onnx(model, file, external_above=2**30)
            converted = openvino.convert_model(str(file))
            openvino.save_model(converted, str(path), compress_to_fp16=False)

    def consumer(self, source: Source) -> Consumer:
        """Return OpenVINO on the processor, with floats of 32 bits."""
        openvino = require_extra("openvino", "openvino")
        bound = kernel_bound(source, block_codes=True)
        return Consumer(
            name=f"openvino {openvino.__version__}",
            run=_run,
            smallest_sqnr=bound.smallest_sqnr,
            why=f"{bound.why}{_overflow(source)}",
            steps=bound.steps,
        )


def _overflow(source: Source) -> str:
    """Return what to do about sums of two products of 8 bits, which do not fit into 16 bits."""
    weights = [each for each in grids_in(source) if each.role == "weight" and each.dtype.bits == 8]
    inputs = [each for each in grids_in(source) if each.role == "activation" and each.dtype.bits == 8]
    if not (weights and inputs):
        return ""
    return "; on processors without VNNI sums of 8 bits overflow, and weights of 7 bits are right"


def _run(path: Path, example: Example) -> Sequence[Tensor]:
    core = require_extra("openvino", "openvino").Core()
    compiled = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = [each.any_name for each in compiled.inputs]
    found = compiled({name: each.numpy() for name, each in fed(inputs, example).items()})
    return floats_of([found[each].copy() for each in compiled.outputs])


OPENVINO_ENTRY: Final = exporter_entry(OpenVINO, OpenVINOExporter)
