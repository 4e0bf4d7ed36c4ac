"""Values of very different magnitude on one grid: reported, and spared where nothing needs the grid."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
import torch
from torch import Tensor, nn

from graph_models import Function, decibels
from tico.quantization import PT2EConfig, convert, prepare, report
from tico.quantization.config import DType, affine
from tico_modules import LayerReport
from tico_quantizers.testing import seeded, values


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Head(nn.Module):
    """The end of a YOLO head: boxes of up to 320 pixels beside scores below 1."""

    def __init__(self, classes: int = 3, *, read_again: bool = False) -> None:
        super().__init__()
        self.box, self.score = nn.Conv2d(8, 4, 1), nn.Conv2d(8, classes, 1)
        self.after = nn.Conv1d(4 + classes, 4, 1) if read_again else None

    def forward(self, x: Tensor) -> Tensor:
        """Return boxes and scores (samples, 4 + classes, anchors), or what a layer makes of them."""
        boxes = self.box(x).sigmoid().flatten(2) * 320
        joined = torch.cat([boxes, self.score(x).sigmoid().flatten(2)], 1)
        if self.after is None:
            return joined.transpose(1, 2)
        after: Tensor = self.after(joined)
        return after


def quantized(model: nn.Module, config: PT2EConfig, *batches: Tensor) -> nn.Module:
    """Return the graph calibrated with the batches."""
    prepared = prepare(model, config, args=(batches[0],), inplace=False)
    for batch in batches:
        prepared(batch)
    return convert(prepared)


def joining(graph: nn.Module) -> LayerReport:
    """Return the line about the only concatenation."""
    [line] = [line for line in report(graph).layers if line.module == "cat"]
    return line


IMAGES = values(0, 4, 8, 10, 10)


def test_a_concatenation_that_only_the_output_reads_keeps_each_part_exact() -> None:
    """Scores have above 40 dB beside boxes of 320, and the report says why the concatenation is float."""
    model = seeded(Head)
    graph = quantized(model, PT2EConfig(), IMAGES)
    assert decibels(model(IMAGES)[..., 4:], graph(IMAGES)[..., 4:]) > 40
    assert joining(graph).activation == "float"
    assert "only the output reads it" in joining(graph).reason


def test_one_grid_for_all_parts_is_reported_as_spoiled() -> None:
    """Where it is asked for, the line names the point, the share that the larger part takes, and a remedy."""
    model = seeded(Head)
    graph = quantized(model, PT2EConfig(quantize_output_concat=True), IMAGES)
    scores = decibels(model(IMAGES)[..., 4:], graph(IMAGES)[..., 4:])
    assert scores < 10  # a step is more than 1, as it is 1/255 of 320
    line = joining(graph)
    assert "act_out uint8" in line.activation
    [(name, share)] = line.figures
    assert name == "act_out range taken by one part"
    assert share > 0.99
    assert "act_out is spoiled" in line.reason
    assert "range taken by one part" in str(report(graph))


def test_a_concatenation_in_the_middle_has_a_grid_and_is_reported() -> None:
    """What reads it takes one grid for all; with 16 bits, as the report advises, nothing is lost."""
    model = seeded(lambda: Head(read_again=True))
    graph = quantized(model, PT2EConfig(), IMAGES)
    line = joining(graph)
    assert "act_out uint8" in line.activation
    assert "16 bits" in line.reason
    finer = PT2EConfig(overrides={f"{line.path}.act_out": affine(DType.uint(16))})
    assert "uint16" in joining(quantized(model, finer, IMAGES)).activation


def test_an_override_decides_on_the_last_concatenation() -> None:
    """What speaks of the operator itself is stronger than where it stands."""
    config = PT2EConfig(operators={"cat": affine(DType.uint(16))})
    graph = quantized(seeded(Head), config, IMAGES)
    assert "act_out uint16" in joining(graph).activation


def test_concatenations_that_others_join_at_the_end_are_last_too() -> None:
    """Nothing but the output reads what they join, though values are moved in between."""
    model = Function(
        lambda x: torch.cat([torch.cat([x.relu() * 300, x.sigmoid()], 1).flatten(1), x.tanh().flatten(1)], 1)
    )
    lines = report(quantized(model, PT2EConfig(), IMAGES)).layers
    assert [line.activation for line in lines if line.module == "cat"] == ["float", "float"]


def test_a_channel_that_takes_the_range_is_reported() -> None:
    """Behind a convolution its channels are on axis 1; with weights alike, nothing is reported."""
    model = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Sigmoid()).eval()
    assert all(not line.figures for line in report(quantized(model, PT2EConfig(), IMAGES)).layers[1:])
    model.get_submodule("0").get_parameter("weight")[2] *= 3000
    [_, line, _] = report(quantized(model, PT2EConfig(), IMAGES)).layers
    assert [name for name, _ in line.figures] == ["act_out range taken by one channel"]


@pytest.mark.parametrize("sizes", [[4], [1, 3], [3, 1], [1, 1, 1, 1]], ids=str)
def test_ranges_do_not_depend_on_the_split_into_batches(sizes: list[int]) -> None:
    """Grids and shares are the same bits, as the ranges of channels and parts are maxima and minima."""
    config = PT2EConfig(quantize_output_concat=True, dynamic_shapes={"x": ("batch",)})
    model = seeded(Head)
    prepared = prepare(model, config, args=(IMAGES,), inplace=False)
    for batch in torch.split(IMAGES, sizes):
        prepared(batch)
    graph, whole = convert(prepared), quantized(model, config, IMAGES)
    assert torch.equal(graph(IMAGES), whole(IMAGES))
    assert report(graph).without_times() == report(whole).without_times()


def written_out(x: Tensor, weight: Tensor) -> Tensor:
    """Return the root-mean-square norm of `x`, as LLaMA's code has it."""
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Norm(nn.Module):
    """A norm that is written out, with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(values(5, 16))

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of `x` (..., 16)."""
        return written_out(x, self.weight)


def test_a_norm_that_is_written_out_is_one_operator() -> None:
    """Its mean square, here over six orders of magnitude, has no grid; the function is the same."""
    model, x = Norm().eval(), values(0, 64, 16) * torch.logspace(-2, 1, 64)[:, None]
    config = attrs.evolve(PT2EConfig(), activation=affine(DType.uint(16)))
    graph = quantized(model, config, x)
    assert [line.module for line in report(graph).layers[1:]] == ["rms_norm"]
    assert decibels(model(x), graph(x)) > 40
