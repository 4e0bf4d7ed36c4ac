"""Models that no algorithm can work on: one sentence each, the same for every algorithm, with a way out."""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PT2EConfig,
    PTQConfig,
    SmoothQuantConfig,
    convert,
    prepare,
)
from tico.quantization.config import BaseConfig, UnsupportedError
from tico_quantizers import QuantizedLinear
from tico_quantizers.testing import unchanged
from tiny_models import values

AWQ = AWQConfig(group_size=None, show_progress=False)
CONFIGS = (
    PTQConfig(strict_wrap=False),
    GPTQConfig(show_progress=False),
    AWQ,
    SmoothQuantConfig(),
    PT2EConfig(),
)

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


class _Model(nn.Module):
    """A norm and two layers that read each other."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(torch.relu(self.fc(self.norm(x))))
        return output


def _model() -> nn.Module:
    return _Model().eval()


def _compiled(model: nn.Module) -> nn.Module:
    made: object = torch.compile(model)
    assert isinstance(made, nn.Module)
    return made


def _traced(model: nn.Module) -> nn.Module:
    made: nn.Module = torch.jit.trace(model, values(0, 2, 4))  # type: ignore[no-untyped-call]  # torch's own
    return made


def _sharded(model: nn.Module) -> nn.Module:
    fully_shard(model)
    return model


def _with_part(change: Callable[[nn.Module], object]) -> nn.Module:
    model = _model()
    vars(model)["_modules"]["fc"] = change(model.get_submodule("fc"))
    return model


def _compiled_in_place(path: str) -> nn.Module:
    model = _model()
    model.get_submodule(path).compile()
    return model


KINDS: dict[str, tuple[Callable[[], nn.Module], str | None, str]] = {
    "compiled": (lambda: _compiled(_model()), "OptimizedModule", "pass model._orig_mod"),
    "compiled part": (lambda: _with_part(_compiled), "fc", "put model.fc._orig_mod in its place"),
    "compiled in place": (lambda: _compiled_in_place(""), "_Model", "with inplace=False"),
    "part compiled in place": (lambda: _compiled_in_place("fc"), "fc", "with inplace=False"),
    "scripted": (lambda: torch.jit.script(_model()), "RecursiveScriptModule", "the Python module"),
    "traced": (
        lambda: _traced(_model()),
        "TopLevelTracedModule",
        "the Python module",
    ),
    "frozen": (
        lambda: torch.jit.freeze(torch.jit.script(_model())),
        "RecursiveScriptModule",
        "the Python module",
    ),
    "scripted part": (lambda: _with_part(torch.jit.script), "fc", "the Python module"),
    "data parallel": (lambda: DataParallel(_model()), "DataParallel", "pass model.module"),
    "data parallel part": (lambda: _with_part(DataParallel), "fc", "put model.fc.module in its place"),
    "without data": (lambda: _with_part(lambda part: part.to("meta")), "fc", "load its weights first"),
}


@every_config
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit")
def test_kind_of_model_is_refused_in_one_sentence(config: BaseConfig, kind: str) -> None:
    """The problem is one, names the outermost module, and says what to pass instead."""
    make, module, way = KINDS[kind]
    model = make()
    with pytest.raises(UnsupportedError) as caught:
        prepare(model, config, args=(values(0, 8, 4),), inplace=True)
    (problem,) = caught.value.problems
    assert problem.module == module
    assert way in str(problem)
    assert "\n" not in str(problem)


@every_config
@pytest.mark.parametrize("path", ["", "fc"])
def test_copy_of_a_compiled_model_is_not_compiled(config: BaseConfig, path: str) -> None:
    """The way out that the error names for `module.compile` works, and leaves the model compiled."""
    model = _compiled_in_place(path)
    prepared = prepare(model, config, args=(values(0, 8, 4),), inplace=False)
    prepared(values(0, 8, 4))
    converted = convert(prepared)
    assert all(module._compiled_call_impl is None for module in converted.modules())
    assert model.get_submodule(path)._compiled_call_impl is not None


def test_compiled_prepared_model_is_unpacked_for_convert() -> None:
    """The compiled shell was never prepared; what is in it was."""
    compiled = _compiled(prepare(_model(), GPTQConfig(show_progress=False)))
    with pytest.raises(UnsupportedError, match=r"pass model\._orig_mod"):
        convert(compiled)


@pytest.fixture
def one_process() -> Iterator[None]:
    """Make a process group of this process alone."""
    seconds = dt.timedelta(seconds=30)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1, timeout=seconds)
    yield
    dist.destroy_process_group()


DISTRIBUTED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "DDP": (DistributedDataParallel, "pass model.module"),
    "FSDP": (
        lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu")),
        "pass model.module",
    ),
    "FSDP2": (_sharded, "call prepare before the model is sharded"),
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("kind", DISTRIBUTED)
@pytest.mark.filterwarnings("ignore")
def test_model_of_many_processes_is_refused(kind: str) -> None:
    """Each process would quantize its own data or its own part, and no two agree."""
    wrap, way = DISTRIBUTED[kind]
    model = wrap(_model())
    with pytest.raises(UnsupportedError) as caught:
        prepare(model, GPTQConfig(show_progress=False))
    assert way in str(caught.value)


def _exported() -> nn.Module:
    return torch.export.export(_model(), (values(0, 8, 4),)).module()


def _quantized_graph() -> nn.Module:
    prepared = prepare(_model(), PT2EConfig(), args=(values(0, 8, 4),), inplace=False)
    prepared(values(0, 8, 4))
    return convert(prepared)


GRAPHS = [
    (make, config)
    for make in (_exported, _quantized_graph)
    for config in CONFIGS[:-1]
    if not (make is _quantized_graph and isinstance(config, GPTQConfig))
]


@pytest.mark.parametrize(
    ("make", "config"), GRAPHS, ids=[f"{make.__name__}-{config.name}" for make, config in GRAPHS]
)
def test_graph_is_refused_by_what_needs_modules(make: Callable[[], nn.Module], config: BaseConfig) -> None:
    """It is called a graph, and the order that works is named; GPTQ takes the graphs of PT2E."""
    graph = make()
    with unchanged(graph), pytest.raises(UnsupportedError) as caught:
        prepare(graph, config)
    name = type(config).__name__
    assert f"{name} needs modules, and the model is an exported graph" in str(caught.value)
    assert f"take {name} first" in str(caught.value)


def test_exported_program_is_no_module() -> None:
    """The remedy names the module inside."""
    program = torch.export.export(_model(), (values(0, 8, 4),))
    with pytest.raises(UnsupportedError, match=r"program\.module\(\) for PT2E"):
        prepare(program, PT2EConfig(), inplace=False)  # type: ignore[arg-type]


def test_graph_of_modules_is_no_exported_graph() -> None:
    """What torch.fx has traced still has its layers."""
    prepared = prepare(torch.fx.symbolic_trace(_model()), GPTQConfig(show_progress=False))
    prepared(values(0, 8, 4))
    assert isinstance(convert(prepared).get_submodule("fc"), QuantizedLinear)


@every_config
@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile", "module.compile"])
def test_a_prepared_model_that_is_compiled_takes_no_data(config: BaseConfig, in_place: bool) -> None:
    """It says so in the first pass, and the model that prepare returned goes on to learn."""
    x = torch.linspace(-1, 1, 8).view(2, 4)
    whole = not isinstance(config, PT2EConfig)
    prepared = prepare(_model(), config, args=(x,), inplace=whole)
    twin = copy.deepcopy(prepared)
    if in_place:
        prepared.compile(backend="eager")
    compiled = prepared if in_place else torch.compile(prepared, backend="eager")
    with pytest.raises(UnsupportedError, match="compile what convert returns"):
        compiled(x)
    learning = twin if in_place else prepared  # a copy is not compiled
    learning(x)
    assert convert(learning)(x).shape == (2, 4)
