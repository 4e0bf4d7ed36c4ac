"""How fast integer layers and a real model run, next to float32, bfloat16 and other libraries.

python benchmarks/inference.py layers       layers called from Python, and how far they are from the reference
python benchmarks/inference.py crossover    few tokens by packed codes against many by a product of floats
python benchmarks/inference.py smollm2      prefill and decoding of SmolLM2-135M
python benchmarks/inference.py memory       what SmolLM2-135M adds to the resident memory of a process

The candidates take turns in one process, and every ratio is the median over rounds of times in the same
round: seconds of the processor on one thread, of the clock on more. Peers are looked for on the path of
modules and in each ``--peer-path DIR``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from recorded import Recording, add_option, recording
from tico_config import DType, PerTensor
from tico_modules._kernels import native_kernels as kernels
from tico_modules._kernels.native_operators import product_dtype
from tico_observers import params_from_range
from tico_quantizers import (
    ActivationGrid,
    PackedWeight,
    Parts,
    QuantizedEmbedding,
    QuantizedLinear,
    load_quantized,
    save_quantized,
    set_backend,
)

Call = Callable[[], object]
Layer = Callable[[Tensor], object]

INT8, UINT8, UINT4 = DType.int(8), DType.uint(8), DType.uint(4)
PROMPT: Final = 512
COLUMNS: Final = "ms, times faster than float32 and bfloat16"
EXAMPLES: Final = Path(__file__).parents[1] / "examples"


def timed(candidates: Mapping[str, Call], rounds: int, least: float) -> dict[str, list[float]]:
    """Return the seconds that a call takes in each round, in which each is called for `least` seconds."""
    times = {name: max(1, round(least / max(_seconds(call, 1), 1e-9))) for name, call in candidates.items()}
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            taken[name].append(_seconds(call, times[name]))
    return taken


def _seconds(call: Call, times: int) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(times):
        call()
    return (clock() - start) / times


def speedup(taken: Mapping[str, Sequence[float]], name: str, base: str) -> float:
    """Return how many times faster `name` is than `base`: the median over rounds."""
    return statistics.median(b / t for b, t in zip(taken[base], taken[name], strict=True))


def report(
    record: Recording, title: str, taken: Mapping[str, Sequence[float]], noises: Mapping[str, str]
) -> None:
    """Print each candidate's median time, and how many times faster it is than both floats."""
    record.table(title, "ms", "float32", "bfloat16", *(["noise"] if noises else []), width=28)
    for name, times in taken.items():
        ratios = [f"{speedup(taken, name, base):.2f}" for base in ("float32", "bfloat16")]
        noise = [noises[name]] if name in noises else []
        record.row(name, f"{statistics.median(times) * 1e3:.3f}", *ratios, *noise)


def integer_layers(linear: nn.Linear) -> dict[str, QuantizedLinear]:
    """Return the integer forms of a layer that are measured, by the reference still."""
    eight = QuantizedLinear.from_float(linear, INT8, symmetric=True).packed
    four = QuantizedLinear.from_float(linear, UINT4, group_size=128).packed
    span = torch.tensor(4.0)
    static = ActivationGrid.static(
        params_from_range(-span, span, UINT8, symmetric=False, granularity=PerTensor())
    )
    token = ActivationGrid.per_token(INT8, symmetric=True)
    return {
        "W8A8 static": QuantizedLinear(Parts(packed=eight, act_in=static)),
        "W8A8 per token": QuantizedLinear(Parts(packed=eight, act_in=token)),
        "W8": QuantizedLinear(Parts(packed=eight)),
        "W4 group 128": QuantizedLinear(Parts(packed=four)),
    }


def layers(arguments: argparse.Namespace, record: Recording) -> None:
    """Print the table of layers."""
    sizes: list[int] = arguments.sizes
    tokens: list[int] = arguments.tokens
    for size in sizes:
        linear = nn.Linear(size, size, bias=False)
        references = integer_layers(linear)
        natives = integer_layers(linear)
        set_backend(nn.ModuleDict(natives), "native")
        peers = {name: peer for name, make in PEERS.items() if (peer := _peer(name, make, linear))}
        for count in tokens:
            x = torch.randn(count, size)
            narrow, half = x.bfloat16(), nn.Linear(size, size, bias=False, dtype=torch.bfloat16)
            candidates: dict[str, Call] = {"float32": _call(linear, x), "bfloat16": _call(half, narrow)}
            noises = {}
            for name, layer in natives.items():
                candidates[name] = _call(layer, x)
                candidates[f"{name}, bf16"] = _call(layer, narrow)
                noises[name] = f"{_noise(layer(x), references[name](x)):.1f} dB"
            candidates["W4 reference"] = _call(references["W4 group 128"], x)
            candidates |= {name: _call(peer, x) for name, peer in peers.items()}
            title = f"{size} x {size}, {count} tokens: {COLUMNS}, signal to noise of the native kernel"
            report(record, title, timed(candidates, arguments.rounds, 0.02), noises)


def _call(layer: Layer, x: Tensor) -> Call:
    return lambda: layer(x)


def _noise(output: Tensor, reference: Tensor) -> float:
    """Return the signal-to-noise ratio of `output` in decibels."""
    noise = (output - reference).square().sum().clamp(min=1e-30)
    return float(10 * torch.log10(reference.square().sum() / noise))


def _peer(name: str, make: Callable[[nn.Linear], Layer], linear: nn.Linear) -> Layer | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(linear)
    except ImportError as error:
        print(f"{name} left out: {str(error).splitlines()[0]}")
        return None


def torchao_int4(linear: nn.Linear) -> Layer:
    """Return torchao's layer with 4-bit weights in groups of 128, on bfloat16."""
    quantization = importlib.import_module("torchao.quantization")
    model = nn.Sequential(nn.Linear(linear.in_features, linear.out_features, bias=False).bfloat16())
    for_cpu = importlib.import_module("torchao.prototype.quantization.int4")
    quantization.quantize_(model, for_cpu.PrototypeInt4WeightOnlyConfig(group_size=128))
    return lambda x: model(x.bfloat16())


def onnxruntime_int8(linear: nn.Linear) -> Layer:
    """Return ONNX Runtime's product of 8-bit integers, activations quantized on a static grid."""
    onnx = importlib.import_module("onnx")
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    rows, columns = linear.weight.shape
    packed = QuantizedLinear.from_float(linear, INT8, symmetric=True).packed
    numbers = {
        "w": packed.integer_codes().to(torch.int8).T.contiguous().numpy(),
        "ws": packed.scale[:, 0].numpy(),
        "s": torch.tensor(0.03).numpy(),
        "z": torch.tensor(128, dtype=torch.uint8).numpy(),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("MatMulIntegerToFloat", ["q", "w", "s", "ws", "z"], ["y"], domain="com.microsoft"),
    ]
    return _session(nodes, [array(value, name) for name, value in numbers.items()], rows, columns)


def onnxruntime_int4(linear: nn.Linear) -> Layer:
    """Return ONNX Runtime's product with 4-bit weights in blocks of 128."""
    onnx = importlib.import_module("onnx")
    rows, columns = linear.weight.shape
    codes = torch.randint(0, 256, (rows, columns // 128, 64), dtype=torch.uint8)
    numbers = {"w": codes.numpy(), "ws": torch.rand(rows * columns // 128).numpy()}
    settings = {"K": columns, "N": rows, "bits": 4, "block_size": 128, "accuracy_level": 4}
    node = onnx.helper.make_node("MatMulNBits", ["x", "w", "ws"], ["y"], domain="com.microsoft", **settings)
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in numbers.items()]
    return _session([node], tensors, rows, columns)


def _session(nodes: Sequence[object], tensors: Sequence[object], rows: int, columns: int) -> Layer:
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    x = helper.make_tensor_value_info("x", number, ["t", columns])
    y = helper.make_tensor_value_info("y", number, ["t", rows])
    graph = helper.make_graph(nodes, "layer", [x], [y], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})


PEERS: Final[Mapping[str, Callable[[nn.Linear], Layer]]] = {
    "torchao int4": torchao_int4,
    "ONNX Runtime int8 static": onnxruntime_int8,
    "ONNX Runtime int4": onnxruntime_int4,
}


def crossover(arguments: argparse.Namespace, record: Recording) -> None:
    """Print how many times faster packed codes are than the product of floats, by number of tokens."""
    sizes: list[int] = arguments.sizes
    counts = (1, 4, 8, 12, 16, 24, 32, 48, 64)
    record.table("tokens: ratio", *map(str, counts))
    for size in sizes:
        made = integer_layers(nn.Linear(size, size, bias=False))
        for name in ("W8", "W4 group 128"):
            ratios = []
            for count in counts:
                x = torch.randn(count, size)
                few, many = _both_ways(made[name].packed)
                ways = {"few": _call(few, x.bfloat16()), "many": _call(many, x.to(product_dtype()))}
                taken = timed(ways, arguments.rounds, 0.02)
                ratios.append(f"{speedup(taken, 'few', 'many'):.2f}")
            record.row(f"{size} x {size}, {name}", *ratios)


def _both_ways(packed: PackedWeight) -> tuple[Layer, Layer]:
    """Return the product by packed codes and the one by floats, whatever the number of tokens."""
    if packed.bits == 8:
        eight = kernels.RowScaledProduct.of(packed)
        return eight.multiply_codes, eight.multiply_pieces
    four = kernels.GroupScaledProduct.of(packed)
    return four.few or four.multiply_pieces, four.multiply_pieces


def smollm2(arguments: argparse.Namespace, record: Recording) -> None:
    """Print what prefill and decoding take."""
    from language_models import load, text_of
    from real_models import smollm2_directory

    prompt = load(smollm2_directory(), PROMPT).windows(text_of("heldout"), PROMPT)
    names = ("float32", "bfloat16", "W8A8", "W8A8, bf16", "W4", "W4, bf16", "all but linear layers")
    models = {name: model_of(name) for name in names}
    steps: dict[str, Callable[[nn.Module], object]] = {
        f"prefill of {PROMPT} tokens": lambda model: prefill(model, prompt),
        f"{arguments.decoded} tokens decoded": lambda model: decode(model, prompt, arguments.decoded),
    }
    for what, run in steps.items():
        candidates = {name: _bound(run, model) for name, model in models.items()}
        taken = timed(candidates, arguments.rounds, 0.0)
        report(record, f"SmolLM2-135M, {what}: {COLUMNS}", taken, {})


def memory(arguments: argparse.Namespace, record: Recording) -> None:
    """Print the memory of the model, after prefill and decoding in a process of its own."""
    from real_models import smollm2_directory

    with tempfile.TemporaryDirectory() as folder:
        save_quantized(model_of("W4"), folder)
        title = "resident MB that SmolLM2-135M adds to a process that has used it, of it mapped from files"
        record.table(title, "resident", "mapped", "of float32", width=20)
        whole = 0
        for name in ("float32", "W4 reference", "W4"):
            where = str(smollm2_directory()) if name == "float32" else folder
            used, mapped = _resident(name, where, arguments.decoded)
            whole = whole or used
            record.row(name, f"{used / 1e6:.1f}", f"{mapped / 1e6:.1f}", f"{used / whole:.2f}")


def _bound(run: Callable[[nn.Module], object], model: nn.Module) -> Call:
    return lambda: run(model)


def model_of(name: str) -> nn.Module:
    """Return SmolLM2 in the format `name`; integer layers everywhere, the tied embedding in 8 bits.

    Of ``all but linear layers`` these give zeros, which shows what no kernel can save.
    """
    from language_models import load
    from real_models import smollm2_directory

    model = load(smollm2_directory(), PROMPT).model
    if name.startswith("W"):
        quantize(model, eight=name.startswith("W8A8"))
        set_backend(model, "native")
    if name.startswith("all but"):
        for module in model.modules():
            if isinstance(module, nn.Linear):
                vars(module)["forward"] = _zeros(module.out_features)
    return model.to(torch.bfloat16) if name.endswith(("bf16", "bfloat16")) else model


def _zeros(features: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.new_zeros(*x.shape[:-1], features)


def quantize(model: nn.Module, *, eight: bool) -> None:
    """Put integer layers in place of all linear ones: 8 bits with 8-bit activations, or 4 in groups of 64."""
    grid = ActivationGrid.per_token(INT8, symmetric=True) if eight else None
    for path, linear in [*model.named_modules()]:
        parent, _, name = path.rpartition(".")
        if isinstance(linear, nn.Linear) and path != "lm_head":
            layer = QuantizedLinear.from_float(
                linear, INT8 if eight else UINT4, symmetric=eight, group_size=None if eight else 64
            )
            parts = Parts(packed=layer.packed, bias=layer.bias, act_in=grid)
            setattr(model.get_submodule(parent), name, QuantizedLinear(parts))
    inner = model.get_submodule("model")
    table = inner.get_submodule("embed_tokens").get_parameter("weight")
    packed = PackedWeight.round_to_nearest(table, INT8, symmetric=True, group_size=None)
    inner.embed_tokens = QuantizedEmbedding(Parts(packed=packed))
    model.lm_head = QuantizedLinear(Parts(packed=packed, act_in=grid))


def prefill(model: nn.Module, prompt: Tensor) -> object:
    """Return the model's answer to `prompt`: the logits of its last token, and the cache."""
    answer: object = model(prompt, use_cache=True, logits_to_keep=1)
    return answer


def decode(model: nn.Module, prompt: Tensor, count: int) -> None:
    """Decode `count` tokens greedily after a few tokens of `prompt`."""
    tokens, cache = prompt[:, :8], None
    for _ in range(count):
        answer = model(tokens, use_cache=True, past_key_values=cache, logits_to_keep=1)
        cache, tokens = answer.past_key_values, answer.logits[:, -1:].argmax(-1)


def _resident(name: str, folder: str, decoded: int) -> list[int]:
    """Return what `resident` prints in a process of its own."""
    options = ("--threads", str(torch.get_num_threads()), "--decoded", str(decoded))
    command = [sys.executable, __file__, "resident", name, folder, *options]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [int(word) for word in printed.split()]


def resident(arguments: argparse.Namespace) -> None:
    """Load a model and use it once; print the bytes that it added to this process, and those mapped."""
    from language_models import load

    name, folder = arguments.sizes
    prompt = torch.arange(PROMPT).unsqueeze(0)
    importlib.import_module("transformers.models.llama.modeling_llama")
    nn.Linear(64, 64)(torch.randn(64, 64))
    before, mapped_before = _memory()
    if name == "float32":
        model = load(Path(folder), PROMPT).model
    else:
        model = load_quantized(folder)
        set_backend(model, "reference" if name.endswith("reference") else "native")
    prefill(model, prompt)
    decode(model, prompt, arguments.decoded)
    after, mapped_after = _memory()
    print(after - before, mapped_after - mapped_before)


def _memory() -> tuple[int, int]:
    """Return the resident bytes of this process, and those of them that are mapped, as Linux counts them.

    What has been freed, and the C library keeps for later, is given back first.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _, resident_pages, mapped_pages, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(resident_pages) * 4096, int(mapped_pages) * 4096


COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace, Recording], None]]] = {
    "layers": layers,
    "crossover": crossover,
    "smollm2": smollm2,
    "memory": memory,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=[*COMMANDS, "resident"])
    parser.add_argument("sizes", nargs="*", default=["1024", "2048", "4096"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--decoded", type=int, default=64, help="tokens to decode")
    parser.add_argument("--peer-path", action="append", default=[], help="a folder to look for peers in")
    add_option(parser)
    arguments = parser.parse_args(argv)
    sys.path += [str(EXAMPLES), *arguments.peer_path]
    torch.manual_seed(0)
    if arguments.what in ("layers", "crossover"):
        arguments.sizes = [int(size) for size in arguments.sizes]
    if arguments.what == "resident":
        torch.set_num_threads(arguments.threads[0])
        with torch.no_grad():
            resident(arguments)
        return
    with recording(arguments.result) as record, torch.no_grad():
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            print(f"\ntorch {torch.__version__}, threads: {threads}, rounds: {arguments.rounds}")
            COMMANDS[arguments.what](arguments, record)


if __name__ == "__main__":
    main()
