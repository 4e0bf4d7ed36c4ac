"""Reports say what was done to every module, as values."""

from __future__ import annotations

import json

import attrs
import pytest
from torch import nn

from tico_config import ArtifactError, DType
from tico_quantizers import LayerReport, QuantizedLinear, Report, Run, carry_over, remember, report
from tico_quantizers.testing import refused


def line(path: str, algorithm: str, reason: str = "") -> LayerReport:
    """Return the line of a module."""
    return LayerReport(path=path, module="Linear", algorithm=algorithm, weight="uint4", reason=reason)


def integer() -> QuantizedLinear:
    """Return an integer layer."""
    return QuantizedLinear.from_float(nn.Linear(2, 2), DType.uint(4))


def model_of_runs() -> tuple[nn.Sequential, Report, Report]:
    """Return a model whose first layer the second run alone has touched, and both runs."""
    model = nn.Sequential(integer(), nn.Sequential(integer(), nn.ReLU()))
    old = Report(layers=(line("1.0", "gptq"),))
    new = Report(layers=(line("0", "ptq"), line("1.0", "ptq"), line("1.1", "ptq", reason="no weight")))
    both = model.get_submodule("1.0")
    remember([both], Run(report=old))
    remember([model[0], both], Run(report=new))
    return model, old, new


def test_the_newest_run_speaks_for_a_module() -> None:
    """Also where an earlier module has not seen the older run."""
    model, _, new = model_of_runs()
    assert report(model) == new


def test_lines_stand_in_the_order_of_the_model() -> None:
    """Whatever the order of the run was."""
    model, _, new = model_of_runs()
    remember([model[0]], Run(report=Report(layers=tuple(reversed(new.layers)))))
    assert [one.path for one in report(model).layers] == ["0", "1.0", "1.1"]


def test_modules_that_no_run_speaks_for_are_listed() -> None:
    """Nothing is left out: what is float says why."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    assert [(one.path, one.module, one.reason) for one in report(model).layers] == [
        ("0", "Linear", "no algorithm was run on it"),
        ("1.0", "ReLU", "no algorithm was run on it"),
    ]


def test_a_part_of_a_converted_model_has_a_report() -> None:
    """Its paths are those within the part."""
    model, _, new = model_of_runs()
    found = report(model[1])
    assert [(one.path, one.algorithm) for one in found.layers] == [("0", "ptq"), ("1", "ptq")]
    assert found.layers[1].reason == new.layers[2].reason


def test_a_model_around_a_converted_one_has_a_report() -> None:
    """Its paths are those within the whole, and what stands at the old path is not taken for it."""
    model, _, _ = model_of_runs()
    whole = nn.Sequential(nn.Linear(2, 2), model)
    assert [(one.path, one.algorithm) for one in report(whole).layers] == [
        ("0", ""),
        ("1.0", "ptq"),
        ("1.1.0", "ptq"),
        ("1.1.1", "ptq"),
    ]


def test_a_replacement_remembers_the_runs() -> None:
    """What the first algorithm has done is not lost with the module that it left."""
    model, _, new = model_of_runs()
    replacement = integer()
    carry_over(model[0], replacement)
    model[0] = replacement
    assert report(model) == new


def test_json_comes_back() -> None:
    """Every field, in the same order; figures are floats."""
    layer = LayerReport(
        path="a.b",
        module="Linear",
        algorithm="gptq",
        reason="|\n",
        bits=4,
        group_size=32,
        seconds=0.5,
        figures=(("loss", 0.1), ("columns", 3.0)),
    )
    whole = Report(layers=(layer, line("c", "ptq")))
    assert Report.from_json(whole.to_json()) == whole
    told = json.loads(whole.to_json())
    assert (told["schema"], [row["path"] for row in told["layers"]], told["model"]) == (1, ["a.b", "c"], None)
    assert Report.from_json(whole.to_json()).layers[0].seconds == 0.5


def test_times_do_not_count_when_reports_are_compared() -> None:
    """The same work is the same report; without its times it is the same text, too."""
    slow, fast = (Report(layers=(attrs.evolve(line("a", "gptq"), seconds=s),)) for s in (2.0, 1.0))
    assert slow == fast
    assert slow.to_json() != fast.to_json()
    assert slow.without_times().to_json() == fast.without_times().to_json()
    assert "2.00 s" in slow.to_markdown()


ROW = json.loads(Report(layers=(line("a", "ptq"),)).to_json())["layers"][0]


def text_with(**fields: object) -> str:
    """Return the JSON of a report of one line with other `fields`."""
    return json.dumps({"schema": 1, "layers": [{**ROW, **fields}], "model": None})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "[" * 100_000,
        text_with(more=1),
        text_with(path=None),
        text_with(figures=[["loss"]]),
        text_with(bits=True),
        text_with(seconds="1"),
        text_with(figures={"loss": 1}),
        json.dumps({"schema": 2, "layers": [], "model": None}),
        json.dumps({"schema": 1, "layers": [], "model": None, "more": 1}),
        json.dumps({"schema": 1, "layers": []}),
    ],
    ids=range(13),
)
def test_other_json_is_refused(text: str) -> None:
    """Whatever it is, by one error."""
    with refused(None, ArtifactError, field="report") as caught:
        Report.from_json(text)
    assert caught.value.expected == "JSON as Report.to_json() gives it"


def test_markdown_is_one_row_a_module() -> None:
    """Whatever a path or reason holds, it stays in its cell."""
    text = Report(layers=(line("a|b", "ptq", reason="one\ntwo"),)).to_markdown()
    assert text.splitlines()[2:] == [r"| a\|b | Linear | ptq | uint4 | float | one two |"]
    assert str(Report()) == Report().to_markdown()


def expert(number: int, path: str = "layers.0.experts.down_proj", **fields: object) -> LayerReport:
    """Return the line of an expert."""
    given = {"weight": "uint4 per row", "module": "ExpertLinear", "figures": (("tokens", number + 1.0),)}
    return LayerReport(path=f"{path}.{number}", algorithm="gptq", **(given | fields))  # type: ignore[arg-type]


def test_many_experts_share_a_row_with_ranges() -> None:
    """What is said of some of them is counted; what was made of others differently has a row of its own."""
    starved = [expert(number, reason=f"it read {number} tokens, too few") for number in range(3)]
    lines = (*starved, *(expert(number) for number in range(3, 127)), expert(127, weight="float"))
    text = Report(layers=lines).to_markdown()
    rows = text.splitlines()[2:]
    assert len(rows) == 2
    assert "layers.0.experts.down_proj.0…126 (127 experts)" in rows[0]
    assert "3 of 127: it read # tokens, too few" in rows[0]
    assert "tokens 1 to 127" in rows[0]
    assert "down_proj.127 |" in rows[1]


def test_every_expert_has_a_row_on_demand() -> None:
    """And so has each of a few, and each layer of the blocks of a model, however many."""
    many = Report(layers=tuple(map(expert, range(128))))
    assert len(many.to_markdown(every_expert=True).splitlines()) == 130
    few = Report(layers=tuple(map(expert, range(4))))
    assert few.to_markdown() == few.to_markdown(every_expert=True)
    blocks = Report(layers=tuple(expert(n, "layers", module="Linear") for n in range(40)))
    assert len(blocks.to_markdown().splitlines()) == 42


def test_experts_in_a_list_share_a_row_for_each_of_their_layers() -> None:
    """Those of one block, not those of all blocks."""
    lines = [
        LayerReport(path=f"layers.{block}.experts.{number}.{name}", module="Linear", algorithm="gptq")
        for block in range(2)
        for number in range(16)
        for name in ("up", "down")
    ]
    rows = Report(layers=tuple(lines)).to_markdown().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [
        f"| layers.{block}.experts.0…15.{name} (16 experts)" for block in range(2) for name in ("up", "down")
    ]
