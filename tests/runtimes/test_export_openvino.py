"""`OpenVINO()`: integer layers in the runtime's own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import export_openvino
from export_models import SUBJECTS, converted
from tico.quantization import PTQConfig, convert, prepare
from tico.quantization.config import affine, no_quant, profiles
from tico_config import ConfigError, DType, UnsupportedError
from tico_export import ExportResult, OpenVINO, export
from tico_export.testing import ExporterCase, ExporterPromises
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


class TestPromises(ExporterPromises):
    """What every exporter promises, of a stack of layers and of a language model with keys and values."""

    cases: ClassVar[Mapping[str, ExporterCase]] = {
        "OpenVINO": ExporterCase(
            target=OpenVINO(),
            make=lambda: _model(4, 32),
            args=(torch.linspace(-1, 1, 4 * 128).view(1, 4, 128),),
            file_name="m.xml",
        ),
        "OpenVINO, cache": ExporterCase(
            target=OpenVINO(cache=True),
            make=lambda: converted("LLaMA", "W4 g32"),
            args=SUBJECTS["LLaMA"].args,
            kwargs=SUBJECTS["LLaMA"].kwargs,
            file_name="m.xml",
        ),
    }


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


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """A language model with keys and values in the runtime, verified."""
    given, path = SUBJECTS["LLaMA"], tmp_path_factory.mktemp("llama") / "m.xml"
    model, kwargs = converted("LLaMA", "W4 g32"), dict(given.kwargs)
    return export(model, path, OpenVINO(cache=True), args=given.args, kwargs=kwargs, verify="require")


def test_a_language_model_keeps_keys_and_values(generator: ExportResult) -> None:
    """Half of the tokens at once, the others one by one, give the logits of all at once.

    The inputs are those that openvino-genai and optimum-intel give.
    """
    print(generator)  # noqa: T201  # for the record
    assert generator.verified
    model = openvino.Core().read_model(str(generator.path))
    named = {each.any_name for each in model.inputs}
    assert named == {"input_ids", "attention_mask", "position_ids", "beam_idx"}
    assert [each.any_name for each in model.outputs] == ["logits"]


def test_attention_is_one_operator_of_the_runtime(tmp_path: Path) -> None:
    """Where the model computes it as one, as transformers does by default; exactly with keys in floats."""
    given, model = SUBJECTS["LLaMA"], SUBJECTS["LLaMA"].make().eval()
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    done = convert(prepare(model, profiles.OPENVINO.config(PTQConfig, activation=no_quant())))
    path, kwargs = tmp_path / "m.xml", dict(given.kwargs)
    result = export(done, path, OpenVINO(cache=True), args=given.args, kwargs=kwargs, verify="require")
    print(result)  # noqa: T201  # for the record
    assert result.sqnr > 100  # floats are rounded, in another order
    compiled = openvino.Core().compile_model(str(path), "CPU")
    run = [each.get_rt_info()["layerType"] for each in compiled.get_runtime_model().get_ops()]
    assert run.count("ScaledDotProductAttention") == 2


def test_rows_of_a_search_go_on_from_the_rows_that_they_are_told(generator: ExportResult) -> None:
    """Two rows that were swapped have each other's next logits, and a state that was reset is empty."""
    request = openvino.Core().compile_model(str(generator.path), "CPU").create_infer_request()

    def read(tokens: Tensor, seen: int, rows: list[int]) -> Tensor:
        total = seen + tokens.shape[1]
        inputs = {
            "input_ids": tokens,
            "attention_mask": torch.ones(2, total, dtype=torch.int64),
            "position_ids": torch.arange(seen, total).expand(2, -1),
            "beam_idx": torch.tensor(rows, dtype=torch.int32),
        }
        found = request.infer({name: each.numpy() for name, each in inputs.items()})
        return torch.as_tensor(found["logits"].copy())

    first, second = torch.tensor([[3, 9, 4], [8, 2, 7]]), torch.tensor([[5], [5]])
    once, straight = read(first, 0, [0, 1]), read(second, 3, [0, 1])
    request.reset_state()
    again, swapped = read(first, 0, [0, 1]), read(second, 3, [1, 0])
    assert torch.equal(once, again)
    assert not torch.equal(straight[0], straight[1])
    torch.testing.assert_close(swapped, straight.flip(0))


def test_a_model_that_keeps_no_keys_and_values_is_refused(tmp_path: Path) -> None:
    """One that is no language model, with the way out; and the option is True or False."""
    with pytest.raises(UnsupportedError, match="use cache=False"):
        export(_model(4, 32), tmp_path / "m.xml", OpenVINO(cache=True), args=(torch.ones(1, 4, 128),))
    with pytest.raises(ConfigError, match="cache"):
        OpenVINO(cache=1)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
