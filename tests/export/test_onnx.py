"""`Onnx()`: what stands in the file, what ONNX Runtime makes of it, and what is refused."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import export_onnx
from export_models import SCHEMES, SUBJECTS, converted
from export_refusals import listed
from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico.quantization.config import (
    FP8,
    MXFP4,
    MXFP8,
    NVFP4,
    DType,
    PerGroup,
    QuantSpec,
    affine,
    no_quant,
    profiles,
)
from tico_config import ConfigError, FloatFormat, UnsupportedError
from tico_export import ExportResult, Onnx, export
from tico_modules import FloatWeight, QuantizedLinear

pytest.importorskip("onnxruntime", reason="the lowest versions are tested without the extra onnx")

# onnxscript and onnx-ir warn of themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

# The inputs of these weights are rounded to 8 bits for each block of 128 columns, three layers in turn.
BLOCKS = 27.0


def written(subject: str, scheme: str, path: Path, target: Onnx | None = None) -> ExportResult:
    """Export a model of the matrix, verified by ONNX Runtime."""
    given = SUBJECTS[subject]
    model = converted(subject, scheme)
    return export(model, path, target or Onnx(), args=given.args, kwargs=dict(given.kwargs), verify="require")


def operators(path: Path) -> Counter[str]:
    """Return how often each operator stands in the file at `path`."""
    return Counter(node.op_type for node in importlib.import_module("onnx").load(path).graph.node)


def optimized(path: Path) -> Counter[str]:
    """Return the operators that ONNX Runtime runs for the file at `path`."""
    runtime, other = importlib.import_module("onnxruntime"), path.with_name("optimized.onnx")
    options = runtime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(other), 3
    runtime.InferenceSession(str(path), options)
    return operators(other)


def types(path: Path) -> Counter[str]:
    """Return how many initializers have each format."""
    onnx = importlib.import_module("onnx")
    return Counter(
        onnx.TensorProto.DataType.Name(each.data_type) for each in onnx.load(path).graph.initializer
    )


@pytest.mark.parametrize("scheme", [each for each in SCHEMES if not listed("linear stack", each, "Onnx")])
def test_every_scheme_is_run_by_the_runtime(scheme: str, tmp_path: Path) -> None:
    """Linear layers pass within the bound; with optimizations off to the rounding of floats at most."""
    result = written("linear stack", scheme, tmp_path / "m.onnx")
    assert result.verified
    [plain] = result.notes
    decibels = float(plain.removeprefix("optimizations off: ").partition(" dB")[0])
    # 16-bit codes times scales are rounded to 24 bits in an order of the runtime's own.
    assert decibels == float("inf") or (scheme == "W8A16" and decibels > 80)


@pytest.mark.parametrize("subject", ["convolutions", "encoder", "LLaMA"])
def test_models_of_other_kinds_are_run_by_the_runtime(subject: str, tmp_path: Path) -> None:
    """Depthwise and transposed convolutions, attention and a language model, on static 8-bit grids."""
    result = written(subject, "W8A8", tmp_path / "m.onnx")
    assert result.verified
    assert (result.kl is not None) == (subject == "LLaMA")


def test_8_bit_layers_run_by_integer_kernels(tmp_path: Path) -> None:
    """ONNX Runtime multiplies integers in each linear layer."""
    path = tmp_path / "m.onnx"
    written("linear stack", "W8A8", path)
    run = optimized(path)
    assert run["QGemm"] + run["MatMulIntegerToFloat"] == 3
    assert run["MatMul"] + run["Gemm"] == 0
    assert operators(path)["Transpose"] == 0
    assert types(path)["INT8"] >= 3


@pytest.mark.parametrize(("scheme", "format_"), [("W4 g32", "UINT4"), ("W4 per channel", "INT4")])
def test_4_bit_layers_run_by_kernels_for_blocks(scheme: str, format_: str, tmp_path: Path) -> None:
    """Codes take 4 bits in the file, and each layer becomes MatMulNBits."""
    path = tmp_path / "m.onnx"
    result = written("linear stack", scheme, path)
    assert types(path)[format_] >= 3
    assert optimized(path)["MatMulNBits"] == 3
    assert result.sqnr > BLOCKS


@pytest.mark.parametrize("symmetric", [True, False])
def test_large_layers_take_4_bits_and_their_kernel_as_well(symmetric: bool, tmp_path: Path) -> None:
    """Zero points of many groups are constants of 4 bits, and nothing is cast or turned as the model runs."""
    x = torch.linspace(-1, 1, 2 * 1024).view(1, 2, 1024)
    layer = nn.Linear(1024, 1024, bias=False)
    codes = QuantizedLinear.from_float(layer, DType(4, symmetric), symmetric=symmetric, group_size=32)
    path = tmp_path / "m.onnx"
    export(nn.Sequential(codes).eval(), path, Onnx(), args=(x,), verify="require")
    assert types(path)["INT4" if symmetric else "UINT4"] == 2
    assert operators(path) == {"DequantizeLinear": 1, "MatMul": 1}
    assert optimized(path) == {"MatMulNBits": 1}


def test_large_tensors_stand_beside_the_file(tmp_path: Path) -> None:
    """Above the threshold they are in a file of their own, and the runtime finds them."""
    path = tmp_path / "m.onnx"
    result = written("linear stack", "W8A8", path, Onnx(external_above=1000))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert result.bytes == sum(each.stat().st_size for each in tmp_path.iterdir())


def test_batch_and_sequence_may_vary(tmp_path: Path) -> None:
    """The file takes batches and sequences of other lengths than the example's."""
    model, (x,) = converted("linear stack", "W8A8"), SUBJECTS["linear stack"].args
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    path = tmp_path / "m.onnx"
    export(model, path, Onnx(), args=(x,), dynamic_shapes=(axes,), verify="require")
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    other: Tensor = x[:2].repeat(1, 3, 1)
    session = runtime.InferenceSession(str(path), options)
    [found] = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    assert torch.equal(torch.from_numpy(found), model(other))


def test_a_language_model_reads_texts_of_any_length(tmp_path: Path) -> None:
    """Batch and tokens vary in a LLaMA of 4-bit weights, and the bound holds for another length."""
    model, path, given = converted("LLaMA", "W4 g32"), tmp_path / "m.onnx", SUBJECTS["LLaMA"]
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = {"input_ids": axes, "use_cache": None}
    result = export(
        model,
        path,
        Onnx(),
        args=given.args,
        kwargs=dict(given.kwargs),
        dynamic_shapes=shapes,
        verify="require",
    )
    session = importlib.import_module("onnxruntime").InferenceSession(str(path))
    shorter = given.args[0][:1, :9]
    [found] = session.run(None, {session.get_inputs()[0].name: shorter.numpy()})
    with torch.no_grad():
        expected: Tensor = model(shorter, use_cache=False).logits
    assert torch.from_numpy(found).shape == expected.shape
    assert (torch.from_numpy(found) - expected).abs().max() < 4 * result.max_difference


def test_groups_that_are_no_blocks_are_refused(tmp_path: Path) -> None:
    """Columns in the order of their activations have no block, and the layer is named."""
    layers = nn.Sequential(nn.Linear(64, 8)).eval()
    x = torch.randn(80, 64, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 9, 64)
    prepared = prepare(layers, GPTQConfig(group_size=32, static_groups=False, show_progress=False), args=(x,))
    prepared(x)
    model = convert(prepared)
    with pytest.raises(UnsupportedError, match=r"0: its groups are no even runs.*static_groups=True"):
        export(model, tmp_path / "m.onnx", Onnx(), args=(x,))
    assert list(tmp_path.iterdir()) == []


def test_options_are_checked() -> None:
    """Operators without blocks and files beyond 2 GB are no options."""
    with pytest.raises(ConfigError, match="opset must be from 21"):
        Onnx(opset=17)
    with pytest.raises(ConfigError, match="external_above"):
        Onnx(external_above=2**32)


@pytest.mark.parametrize("name", export_onnx.SCHEMES)
def test_the_example_runs(name: str, tmp_path: Path) -> None:
    """The files of the example are verified."""
    assert export_onnx.write(name, tmp_path).verified


def test_a_file_with_keys_and_values_generates(tmp_path: Path) -> None:
    """Half of the tokens at once, the others one by one, from an empty cache: the logits of all at once."""
    path = tmp_path / "m.onnx"
    result = written("LLaMA", "W8A8", path, Onnx(cache=True))
    assert result.verified
    assert result.max_difference == 0.0
    session = importlib.import_module("onnxruntime").InferenceSession(str(path))
    named = {each.name: len(each.shape) for each in session.get_inputs()}
    assert list(named)[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert named["past_key_values.0.key"] == 4
    assert [each.name for each in session.get_outputs()][:3] == ["logits", "present.0.key", "present.0.value"]


@pytest.mark.parametrize("logits", ["last", "all"])
def test_a_file_gives_the_logits_that_were_asked_for(logits: Literal["last", "all"], tmp_path: Path) -> None:
    """Those of the last token, before which the head computes nothing, or of all tokens of a call."""
    path = tmp_path / "m.onnx"
    assert written("LLaMA", "W4 g32", path, Onnx(cache=True, logits=logits)).verified
    session = importlib.import_module("onnxruntime").InferenceSession(str(path))
    kept = [each.shape for each in session.get_inputs() if each.name == "past_key_values.0.key"]
    empty = torch.zeros(2, kept[0][1], 0, kept[0][3]).numpy()
    tokens = SUBJECTS["LLaMA"].args[0][:, :5]
    inputs = {each.name: empty for each in session.get_inputs()}
    inputs |= {"input_ids": tokens.numpy(), "attention_mask": torch.ones_like(tokens).numpy()}
    inputs["position_ids"] = torch.arange(5).expand(2, -1).numpy()
    [found] = session.run(["logits"], inputs)
    assert found.shape == (2, 1 if logits == "last" else 5, 64)


def test_a_tied_head_is_in_the_file_once(tmp_path: Path) -> None:
    """The runtime turns the table of embeddings as it loads the file, and multiplies by its own kernel."""
    model = SUBJECTS["LLaMA"].make()
    model.config.tie_word_embeddings = True  # type: ignore[union-attr]
    tied: nn.Module = type(model)(model.config).eval()
    eight = affine(DType.int(8), granularity=PerGroup(1, 32))
    overrides = {"model.embed_tokens.weight": eight, "lm_head.weight": eight}
    config = PTQConfig(activation=no_quant(), weight=no_quant(), overrides=overrides)
    path, tokens = tmp_path / "m.onnx", SUBJECTS["LLaMA"].args
    result = export(
        convert(prepare(tied, config)),
        path,
        Onnx(),
        args=tokens,
        kwargs={"use_cache": False},
        verify="require",
    )
    assert result.verified
    onnx = importlib.import_module("onnx")
    held = [each for each in onnx.load(path).graph.initializer if each.data_type == onnx.TensorProto.INT8]
    assert [sorted(each.dims) for each in held].count([64, 128]) == 1
    run = optimized(path)
    assert run["MatMulNBits"] == 1
    assert run["DequantizeLinear"] <= 1  # of the rows that were read


def test_a_model_without_a_cache_of_all_tokens_is_refused(tmp_path: Path) -> None:
    """One that is no language model, with the way out."""
    with pytest.raises(UnsupportedError, match=r"keep none.*use cache=False"):
        written("linear stack", "W8A8", tmp_path / "m.onnx", Onnx(cache=True))
    with pytest.raises(ConfigError, match="cache"):
        Onnx(cache=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="logits"):
        Onnx(logits="first")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def narrow(config: PTQConfig) -> tuple[nn.Module, Tensor]:
    """Return a table and two layers quantized by `config`, and what they read."""
    model = nn.Sequential(nn.Embedding(8, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
    x = torch.arange(16).view(2, 8) % 8
    prepared = prepare(model, config, args=(x,))
    prepared(x)
    return convert(prepared).eval(), x


@pytest.mark.parametrize("bits", [7, 3])
def test_codes_that_share_bytes_become_integers_of_their_own(bits: int, tmp_path: Path) -> None:
    """Also rows of a table, which are unpacked as they are read."""
    weight = affine(DType.int(bits))
    model, x = narrow(PTQConfig(activation=no_quant(), weight=weight, target=profiles.ONNX_RUNTIME))
    result = export(model, tmp_path / "m.onnx", Onnx(), args=(x,), verify="require")
    assert result.sqnr > BLOCKS


def test_groups_of_8_bits_with_fixed_inputs_are_refused(tmp_path: Path) -> None:
    """ONNX Runtime loads such a file and fails to run it."""
    weight = affine(DType.int(8), granularity=PerGroup(size=16))
    model, x = narrow(PTQConfig(activation=affine(DType.uint(8)), weight=weight))
    with pytest.raises(UnsupportedError, match="int8 weights in groups") as caught:
        export(model, tmp_path / "m.onnx", Onnx(), args=(x,))
    assert [each.module for each in caught.value.problems] == ["1", "3"]
    with pytest.raises(ConfigError, match="a grid a token"):
        narrow(PTQConfig(activation=affine(DType.uint(8)), weight=weight, target=profiles.ONNX_RUNTIME))


def elements(spec: QuantSpec, *, inputs: QuantSpec | None = None) -> tuple[nn.Module, Tensor]:
    """Return two layers with weights by `spec`, and an input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(4, 64)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32)).eval()
    config = PTQConfig(activation=no_quant(), weight=spec, overrides={"0.act_in": inputs} if inputs else {})
    prepared = prepare(model, config, args=(x,))
    prepared(x)
    return convert(prepared), x


@pytest.mark.parametrize(
    ("spec", "format_"),
    [
        (affine(FP8()), "FLOAT8E4M3FN"),
        (affine(FP8("e5m2")), "FLOAT8E5M2"),
        (affine(FP8(), granularity=PerGroup(axis=1, size=32)), "FLOAT8E4M3FN"),
        (affine(MXFP8()), "FLOAT8E4M3FN"),
        (affine(MXFP8("e5m2")), "FLOAT8E5M2"),
    ],
    ids=str,
)
def test_weights_of_8_bit_elements_are_constants_of_float8(
    spec: QuantSpec, format_: str, tmp_path: Path
) -> None:
    """Scales stand beside them, and ONNX Runtime dequantizes them to the very weights."""
    model, x = elements(spec)
    path = tmp_path / "m.onnx"
    result = export(model, path, Onnx(), args=(x,), verify="require")
    assert result.max_difference == 0.0
    assert types(path)[format_] == 2
    assert operators(path)["DequantizeLinear"] == 2
    assert operators(path)["Transpose"] == 0
    onnx = importlib.import_module("onnx")
    held = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    for layer in ("0", "2"):
        [codes] = [each for name, each in held.items() if name.startswith(f"{layer}_weight_codes")]
        packed = model.get_submodule(f"{layer}.packed")
        assert isinstance(packed, FloatWeight)
        found = torch.from_numpy(codes.view("uint8"))
        assert torch.equal(found.T if found.shape != packed.codes.shape else found, packed.codes)


def test_embeddings_and_convolutions_of_fp8_are_run(tmp_path: Path) -> None:
    """Rows of the one are decoded as they are read, kernels of the other are reshaped: rounding of sums."""
    config = PTQConfig(activation=no_quant(), weight=affine(FP8()))
    tokens, image = torch.arange(8).view(2, 4), torch.ones(2, 4, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        read = nn.Sequential(nn.Embedding(16, 32), nn.Linear(32, 8)).eval()
        seen = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(288, 8)).eval()
    for number, (model, x) in enumerate(((read, tokens), (seen, image))):
        made = convert(prepare(model, config, args=(x,)))
        assert export(made, tmp_path / f"{number}.onnx", Onnx(), args=(x,), verify="require").sqnr > 80


@pytest.mark.parametrize("dtype", [MXFP4(), NVFP4()], ids=str)
def test_elements_without_a_kernel_are_refused(dtype: FloatFormat, tmp_path: Path) -> None:
    """Those of 4 bits, of which ONNX has a type and ONNX Runtime no kernel, with the layers."""
    model, x = elements(affine(dtype))
    with pytest.raises(UnsupportedError, match="no kernel for elements of 4 bits") as caught:
        export(model, tmp_path / "m.onnx", Onnx(), args=(x,))
    assert [each.module for each in caught.value.problems] == ["0.packed", "2.packed"]
    assert list(tmp_path.iterdir()) == []


def test_other_places_of_elements_are_refused(tmp_path: Path) -> None:
    """Inputs of FP8, and embeddings in blocks."""
    model, x = elements(affine(FP8()), inputs=affine(FP8()))
    with pytest.raises(UnsupportedError, match=r"0\.act_in: fp8_e4m3 has a place in weights only"):
        export(model, tmp_path / "m.onnx", Onnx(), args=(x,))
    table, tokens = nn.Sequential(nn.Embedding(16, 32)).eval(), torch.arange(8).view(2, 4)
    made = convert(prepare(table, PTQConfig(activation=no_quant(), weight=affine(MXFP8())), args=(tokens,)))
    with pytest.raises(UnsupportedError, match=r"0\.packed: rows of embeddings are decoded as they are read"):
        export(made, tmp_path / "m.onnx", Onnx(), args=(tokens,))
