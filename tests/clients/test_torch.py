"""torch compiles, traces, distributes, averages and checkpoints a converted model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from client_models import TOKENS, both, converted
from references import same_bits
from tico.quantization import PT2EConfig, convert, prepare
from tico_config import LifecycleError
from tico_modules import QuantizedModule

CLIENT = "torch"


class _Logits(nn.Module):
    """A language model as a function of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


def _graph() -> nn.Module:
    """Return a small network as a graph of PT2E."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    graph = prepare(model, PT2EConfig(), args=(torch.randn(4, 8),), inplace=False)
    graph(torch.randn(32, 8))
    return convert(graph)


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


# A kernel that sums in another order moves a value across an edge of a 16-bit grid now and then, by one step,
# 2**-16 of its range; the widest sum here has 128 terms.
INDUCTOR = 128 * 2**-16


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compile(kind: str, backend: str) -> None:
    """In one graph; without kernels of its own it gives the same bits."""
    for model in both(kind):
        expected = _Logits(model)(TOKENS)
        with torch.no_grad():
            found = torch.compile(_Logits(model), backend=backend, fullgraph=True)(TOKENS)
        assert same_bits(found, expected) if backend == "eager" else _close(found, expected, INDUCTOR)


def test_export(kind: str) -> None:
    """The program gives the same values."""
    for model in both(kind):
        expected = _Logits(model)(TOKENS)
        program = torch.export.export(_Logits(model), (TOKENS,), strict=False)
        assert _close(program.module()(TOKENS), expected, INDUCTOR)


def test_aot_inductor(kind: str, tmp_path: Path) -> None:
    """A package runs without Python, and gives the same values."""
    for number, model in enumerate(both(kind)):
        with torch.no_grad():
            expected = _Logits(model)(TOKENS)
            program = torch.export.export(_Logits(model), (TOKENS,), strict=False)
            path = torch._inductor.aoti_compile_and_package(
                program, package_path=str(tmp_path / f"{number}.pt2")
            )
            found = torch._inductor.aoti_load_package(path)(TOKENS)
        assert _close(found, expected, INDUCTOR)


def test_a_graph_is_compiled_and_saved(tmp_path: Path) -> None:
    """What PT2E makes is compiled, and saved as a program."""
    graph, x = _graph(), torch.randn(4, 8)
    expected = graph(x)
    assert same_bits(torch.compile(graph, backend="eager", fullgraph=True)(x), expected)
    program = torch.export.export(graph, (x,))
    torch.export.save(program, tmp_path / "graph.pt2")
    assert same_bits(torch.export.load(tmp_path / "graph.pt2").module()(x), expected)


def test_jit_trace(kind: str) -> None:
    """TorchScript gives the same bits."""
    for model in both(kind):
        with torch.no_grad():
            traced = torch.jit.trace(_Logits(model), (TOKENS,))  # type: ignore[no-untyped-call]  # torch's own
            assert same_bits(traced(TOKENS), _Logits(model)(TOKENS))


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """Forget what was compiled: the number of programs for one function is limited."""
    yield
    torch._dynamo.reset()


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """Make this process a group of its own."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _with_a_head(model: nn.Module) -> nn.Module:
    """Return a model with something to learn on top."""
    return nn.Sequential(_Logits(model), nn.Linear(64, 2))


@pytest.mark.usefixtures("one_process")
def test_ddp(kind: str) -> None:
    """Buffers are broadcast before each call, and the float head learns."""
    for model in both(kind):
        whole = _with_a_head(copy.deepcopy(model))
        expected = whole(TOKENS)
        parallel = DistributedDataParallel(whole)
        for _ in range(2):
            assert same_bits(parallel(TOKENS), expected)
        parallel(TOKENS).sum().backward()
        assert whole.get_submodule("1").weight.grad is not None


@pytest.mark.usefixtures("one_process")
def test_fsdp2(kind: str) -> None:
    """Each block is sharded, the model computes the same bits and the head learns."""
    mesh = init_device_mesh("cpu", (1,))
    for model in both(kind):
        whole = _with_a_head(model)
        expected = whole(TOKENS).detach()
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(whole, mesh=mesh)
        assert same_bits(whole(TOKENS), expected)
        whole(TOKENS).sum().backward()


def test_distributed_checkpoint(kind: str, tmp_path: Path) -> None:
    """What is loaded in place of other codes gives the same bits."""
    for number, (model, other) in enumerate(zip(both(kind), both(kind), strict=True)):
        expected = model(TOKENS).logits
        save({"model": model.state_dict()}, checkpoint_id=tmp_path / str(number))
        state = {"model": other.state_dict()}
        for tensor in state["model"].values():
            tensor.zero_()
        load(state, checkpoint_id=tmp_path / str(number))
        other.load_state_dict(state["model"])
        assert same_bits(other(TOKENS).logits, expected)


AVERAGES: dict[str, Callable[[nn.Module], AveragedModel]] = {
    "mean": AveragedModel,
    "exponential": functools.partial(
        AveragedModel,
        multi_avg_fn=get_ema_multi_avg_fn(0.9),  # type: ignore[no-untyped-call]  # torch's own
    ),
}


@pytest.mark.parametrize("average", AVERAGES)
def test_averages_of_parameters(kind: str, average: str) -> None:
    """They leave codes alone: the average of one model is that model."""
    for model in both(kind):
        averaged = AVERAGES[average](model)
        averaged.update_parameters(model)
        averaged.update_parameters(model)
        assert _close(averaged(TOKENS).logits, model(TOKENS).logits, 1e-5)


def test_averages_over_buffers(kind: str, refused: Callable[[str], None]) -> None:
    """They would compute with codes as values, and are refused; the float model takes them."""
    ema = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]  # torch's own
    for model in both(kind):
        averaged = AveragedModel(model, multi_avg_fn=ema, use_buffers=True)
        for _ in range(3):
            averaged.update_parameters(model)
        if any(isinstance(module, QuantizedModule) for module in model.modules()):
            with pytest.raises(LifecycleError, match="codes are no values to average"):
                averaged(TOKENS)
        else:
            averaged(TOKENS)
    refused("codes are no values")


def _scores(model: nn.Module, embeddings: Tensor) -> Tensor:
    scores: Tensor = model(inputs_embeds=embeddings, use_cache=False).logits[:, -1, :3]
    return scores


def test_forward_derivatives(kind: str) -> None:
    """They are those of reverse mode."""
    for model in both(kind):
        x = model.get_input_embeddings()(TOKENS[:1, :4]).detach()

        score = functools.partial(_scores, model)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            found = torch.func.jacfwd(score)(x)
            expected = torch.func.jacrev(score)(x)
        # Sums of at most 128 products in another order, through a dozen layers.
        assert _close(found, expected, 12 * 128 * torch.finfo(torch.float32).eps)


def test_deepcopy_and_cast(kind: str) -> None:
    """A copy in bfloat16 computes near the model."""
    for model in (*both(kind), copy.deepcopy(converted(kind))):
        low = nn.Module.to(copy.deepcopy(model), torch.bfloat16)
        assert low(TOKENS).logits.dtype == torch.bfloat16
        assert low.dtype == torch.bfloat16
