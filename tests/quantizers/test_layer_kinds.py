"""Every kind of layer is quantized for exactly what its weight is multiplied by."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from tico.quantization import GPTQConfig, convert, prepare
from tico_config import ConfigError
from tico_modules._layers.quantized_conv_transpose import ConvTransposeSettings
from tico_quantizers import QuantizedLinear, QuantizedModule, load_quantized, save_quantized
from tico_quantizers.layers import as_layer, columns, groups, input_rows, output_added, shape
from tico_quantizers.solvers import solve
from tico_quantizers.testing import refused, same_tensors, tensors_of
from tiny_models import TOKENS, logits, values

CONFIG = GPTQConfig(show_progress=False)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")


@attrs.frozen(eq=False)
class Case:
    """A layer with an input, and how it is called."""

    make: Callable[[], nn.Module]
    size: tuple[int, ...]
    output_size: tuple[int, ...] | None = None


CASES: dict[str, Case] = {
    "linear": Case(lambda: nn.Linear(6, 4), (3, 5, 6)),
    "transposed linear": Case(lambda: Conv1D(4, 6), (3, 5, 6)),  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    "conv1d, same, even kernel": Case(lambda: nn.Conv1d(2, 3, 4, padding="same"), (2, 2, 7)),
    "conv1d, without a batch": Case(lambda: nn.Conv1d(2, 3, 2), (2, 7)),
    "conv2d, groups": Case(lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 4)),
    "conv2d, depthwise, dilation": Case(lambda: nn.Conv2d(4, 8, 2, groups=4, dilation=2), (2, 4, 5, 6)),
    "conv2d, circular, stride": Case(
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", stride=2), (2, 2, 5, 6)
    ),
    "conv2d, reflect": Case(
        lambda: nn.Conv2d(2, 3, (3, 2), padding=(2, 1), padding_mode="reflect"), (2, 2, 4, 4)
    ),
    "conv2d, replicate, same": Case(
        lambda: nn.Conv2d(2, 2, 3, padding="same", padding_mode="replicate", dilation=2), (1, 2, 4, 5)
    ),
    "conv3d, groups": Case(
        lambda: nn.Conv3d(2, 4, 2, groups=2, stride=(1, 2, 1), padding=1), (1, 2, 3, 4, 3)
    ),
    "conv3d, replicate": Case(
        lambda: nn.Conv3d(2, 2, 2, padding=1, padding_mode="replicate"), (1, 2, 2, 3, 2)
    ),
    "transposed 1d": Case(lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1), (2, 2, 5)),
    "transposed 1d, cut short": Case(lambda: nn.ConvTranspose1d(2, 3, 2, stride=3, padding=2), (2, 2, 5)),
    "transposed 1d, output size": Case(lambda: nn.ConvTranspose1d(2, 3, 3, stride=3), (2, 2, 4), (14,)),
    "transposed 2d, groups, dilation": Case(
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2, dilation=(1, 2), output_padding=1),
        (2, 4, 3, 4),
    ),
    "transposed 3d": Case(lambda: nn.ConvTranspose3d(2, 2, 2, stride=(2, 1, 2)), (1, 2, 2, 3, 2)),
}


def call(layer: nn.Module, case: Case, x: Tensor) -> Tensor:
    """Return what a layer makes of `x`."""
    output: Tensor = layer(x) if case.output_size is None else layer(x, output_size=case.output_size)
    return output


def rows_by_probes(layer: nn.Module, case: Case, x: Tensor) -> Tensor:
    """Return the rows (groups, rows, columns), found by kernels that are 0 but for a single 1."""
    view = as_layer(layer)
    assert view is not None
    probe, found = copy.deepcopy(layer).double(), []
    probe.register_parameter(
        "bias", None if not isinstance(layer, Conv1D) else nn.Parameter(torch.zeros(4).double())
    )
    by_output, count = shape(view), groups(view)
    for column in range(columns(view)):
        unit = torch.zeros(by_output[0], columns(view), dtype=torch.float64)
        unit[:, column] = 1
        unit = unit.view(by_output)
        if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            unit = ConvTransposeSettings.of(layer).swap_channels(unit)
        probe.weight = nn.Parameter(unit.T if isinstance(layer, Conv1D) else unit)
        with torch.no_grad():
            output = call(probe, case, x.double())
        channels = -1 if isinstance(layer, nn.Linear | Conv1D) else -len(by_output) + 1
        first = output.movedim(channels, 0).reshape(count, by_output[0] // count, -1)[:, 0]
        found.append(first)
    return torch.stack(found, 2)


@pytest.mark.parametrize("name", CASES)
def test_rows_are_what_the_weight_is_multiplied_by(name: str) -> None:
    """They equal, element for element, what probing the layer with unit kernels finds."""
    case = CASES[name]
    layer, x = case.make().eval(), values(1, *case.size)
    view = as_layer(layer)
    assert view is not None
    kwargs: dict[str, object] = {} if case.output_size is None else {"output_size": case.output_size}
    found = torch.cat([*input_rows(view, x, output_added(view, x, (x,), kwargs))], 1)
    assert torch.equal(found.double(), rows_by_probes(layer, case, x))


@pytest.mark.parametrize("name", CASES)
def test_each_group_is_solved_for_its_own_rows(name: str) -> None:
    """The codes are those that the solver gives for the Gram matrix of each group of channels."""
    case = CASES[name]
    layer, x = case.make().eval(), (values(2, *case.size) * 4).round()
    expected = []
    view = as_layer(layer)
    assert view is not None
    weight = layer.get_parameter("weight").detach()
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        weight = ConvTransposeSettings.of(layer).swap_channels(weight)
    weight = weight.T if isinstance(layer, Conv1D) else weight.flatten(1)
    parts = zip(weight.chunk(groups(view)), rows_by_probes(layer, case, x), strict=True)
    for part, rows in parts:
        expected.append(solve(part, rows.T @ rows, GPTQConfig(bits=4)).codes)  # whole numbers: exact
    prepared = prepare(layer, CONFIG)
    call(prepared, case, x)
    new = convert(prepared)
    assert isinstance(new, QuantizedModule)
    assert torch.equal(new.packed.integer_codes(), torch.cat(expected))
    wanted = call(new, case, x)
    assert wanted.shape == call(case.make(), case, x).shape


def test_a_gpt2_is_quantized_and_comes_back_from_a_file(tmp_path: Path) -> None:
    """Its layers become linear ones; they fit a float model, whose weights are transposed."""
    config = GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=40, n_positions=16)
    prepared = prepare(nn.Module.eval(GPT2LMHeadModel(config)), CONFIG)
    with torch.no_grad():
        prepared(TOKENS)
    quantized = convert(prepared)
    assert isinstance(quantized.get_submodule("transformer.h.1.attn.c_attn"), QuantizedLinear)
    save_quantized(quantized, tmp_path)
    loaded = load_quantized(tmp_path, GPT2LMHeadModel(config))
    assert same_tensors(tensors_of(quantized), tensors_of(loaded))
    assert torch.equal(logits(quantized), logits(loaded))


def test_an_order_of_columns_a_group_of_channels_is_refused() -> None:
    """Groups of columns by activation order would differ from channel group to channel group."""
    model = nn.Sequential(nn.Conv2d(4, 4, 2, groups=2)).eval()
    with refused(model, ConfigError, field="act_order", module="0") as caught:
        prepare(model, GPTQConfig(static_groups=False, group_size=4))
    assert "2 groups of channels" in caught.value.expected
    prepared = prepare(model, GPTQConfig(static_groups=False, show_progress=False))
    prepared(values(3, 2, 4, 3, 3))
    assert isinstance(convert(prepared).get_submodule("0"), QuantizedModule)
