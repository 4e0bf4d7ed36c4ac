"""Programs of ExecuTorch, which XNNPACK computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Final, final

import attrs
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tico_config import ConfigError, Found, Problem, UnsupportedError
from tico_export.program import (
    DIALECTS,
    dialect_problems,
    floats_of,
    kernel_bound,
    program_in,
    register_dialect,
)
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

BACKENDS: Final = ("xnnpack",)


@final
@attrs.frozen(kw_only=True)
class ExecuTorch(ExportTarget):
    """A ``.pte`` file of ExecuTorch.

    Attributes:
        backend: ``xnnpack`` computes layers on int8; what it does not take runs by ExecuTorch's own kernels.

    Raises:
        ConfigError: the back end is none of these.
    """

    name: ClassVar[str] = "executorch"
    needs_example: ClassVar[bool] = True

    backend: str = "xnnpack"

    def __attrs_post_init__(self) -> None:
        """Refuse other back ends."""
        if self.backend not in BACKENDS:
            expected = f"one of {', '.join(BACKENDS)}"
            raise ConfigError(Problem(field="backend", value=self.backend, expected=expected))


@final
class ExecuTorchExporter(Exporter[ExecuTorch]):
    """Exports the graph of a model in the dialect of the back end, and lowers it."""

    def problems(self, source: Source) -> Iterable[Problem]:
        """Yield the grids that the back end has no kernels for."""
        return dialect_problems(DIALECTS[self.target.backend], source)

    def write(self, source: Source, example: Example | None, path: Path) -> None:
        """Write the program for the runtime."""
        partition, configs, exir = (
            require_extra(name, "executorch")
            for name in (
                "executorch.backends.xnnpack.partition.xnnpack_partitioner",
                "executorch.backends.xnnpack.utils.configs",
                "executorch.exir",
            )
        )
        register_dialect()
        program = program_in(DIALECTS[self.target.backend], source, given(example))
        try:
            edge = exir.to_edge_transform_and_lower(
                program,
                transform_passes=configs.get_transform_passes(),
                partitioner=[partition.XnnpackPartitioner()],
            )
            content: bytes = edge.to_executorch().buffer
        except OSError:
            raise  # it writes files of its own meanwhile, for which there may be no space
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            sentence = f"ExecuTorch cannot lower the model: {first}"
            found, expected = Found(type(error).__name__), "a model that ExecuTorch lowers"
            remedy = "see the error that this one was raised from"
            raise UnsupportedError(
                Problem(field="model", value=found, expected=expected, sentence=sentence, remedy=remedy)
            ) from error
        path.write_bytes(content)

    def consumer(self, source: Source) -> Consumer:
        """Return ExecuTorch's runtime for Python."""
        require_extra("executorch.runtime", "executorch")
        bound = kernel_bound(source)
        return Consumer(
            name=f"executorch {version('executorch')}",
            run=_run,
            smallest_sqnr=bound.smallest_sqnr,
            why=bound.why,
            steps=bound.steps,
        )


def _run(path: Path, example: Example) -> Sequence[Tensor]:
    require_extra("executorch.kernels.quantized", "executorch")  # registers what is left outside of XNNPACK
    runtime = require_extra("executorch.runtime", "executorch").Runtime.get()
    method = runtime.load_program(path).load_method("forward")
    leaves: list[object] = pytree.tree_leaves((example.args, dict(example.kwargs)))
    with torch.no_grad():
        return floats_of([each.clone() for each in method.execute(tuple(leaves)) if isinstance(each, Tensor)])


EXECUTORCH_ENTRY: Final = exporter_entry(ExecuTorch, ExecuTorchExporter)
