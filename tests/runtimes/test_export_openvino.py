"""`OpenVINO()`: integer layers in the runtime's own files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import export_openvino
from tico.quantization import PTQConfig, convert, prepare
from tico.quantization.config import affine
from tico_config import ConfigError, DType
from tico_export import OpenVINO, export
from tico_modules import QuantizedLinear

openvino = pytest.importorskip("openvino", reason="nox -s 'runtimes(openvino)' installs it")


def _model(bits: int, group_size: int | None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(128, 64), nn.Linear(64, 32)]
    made = [QuantizedLinear.from_float(each, DType.uint(bits), group_size=group_size) for each in layers]
    return nn.Sequential(made[0], nn.ReLU(), made[1]).eval()


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, None), (8, None)])
def test_the_runtime_gives_what_the_model_gives(bits: int, group_size: int | None, tmp_path: Path) -> None:
    """Weights of 4 bits in groups and of 8 bits a row are verified, in files of their size."""
    x = torch.linspace(-1, 1, 4 * 128).view(1, 4, 128)
    model = _model(bits, group_size)
    result = export(model, tmp_path / "m.xml", OpenVINO(), args=(x,), verify="require")
    print(result)  # noqa: T201  # for the record
    assert result.verified
    weights = (128 * 64 + 64 * 32) * bits // 8
    assert weights <= (tmp_path / "m.bin").stat().st_size < 2 * weights


def test_the_name_has_to_be_one_of_openvino(tmp_path: Path) -> None:
    """OpenVINO finds the weights beside a file that ends in .xml."""
    with pytest.raises(ConfigError, match=r"ends in \.xml"):
        export(_model(8, None), tmp_path / "m.ov", OpenVINO(), args=(torch.ones(1, 4, 128),))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", export_openvino.SCHEMES)
def test_the_example_writes_what_the_runtime_verifies(name: str, tmp_path: Path) -> None:
    """Both files are there, for a batch of any size."""
    result = export_openvino.write(name, tmp_path)
    print(result)  # noqa: T201  # for the record
    assert result.verified
    assert {each.name for each in tmp_path.iterdir()} == {f"{name}.xml", f"{name}.bin"}
    inputs = openvino.Core().read_model(str(result.path)).inputs
    assert [str(each.partial_shape) for each in inputs] == ["[?,128]"]


@pytest.mark.parametrize("signed", [True, False])
def test_weights_of_7_bits_do_not_overflow(signed: bool, tmp_path: Path) -> None:
    """Two products of 255 and 64 fit into 16 bits, which the sums of a processor without VNNI have."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
        x = torch.randn(16, 128)
    config = PTQConfig(activation=affine(DType(8, signed)), weight=affine(DType.int(7)))
    prepared = prepare(model, config, args=(x,))
    prepared(x)
    result = export(convert(prepared), tmp_path / "m.xml", OpenVINO(), args=(x,), verify="require")
    print(result)  # noqa: T201  # for the record
    assert result.sqnr > 100  # floats are rounded, and no sum is cut off
