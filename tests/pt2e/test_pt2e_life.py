"""The life of a graph: prepared, copied, calibrated, converted, exported."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from graph_models import Function, calibrated, conv_net, decibels, encoder, photos, quantized
from tico.quantization import GPTQConfig, convert, prepare, report
from tico_config import (
    CalibrationError,
    ConfigError,
    LifecycleError,
    NumericsError,
    PT2EConfig,
    UnsupportedError,
    no_quant,
)
from tico_pt2e import QuantGraph
from tico_quantizers.testing import TorchCalls, calls_of, refused, sampled, unchanged
from tiny_models import TOKENS, tiny_llama, values


def test_states_that_do_not_fit() -> None:
    """Converting twice, and preparing what is prepared or converted for PT2E, are refused."""
    graph = calibrated(conv_net(), PT2EConfig(), photos(0))
    with refused(graph, LifecycleError, field="model"):
        prepare(graph, GPTQConfig())
    convert(graph)
    with refused(graph, LifecycleError, field="model"):
        convert(graph)
    with refused(graph, UnsupportedError, field="model"):
        prepare(graph, PT2EConfig(), args=(photos(0),), inplace=False)


def test_passes_that_fail_do_not_count() -> None:
    """A batch with NaN is refused with the point that saw it, and leaves the grids as they were."""
    x = photos(0)
    clean, graph = calibrated(conv_net(), PT2EConfig(), x), calibrated(conv_net(), PT2EConfig(), x)
    broken = 9 * x
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(NumericsError) as caught:
        graph(broken)
    assert caught.value.module == "stem.0.act_in"
    assert torch.equal(convert(graph)(x), convert(clean)(x))


def test_any_batch_runs_before_and_after() -> None:
    """Axis 0 stays free by itself, from one picture to as many as there are."""
    model, x = conv_net(), photos(0)
    graph = quantized(model, PT2EConfig(), x)
    for count in (1, 7):
        assert graph(photos(1, count)).shape == (count, 5)


class Paired(nn.Module):
    """Rows of two inputs, each multiplied with each."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the products."""
        return torch.relu(x @ y.transpose(0, 1))


def test_named_axes_stay_free_and_others_do_not() -> None:
    """The config says which axes are free; axes of one name have one size."""
    examples = values(0, 4, 8), values(1, 4, 8)
    free = PT2EConfig(dynamic_shapes={"x": {0: "rows"}, "y": ("rows",)})
    graph = quantized(Paired(), free, *examples)
    assert graph(values(0, 7, 8), values(1, 7, 8)).shape == (7, 7)
    with refused(graph, UnsupportedError, field="y"):
        graph(values(0, 7, 8), values(1, 6, 8))
    fixed = quantized(Paired(), PT2EConfig(dynamic_shapes={}), *examples)
    with refused(fixed, UnsupportedError, field="x"):
        fixed(values(0, 7, 8), values(1, 7, 8))


def test_axes_that_do_not_exist_are_refused() -> None:
    """No such input, too many axes, and an example too small for an axis to be free."""
    x, y = values(0, 1, 8), values(1, 4, 8)
    shapes = {"z": ("rows",), "y": ("a", "b", "c"), "x": ("rows",)}
    model = Paired()
    with refused(model, ConfigError, field="dynamic_shapes['x']") as caught:
        prepare(model, PT2EConfig(dynamic_shapes=shapes), args=(x, y), inplace=False)
    assert [problem.field for problem in caught.value.problems] == [
        f"dynamic_shapes[{name!r}]" for name in "xyz"
    ]


def test_constants_of_the_export_are_checked() -> None:
    """A keyword that is no tensor holds for every call."""

    class Scaled(nn.Module):
        def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
            return torch.relu(x) * factor

    prepared = prepare(Scaled(), PT2EConfig(), args=(values(0, 4, 8),), kwargs={"factor": 2.0}, inplace=False)
    prepared(values(1, 4, 8), factor=2.0)
    with refused(prepared, UnsupportedError, field="factor"):
        prepared(values(1, 4, 8), factor=3.0)


@pytest.mark.parametrize("make", ["net", "encoder"])
def test_a_graph_survives_export_files_and_compilation(make: str) -> None:
    """Exported again, saved, loaded, compiled, copied: the same bits, for another batch size as well."""
    model, x, other = (
        (conv_net(), photos(0), photos(1, 7))
        if make == "net"
        else (encoder(), values(0, 4, 6, 16), values(1, 7, 6, 16))
    )
    graph = quantized(model, PT2EConfig(), x)
    program = torch.export.export(graph, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    compiled = torch.compile(graph, backend="eager", fullgraph=True)
    for each in (loaded, compiled, copy.deepcopy(graph)):
        assert torch.equal(each(other), graph(other))
    assert isinstance(graph.eval().train(), QuantGraph)


def test_pickling_is_refused() -> None:
    """Fx cannot pickle an exported graph; the error names the way that works."""
    graph = quantized(nn.Linear(4, 4), PT2EConfig(), values(0, 4, 4))
    with refused(graph, UnsupportedError, field="model") as caught:
        pickle.dumps(graph)
    assert "torch.export.save" in str(caught.value)


def test_in_place_is_refused_with_the_right_call() -> None:
    """The default of `prepare` cannot hold here: the error shows what to write."""
    model = conv_net()
    with refused(model, UnsupportedError, field="inplace") as caught:
        prepare(model, PT2EConfig(), args=(photos(0),))
    assert "prepare(model, config, args=…, kwargs=…, inplace=False)" in str(caught.value)


def test_example_inputs_are_required_and_checked() -> None:
    """None at all, too many, of a wrong name."""
    model, x = conv_net(), photos(0)
    for args, kwargs in ((None, None), ((x, x), None), ((), {"y": x})):
        with refused(model, ConfigError, field="args"):
            prepare(model, PT2EConfig(), args=args, kwargs=kwargs, inplace=False)
    with refused(model, ConfigError, field="x"):
        prepare(model, PT2EConfig(), args=(torch.empty(4, 3, 8, 8, device="meta"),), inplace=False)


def test_what_cannot_be_exported_is_refused_with_the_place() -> None:
    """The exporter's reason in a sentence, and the module whose code it did not take."""

    class Deciding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.Linear(4, 4), Deciding()).eval()
    with refused(model, UnsupportedError, field="model", module="1") as caught:
        prepare(model, PT2EConfig(), args=(values(0, 4, 4),), inplace=False)
    assert "data-dependent" in str(caught.value)
    with refused(model, UnsupportedError, field="model", module="0"):
        prepare(model, PT2EConfig(), args=(values(0, 4, 5),), inplace=False)


def test_training_mode_and_models_without_operators_are_refused() -> None:
    """Dropout would be exported as it is; a model of nothing known has nothing to quantize."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    with refused(model, CalibrationError, field="training", module="1"):
        prepare(model, PT2EConfig(), args=(values(0, 4, 4),), inplace=False)
    plain = Function(torch.cumsum)
    with refused(plain, ConfigError, field="model"):
        prepare(Function(lambda x: torch.cumsum(x, 0)), PT2EConfig(), args=(values(0, 4, 4),), inplace=False)


def test_aliases_and_unused_inputs_pass() -> None:
    """An input that is returned comes back as it is, one that is not read may be anything of its shape."""
    model = Function(lambda x, unused: (x, torch.relu(x), x.view(-1)))
    graph = quantized(model, PT2EConfig(), values(0, 4, 4), values(1, 4, 4))
    x = values(2, 4, 4)
    same, _, flat = graph(x, values(3, 4, 4))
    assert torch.equal(same, x)
    assert torch.equal(flat, x.view(-1))


def test_writes_in_place_are_made_functional() -> None:
    """A model that writes to its own intermediate tensors is quantized like one that does not."""

    def written(x: Tensor) -> Tensor:
        y = torch.relu(x)
        y[:, 0] = 0.5
        return y.add_(1).mul_(2)

    model, x = Function(written), values(0, 4, 4)
    graph = quantized(model, PT2EConfig(), x.clone())
    assert (graph(x.clone()) - model(x.clone())).abs().max() < 0.1


def test_state_that_the_model_writes_is_refused() -> None:
    """A buffer that changes from call to call has no one grid; the error names node and buffer."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = nn.Buffer(torch.zeros(()))
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            return torch.as_tensor(self.layer(x))

    model = Counting().eval()
    with refused(model, UnsupportedError, field="model") as caught:
        prepare(model, PT2EConfig(), args=(values(0, 4, 4),), inplace=False)
    assert "writes to count" in str(caught.value)


def test_control_flow_stays_float() -> None:
    """A branch that depends on data is left as it is, and counted."""

    def chosen(x: Tensor) -> Tensor:
        y = torch.relu(x)
        result: Tensor = torch.cond(y.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (y,))
        return result

    model, x = Function(chosen), values(0, 4, 4)
    graph = quantized(model, PT2EConfig(), x)
    assert (graph(x) - model(x)).abs().max() < 0.1


def test_weights_that_no_grid_holds_are_refused_in_prepare() -> None:
    """NaN in a weight names the layer."""
    model = conv_net()
    with torch.no_grad():
        model.wide.weight[1, 2] = float("inf")
    with refused(model, NumericsError, module="wide", field="weight"):
        prepare(model, PT2EConfig(), args=(photos(0),), inplace=False)


def test_overrides_that_match_nothing_are_refused_together() -> None:
    """A path, a type and an operator that do not exist, each with the nearest that does."""
    model = conv_net()
    config = PT2EConfig(
        overrides={"stemm.0": {"dtype": PT2EConfig().weight.dtype}},
        module_types={"Conv3d": PT2EConfig().weight},
        operators={"convv2d": PT2EConfig().weight},
    )
    with refused(model, ConfigError, field="overrides") as caught:
        prepare(model, config, args=(photos(0),), inplace=False)
    assert [problem.field for problem in caught.value.problems] == ["overrides", "module_types", "operators"]
    assert "stem.0" in str(caught.value)
    assert "'Conv2d'" in str(caught.value)


def test_conversions_that_fail_anywhere_change_nothing() -> None:
    """Wherever `convert` fails, in place or not, the graph stays prepared, and then gives the same bits."""
    x = photos(1)
    expected = convert(calibrated(conv_net(), PT2EConfig(), photos(0)))(x)
    graph = calibrated(conv_net(), PT2EConfig(), photos(0))
    count = calls_of(lambda: convert(graph, inplace=False))
    for index, call in enumerate(sampled(count, 12)):
        error = (RuntimeError, KeyboardInterrupt, MemoryError)[index % 3]
        with unchanged(graph), pytest.raises(error, match="injected"), TorchCalls(call, error):
            convert(graph, inplace=index % 2 == 0)
    assert torch.equal(convert(graph)(x), expected)


def test_formats() -> None:
    """bfloat16 models keep their format; float64, which the operators do not take, is refused by name."""
    x = values(0, 8, 4)
    narrow = nn.Linear(4, 4).to(torch.bfloat16)
    graph = quantized(narrow, PT2EConfig(), x.to(torch.bfloat16))
    assert graph(x.to(torch.bfloat16)).dtype == torch.bfloat16
    wide = nn.Linear(4, 4).to(torch.float64)
    with refused(wide, ConfigError, field="model") as caught:
        prepare(wide, PT2EConfig(), args=(x.double(),), inplace=False)
    assert "linear in torch.float64" in str(caught.value)


def test_integer_modules_are_exported_with_their_weights() -> None:
    """What GPTQ has left in a module comes out as the graph's constants, exact where weights stay float."""
    model, x = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), values(0, 64, 16)
    prepare(model, GPTQConfig(show_progress=False))
    model(x)
    convert(model)
    config = PT2EConfig(activation=no_quant(), weight=no_quant())
    assert torch.equal(quantized(model, config, x)(x), model(x))
    graph = quantized(model, PT2EConfig(), x)
    assert {"0", "2"} <= {line.path for line in report(graph).layers if line.weight.startswith("uint8")}


def test_a_language_model_is_quantized() -> None:
    """Norms written out, rotary embeddings, masks and grouped queries: a tiny LLaMA, any batch."""
    model = tiny_llama()
    options = {"input_ids": TOKENS, "use_cache": False}
    graph = prepare(model, PT2EConfig(), kwargs=options, inplace=False)
    graph(**options)
    graph = convert(graph)
    tokens = TOKENS.flip(0).repeat(2, 1)
    logits = graph(input_ids=tokens, use_cache=False).logits
    assert decibels(model(tokens).logits, logits) > 25
