"""`ExecuTorch()`: a converted model written for XNNPACK, and run by ExecuTorch's runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from torch import nn

import export_executorch
from runtime_models import task
from runtime_runs import case
from tico_config import PT2EConfig, UnsupportedError
from tico_export import ExecuTorch, export
from tico_export.testing import ExporterCase, ExporterPromises

pytest.importorskip("executorch", reason="nox -s 'runtimes(xnnpack)' installs it")


@pytest.mark.parametrize("name", ["linear stack", "upsampling CNN"])
def test_the_runtime_gives_what_the_model_gives(name: str, tmp_path: Path) -> None:
    """The export is verified by the runtime."""
    made = case(name, PT2EConfig.xnnpack())
    result = export(made.graph, tmp_path / "m.pte", ExecuTorch(), args=(made.test,), verify="require")
    print(result)  # noqa: T201  # for the record
    assert result.verified
    assert result.consumer.startswith("executorch ")


def quantized() -> nn.Module:
    """Return a network of linear layers, quantized for the back end."""
    return case("linear stack", PT2EConfig.xnnpack()).graph


class TestPromises(ExporterPromises):
    """What every exporter promises."""

    cases: ClassVar[Mapping[str, ExporterCase]] = {
        "ExecuTorch": ExporterCase(
            target=ExecuTorch(),
            make=quantized,
            args=(task("linear stack").test,),
            file_name="m.pte",
        )
    }


def test_what_the_back_end_does_not_take_is_refused(tmp_path: Path) -> None:
    """uint8 activations are named with what is legal, and nothing is written."""
    made = case("linear stack", PT2EConfig.onnx_runtime())
    with pytest.raises(UnsupportedError, match=r"XNNPACK takes activations of int8"):
        export(made.graph, tmp_path / "m.pte", ExecuTorch(), args=(made.test,))
    assert list(tmp_path.iterdir()) == []


def test_the_example_is_verified_by_the_runtime(tmp_path: Path) -> None:
    """The network of the example gives there what it gives here."""
    result = export_executorch.write(tmp_path)
    print(result)  # noqa: T201  # for the record
    assert result.verified
