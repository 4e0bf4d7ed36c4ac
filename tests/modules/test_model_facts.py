"""A report tells of the model what its modules show: bytes, grids, codes, and what was run on it."""

from __future__ import annotations

import json
import math

import attrs
import pytest
import torch
from torch import Tensor, nn

from tico.quantization import convert, prepare
from tico_config import ArtifactError, DType, GPTQConfig, PT2EConfig, PTQConfig
from tico_modules import (
    SQNR,
    LayerSize,
    ModelFacts,
    PackedWeight,
    QuantizedLinear,
    Report,
    RunFacts,
    load_quantized,
    named_modules,
    report,
    save_quantized,
    total_bytes,
    weight_sqnr,
)


def net() -> nn.Sequential:
    """Return two float layers with a norm between them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 8)).eval()


def quantized() -> nn.Module:
    """Return the net after GPTQ, and PTQ that keeps the codes."""
    model: nn.Module = net()
    for config in (GPTQConfig(group_size=16, show_progress=False), PTQConfig()):
        prepare(model, config)(inputs())
        model = convert(model)
    return model


def inputs() -> Tensor:
    """Return data to calibrate with."""
    return torch.linspace(-2, 2, 64 * 16).view(64, 16).sin()


def facts_of(model: nn.Module) -> ModelFacts:
    """Return what the report of `model` tells of it as a whole."""
    found = report(model).model
    assert found is not None
    return found


def sqnr_by_hand(weight: Tensor, packed: PackedWeight) -> float:
    """Return the definition, in one line."""
    change = packed.dequantize().double() - weight.double()
    return float(10 * torch.log10(weight.double().square().sum() / change.square().sum()))


@pytest.mark.parametrize("shape", [(3, 5), (7, 4, 3, 3), (5000, 1100)])
def test_sqnr_is_its_definition(shape: tuple[int, ...]) -> None:
    """Also where a weight is dequantized in several parts; 1e-9 is far above the rounding of float64 sums."""
    weight = torch.sin(torch.arange(math.prod(shape), dtype=torch.float32)).view(shape)
    packed = PackedWeight.round_to_nearest(weight, DType.uint(4), symmetric=False, group_size=None)
    assert weight_sqnr(weight, packed) == pytest.approx(sqnr_by_hand(weight, packed), rel=1e-9)


def test_sqnr_of_what_nothing_has_changed_is_none() -> None:
    """Zeros and weights that are on their grid have no ratio; neither has a weight without values."""
    packed = PackedWeight.round_to_nearest(torch.zeros(2, 4), DType.uint(4), symmetric=False, group_size=None)
    assert weight_sqnr(torch.zeros(2, 4), packed) is None
    assert weight_sqnr(packed.dequantize() + 0, packed) is None
    assert weight_sqnr(torch.zeros(2, 4, device="meta"), packed) is None


@pytest.mark.parametrize("config", [GPTQConfig(bits=4, show_progress=False), PTQConfig()])
def test_report_has_the_sqnr_of_each_weight(config: GPTQConfig | PTQConfig) -> None:
    """Of the weight that the algorithm was given, whichever algorithm it was."""
    model = net()
    prepared = prepare(model, config, inplace=False)
    prepared(inputs())
    converted = convert(prepared)
    figures = {line.path: dict(line.figures) for line in report(converted).layers}
    for path in ("0", "2"):
        layer, given = converted.get_submodule(path), model.get_submodule(path)
        assert isinstance(layer, QuantizedLinear)
        assert isinstance(given, nn.Linear)
        expected = sqnr_by_hand(given.weight.detach(), layer.packed)
        assert figures[path][SQNR] == pytest.approx(expected, rel=1e-9)


def test_sizes_are_those_of_the_model_before_and_after() -> None:
    """Codes count as the floats that they stand for, grids of activations as nothing."""
    found = facts_of(quantized())
    assert found.before == total_bytes(net())
    assert found.after == total_bytes(quantized())
    assert found.parameters == sum(each.numel() for each in net().parameters())
    assert sum(size.before or 0 for size in found.sizes) == found.before
    assert sum(size.after for size in found.sizes) == found.after
    first = next(size for size in found.sizes if size.path == "0")
    assert (first.weights, first.before) == (16 * 32, (16 * 32 + 32) * 4)


def test_markdown_ends_with_the_bytes() -> None:
    """Those before and after, and the bits of a weight with all that belongs to it."""
    model = quantized()
    packed = [each for _, each in named_modules(model) if isinstance(each, PackedWeight)]
    bits = 8 * sum(each.bytes for each in packed) / sum(math.prod(each.shape) for each in packed)
    assert report(model).to_markdown().splitlines()[-2] == ""
    assert f": {bits:.2f} bits a quantized weight" in report(model).to_markdown().splitlines()[-1]


def test_older_lines_are_kept_beside_the_newest() -> None:
    """What GPTQ has said of a layer is not lost when PTQ has the newest line."""
    found = facts_of(quantized())
    assert [run.name for run in found.runs] == ["GPTQConfig", "PTQConfig"]
    assert all(run.calls == 1 and run.seconds > 0 for run in found.runs)
    lost = {line.path: dict(line.figures) for line in found.earlier if line.algorithm == "gptq"}
    assert "loss" in lost["0"]
    assert "loss" in lost["2"]


def test_points_span_what_their_grids_can_hold() -> None:
    """From the value of the lowest code to that of the highest."""
    model = quantized()
    points = {point.path: point for point in facts_of(model).points}
    layer = model.get_submodule("0")
    assert isinstance(layer, QuantizedLinear)
    assert layer.act_in is not None
    low, high = layer.act_in(torch.tensor([-1e9, 1e9])).tolist()
    assert (points["0.act_in"].low, points["0.act_in"].high) == pytest.approx((low, high), rel=1e-6)


def test_codes_of_the_worst_weights_are_counted() -> None:
    """Every code once, the weight with the lowest SQNR first."""
    model = quantized()
    found = facts_of(model)
    ratios = {line.path: dict(line.figures)[SQNR] for line in found.earlier if SQNR in dict(line.figures)}
    assert [counted.path for counted in found.codes][:2] == sorted(ratios, key=lambda path: ratios[path])[:2]
    for counted in found.codes:
        weights = [each for path, each in named_modules(model) if path == f"{counted.path}.packed"]
        codes = [
            code
            for each in weights
            if isinstance(each, PackedWeight)
            for code in each.integer_codes().flatten().tolist()
        ]
        if weights:
            assert list(counted.counts) == [
                codes.count(counted.lowest + number) for number in range(len(counted.counts))
            ]


def test_what_a_graph_was_in_floats_is_not_known() -> None:
    """Its codes are plain tensors, so that nothing is said of what they were."""
    graph = prepare(net(), PT2EConfig(), args=(inputs(),), inplace=False)
    graph(inputs())
    found = report(convert(graph))
    assert found.model is not None
    assert (found.model.before, found.model.parameters, found.model.after > 0) == (None, None, True)
    assert {size.before for size in found.model.sizes} == {None}
    assert "floating point" not in found.to_markdown().splitlines()[-1]
    assert Report.from_json(found.to_json()).model == found.model


def test_a_saved_model_has_the_same_report(tmp_path: object) -> None:
    """All but the times, which files do not keep."""
    model = quantized()
    save_quantized(model, f"{tmp_path}")
    loaded = load_quantized(f"{tmp_path}", net())
    assert report(loaded) == report(model)
    assert report(loaded).model == report(model).model
    assert report(loaded).without_times().to_json() == report(model).without_times().to_json()


def test_json_of_a_model_comes_back() -> None:
    """Every field, times too."""
    found = report(quantized())
    again = Report.from_json(found.to_json())
    assert (again, again.model) == (found, found.model)
    assert again.to_json() == found.to_json()


VALUES = ModelFacts(
    name="Net", runs=(RunFacts(),), sizes=(LayerSize(path="", before=1, after=1),)
).to_values()


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"more": 1}, "more"),
        ({"parameters": -1}, "parameters"),
        ({"sizes": [{"path": "", "before": 1}]}, "after"),
        ({"points": [{"path": "x", "grid": "int8", "low": "a", "high": None}]}, "low"),
        ({"codes": [{"path": "x", "lowest": 0.5, "counts": [], "rows": 1, "of_rows": 1}]}, "lowest"),
        ({"runs": [{**attrs.asdict(RunFacts()), "versions": {}, "seconds": True}]}, "seconds"),
    ],
)
def test_other_json_of_a_model_is_refused(changed: dict[str, object], field: str) -> None:
    """Naming the field that is wrong, left over or missing."""
    text = json.dumps({"schema": 1, "layers": [], "model": {**VALUES, **changed}})
    with pytest.raises(ArtifactError) as caught:
        Report.from_json(text)
    assert field in {problem.field for problem in caught.value.problems}
