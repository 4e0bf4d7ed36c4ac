"""Graphs of models of transformers and of a YOLO head beside torchao's and ExecuTorch's quantizers.

Run with ``python benchmarks/pt2e_models.py --peer-path DIR``, where DIR holds transformers, torchao and
executorch. Models are tiny, with random weights. SQNR, in decibels, is of data that calibration has not seen.
An operator is quantized where all that it reads as a float comes off a grid, biases and norms' weights aside.
The candidate ``layer inputs`` has grids where torchao's X86 quantizer has them: for what linear layers and
convolutions read, and their weights.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, cast

import attrs
import torch
from torch import Tensor, fx, nn

from pt2e import decibels
from recorded import Recording, add_option, recording
from tico.quantization import PT2EConfig, convert, prepare, report
from tico.quantization.config import INT8, UINT8, DType, affine, no_quant

Inputs = tuple[Tensor, ...]


@attrs.frozen(kw_only=True, eq=False)
class Case:
    """A model with calibration batches and a test batch; `measured` picks what is measured of its output."""

    name: str
    model: nn.Module
    batches: Sequence[Inputs]
    test: Inputs
    measured: Callable[[Tensor], Tensor] = lambda output: output


class _Class(Protocol):
    def __call__(self, *args: object, **kwargs: object) -> object: ...


class FirstOutput(nn.Module):
    """Calls a model of transformers with arguments of these names, and returns the first of its outputs."""

    def __init__(self, body: nn.Module, names: Sequence[str], options: Mapping[str, object]) -> None:
        """Keep the model."""
        super().__init__()
        self.body, self.names, self.options = body, tuple(names), dict(options)

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """Return the last hidden states."""
        given = [first] if second is None else [first, second]
        output: Tensor = self.body(**dict(zip(self.names, given, strict=True)), **self.options)[0]
        return output


def _body(
    kind: str, config: str, attention: str, options: Mapping[str, object], **sizes: object
) -> nn.Module:
    package = importlib.import_module("transformers")
    settings = cast("_Class", getattr(package, config))(**sizes, attn_implementation=attention)
    home = package
    if kind == "WhisperEncoder":
        home = importlib.import_module("transformers.models.whisper.modeling_whisper")
    torch.manual_seed(0)
    return cast("nn.Module", cast("_Class", getattr(home, kind))(settings, **options)).eval()


def _tokens(seed: int, samples: int, length: int) -> Tensor:
    return torch.randint(3, 128, (samples, length), generator=torch.Generator().manual_seed(seed))


def _mask(seed: int, samples: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(length // 2, length + 1, (samples, 1), generator=generator)
    return (torch.arange(length) < lengths).long()


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _case(name: str, model: nn.Module, inputs: Callable[[int], Inputs]) -> Case:
    return Case(name=name, model=model, batches=[inputs(seed) for seed in range(3)], test=inputs(9))


def llama(attention: str, length: int) -> Case:
    """Return LLaMA with causal attention."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "max_position_embeddings": 4096, "vocab_size": 128}
    body = _body("LlamaModel", "LlamaConfig", attention, {}, **sizes, **more)
    model = FirstOutput(body, ["input_ids"], {"use_cache": False})
    return _case(f"LLaMA, {attention}, {length} tokens", model, lambda seed: (_tokens(seed, 2, length),))


def bert(attention: str) -> Case:
    """Return BERT with samples of several lengths."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    body = _body("BertModel", "BertConfig", attention, {"add_pooling_layer": False}, vocab_size=128, **sizes)
    model = FirstOutput(body, ["input_ids", "attention_mask"], {})
    return _case(f"BERT, {attention}", model, lambda seed: (_tokens(seed, 4, 64), _mask(seed, 4, 64)))


def t5(attention: str) -> Case:
    """Return the encoder of T5 with samples of several lengths."""
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 128}
    model = FirstOutput(
        _body("T5EncoderModel", "T5Config", attention, {}, **sizes), ["input_ids", "attention_mask"], {}
    )
    return _case(f"T5 encoder, {attention}", model, lambda seed: (_tokens(seed, 4, 64), _mask(seed, 4, 64)))


def swin(attention: str) -> Case:
    """Return Swin with shifted windows."""
    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
    body = _body("SwinModel", "SwinConfig", attention, {}, window_size=4, **sizes)
    model = FirstOutput(body, ["pixel_values"], {})
    return _case(f"Swin, {attention}", model, lambda seed: (_noise(seed, 4, 3, 32, 32),))


def whisper(attention: str) -> Case:
    """Return the encoder of Whisper."""
    sizes = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128}
    more = {"num_mel_bins": 20, "max_source_positions": 50}
    body = _body("WhisperEncoder", "WhisperConfig", attention, {}, **sizes, **more)
    model = FirstOutput(body, ["input_features"], {})
    return _case(f"Whisper encoder, {attention}", model, lambda seed: (_noise(seed, 2, 20, 100),))


class YoloHead(nn.Module):
    """Boxes in pixels, by the expectation of distances to anchors, beside the scores of eight classes."""

    def __init__(self, bins: int = 8, classes: int = 8) -> None:
        """Make a stem of two scales with a branch for boxes and one for scores each."""
        super().__init__()
        self.bins, self.classes = bins, classes
        stems = [nn.Conv2d(3, 16, 3, 8, 1), nn.Conv2d(16, 32, 3, 2, 1)]
        self.stems = nn.ModuleList(nn.Sequential(stem, nn.SiLU()) for stem in stems)
        self.boxes = nn.ModuleList(nn.Conv2d(width, 4 * bins, 1) for width in (16, 32))
        self.scores = nn.ModuleList(nn.Conv2d(width, classes, 1) for width in (16, 32))
        self.expectation = nn.Conv2d(bins, 1, 1, bias=False)
        self.expectation.weight.data = torch.arange(float(bins)).view(1, bins, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (samples, 4 + classes, anchors) for images `x`."""
        raw, anchors, strides = [], [], []
        for stem, box, score, stride in zip(self.stems, self.boxes, self.scores, (8.0, 16.0), strict=True):
            x = stem(x)
            raw.append(torch.cat([box(x), score(x)], 1).flatten(2))
            rows, columns = x.shape[2:]
            grid = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
            anchors.append(torch.stack([grid[1], grid[0]]).flatten(1))
            strides.append(torch.full((rows * columns,), stride))
        boxes, scores = torch.split(torch.cat(raw, 2), [4 * self.bins, self.classes], 1)
        likely = boxes.view(-1, 4, self.bins, boxes.shape[-1]).transpose(2, 1).softmax(1)
        before, after = self.expectation(likely).squeeze(1).chunk(2, 1)
        first, last = torch.cat(anchors, 1) - before, torch.cat(anchors, 1) + after
        pixels = torch.cat([(first + last) / 2, last - first], 1) * torch.cat(strides)
        return torch.cat([pixels, scores.sigmoid()], 1)


def yolo() -> Case:
    """Return the YOLO head, of whose output the scores are measured."""
    torch.manual_seed(0)
    case = _case("YOLO head, scores", YoloHead().eval(), lambda seed: (_noise(seed, 2, 3, 320, 320),))
    return attrs.evolve(case, measured=lambda output: output[:, 4:])


CASES: Final[Mapping[str, Callable[[], Case]]] = {
    "llama-eager": lambda: llama("eager", 512),
    "llama-sdpa": lambda: llama("sdpa", 512),
    "llama-2048": lambda: llama("sdpa", 2048),
    "bert-eager": lambda: bert("eager"),
    "bert-sdpa": lambda: bert("sdpa"),
    "t5-eager": lambda: t5("eager"),
    "t5-sdpa": lambda: t5("sdpa"),
    "swin-eager": lambda: swin("eager"),
    "swin-sdpa": lambda: swin("sdpa"),
    "whisper-eager": lambda: whisper("eager"),
    "whisper-sdpa": lambda: whisper("sdpa"),
    "yolo": yolo,
}

Quantize = Callable[[nn.Module, Sequence[Inputs]], nn.Module]


def _ours(config: PT2EConfig) -> Quantize:
    def quantize(model: nn.Module, batches: Sequence[Inputs]) -> nn.Module:
        return convert(_calibrated(prepare(model, config, args=batches[0], inplace=False), batches))

    return quantize


def _calibrated(model: nn.Module, batches: Sequence[Inputs]) -> nn.Module:
    with torch.no_grad():
        for batch in batches:
            model(*batch)
    return model


def finer(model: nn.Module, batches: Sequence[Inputs]) -> nn.Module:
    """Quantize for ONNX Runtime, with 16 bits at the points that a first report calls spoiled."""
    config = PT2EConfig.onnx_runtime()
    lines = report(_ours(config)(model, batches)).layers
    points = [f"{line.path}.{name.split()[0]}" for line in lines for name, _ in line.figures if line.path]
    overrides = dict.fromkeys(points, affine(DType.uint(16)))
    return _ours(attrs.evolve(config, overrides=overrides))(model, batches)


def layer_inputs(model: nn.Module, batches: Sequence[Inputs]) -> nn.Module:
    """Quantize what layers read and their weights, and leave everything else in float."""
    lines = report(_ours(PT2EConfig())(model, batches)).layers
    layers = [line.path for line in lines if line.module.startswith(("linear", "conv"))]
    overrides = {f"{path}.act_in": affine(UINT8) for path in layers}
    overrides |= {f"{path}.weight": affine(INT8) for path in layers}
    config = PT2EConfig(activation=no_quant(), weight=no_quant(), overrides=overrides)
    return _ours(config)(model, batches)


def _peer(home: str, kind: str, settings: str, **options: object) -> Quantize:
    def quantize(model: nn.Module, batches: Sequence[Inputs]) -> nn.Module:
        flow = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
        module = importlib.import_module(home)
        quantizer = getattr(module, kind)()
        quantizer.set_global(getattr(module, settings)(**options))
        program = torch.export.export(model, batches[0])
        prepared: nn.Module = flow.prepare_pt2e(program.module(), quantizer)
        quantized: nn.Module = flow.convert_pt2e(_calibrated(prepared, batches))
        return quantized

    return quantize


CANDIDATES: Final[Mapping[str, Quantize]] = {
    "onnx_runtime()": _ours(PT2EConfig.onnx_runtime()),
    "16 bits where spoiled": finer,
    "xnnpack()": _ours(PT2EConfig.xnnpack()),
    "layer inputs": layer_inputs,
    "torchao X86": _peer(
        "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer",
        "X86InductorQuantizer",
        "get_default_x86_inductor_quantization_config",
    ),
    "ExecuTorch XNNPACK": _peer(
        "executorch.backends.xnnpack.quantizer.xnnpack_quantizer",
        "XNNPACKQuantizer",
        "get_symmetric_quantization_config",
        is_per_channel=True,
    ),
}

_MOVING: Final = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "flatten",
        "permute",
        "transpose",
        "t",
        "squeeze",
        "unsqueeze",
        "expand",
        "repeat",
        "select",
        "slice",
        "clone",
        "alias",
        "flip",
        "roll",
        "narrow",
        "index_select",
        "getitem",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "_to_copy",
        "to",
        "contiguous",
        "detach",
        "dropout",
        "repeat_interleave",
        "constant_pad_nd",
        "pad",
        "masked_fill",
    ]
)


def quantized_operators(model: nn.Module) -> int:
    """Return how many operators of a converted graph read nothing that is not on a grid."""
    on_grid: dict[fx.Node, bool] = {}
    count = 0
    for node in cast("fx.GraphModule", model).graph.nodes:
        parts = str(node.target).split(".")
        operator = parts[1] if len(parts) == 3 else getattr(node.target, "__name__", "")
        sources = node.all_input_nodes
        read = [on_grid.get(source, False) for source in sources if source.op != "get_attr"]
        if "quantize" in operator or operator in _MOVING:
            on_grid[node] = "dequantize" in operator or (operator in _MOVING and any(read))
            continue
        value = node.meta.get("val")
        computes = node.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point()
        biased = operator in ("linear", "conv1d", "conv2d") and len(read) > 2
        count += bool(computes and read and all(read[:2] if biased else read))
    return count


def measure(case: Case, candidates: Mapping[str, Quantize], record: Recording) -> None:
    """Print one line for each candidate."""
    record.table(case.name, "operators", "SQNR dB")
    with torch.no_grad():
        expected = case.measured(case.model(*case.test))
    for name, quantize in candidates.items():
        try:
            graph = quantize(copy.deepcopy(case.model), case.batches)
            with torch.no_grad():
                result = case.measured(graph(*case.test))
        except Exception as error:  # noqa: BLE001  # a peer may raise anything
            record.row(name, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80]}")
            continue
        record.row(name, str(quantized_operators(graph)), f"{decibels(expected, result):.2f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[*CASES], help="which to measure")
    parser.add_argument("--peer-path", action="append", default=[], help="a folder to look for packages in")
    add_option(parser)
    arguments = parser.parse_args(argv)
    sys.path += arguments.peer_path
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with recording(arguments.result) as record:
        for name in arguments.models:
            measure(CASES[name](), CANDIDATES, record)


if __name__ == "__main__":
    main()
