"""A report is one page that needs nothing else, whatever the model."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Final, Literal

import attrs
import pytest

from tico_modules import (
    SQNR,
    CodeCounts,
    LayerReport,
    LayerSize,
    ModelFacts,
    PointRange,
    Report,
    RunFacts,
)

VOID: Final = {"meta", "link", "input", "br", "hr", "img"}
ROLES: Final = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "norm")


class Page(HTMLParser):
    """The elements of a page: whether they are balanced, and what stands in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        """Count an element, and wait for its end."""
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """End the element that was opened last, and no other."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of each element of a kind."""
        return [found for name, found in self.elements if name == tag]

    @property
    def text(self) -> str:
        """What a person reads."""
        return " ".join(self.words)


@attrs.frozen
class Block:
    """What `compare` says of one block."""

    path: str
    own: float
    accumulated: float


@attrs.frozen
class Compared:
    """What `compare` says of a model."""

    lines: tuple[Block, ...] = (Block("0", 0.01, 0.02), Block("1", 0.0, float("inf")), Block("2", 0.03, 0.04))
    kl: float = 0.125
    agreement: float = 0.75
    rows: int = 64


@attrs.frozen
class Group:
    """What `ablation` says of one group."""

    by: Literal["kind", "block", "role"]
    name: str
    kind: str
    parts: int
    without: float
    alone: float


@attrs.frozen
class Ablated:
    """What `ablation` says of a model."""

    lines: tuple[Group, ...] = (
        Group("kind", "weights", "weights", 3, 0.1, float("inf")),
        Group("block", "layers.0", "", 4, 0.02, 0.0),
        Group("role", "mlp", "weights", 2, 0.4, 0.03),
        Group("role", "softmax", "activations", 2, 0.1, 0.25),
    )
    kl: float = 0.5
    rest: float = 1e-9
    rows: int = 64


@attrs.frozen
class Span:
    """How many values lie between two edges."""

    low: float
    high: float
    count: int


@attrs.frozen
class Grid:
    """What `watch_points` says of one grid."""

    path: str
    grid: str
    low: float | None
    high: float | None
    share_clipped: float | None
    bins: tuple[Span, ...]


@attrs.frozen
class Seen:
    """What `watch_points` says of a model."""

    points: tuple[Grid, ...]


def line(number: int) -> LayerReport:
    """Return the line of one module of a model of many blocks."""
    role = ROLES[number % len(ROLES)]
    path = f"model.layers.{number // len(ROLES)}.{role}"
    if role == "norm":
        return LayerReport(path=path, module="RMSNorm", algorithm="gptq", reason="it has no columns")
    return LayerReport(
        path=path,
        module="QuantizedLinear",
        algorithm="gptq",
        weight="uint4 group 64",
        activation="act_in uint8 static, act_out uint8 static",
        bits=4,
        group_size=64,
        seconds=0.25,
        figures=(
            ("loss", 1.0 + number % 7),
            ("loss if rounded to nearest", 4.0),
            ("damping", 0.01),
            ("tokens", 16384.0),
            (SQNR, 15.0 + (number * 37 % 101) / 10),
        ),
    )


def report_of(count: int) -> Report:
    """Return the report of a model of so many modules."""
    lines = tuple(map(line, range(count)))
    sizes = tuple(
        LayerSize(path=each.path, before=4000, after=600, packed=560, weights=1000)
        if each.bits
        else LayerSize(path=each.path, before=40, after=40)
        for each in lines
    )
    points = tuple(
        PointRange(path=f"{each.path}.act_in", grid="uint8 static", low=-1.0 - number, high=2.0)
        for number, each in enumerate(lines)
    )
    facts = ModelFacts(
        name="LlamaForCausalLM",
        parameters=1010 * count,
        before=sum(size.before or 0 for size in sizes),
        after=sum(size.after for size in sizes),
        runs=(
            RunFacts(
                config='{"config": {"kind": "GPTQConfig"}}', calls=3, seconds=1.5, versions=(("torch", "2"),)
            ),
        ),
        earlier=lines[:3],
        sizes=sizes,
        points=points,
        codes=(CodeCounts(path=lines[0].path, lowest=0, counts=(1,) * 16, rows=1, of_rows=2),)
        if lines
        else (),
    )
    return Report(layers=lines, model=facts)


def text_of(report: Report, folder: Path, comparison: Compared | None = None) -> str:
    """Return the page of a report."""
    return report.to_html(folder / "report.html", comparison).read_text(encoding="utf-8")


REPORTS: Final = {
    "none": Report(),
    "of one run": Report(layers=(line(0),)),
    "empty model": report_of(0),
    "one": report_of(1),
    "many": report_of(55),
    "graph": Report(
        layers=(line(0),),
        model=ModelFacts(
            name="GraphModule",
            parameters=None,
            before=None,
            sizes=(LayerSize(path=line(0).path, before=None, after=8),),
        ),
    ),
    "float": Report(
        layers=(LayerReport(path="", module="Linear", algorithm=""),),
        model=ModelFacts(name="Linear", sizes=(LayerSize(path="", before=0, after=0),)),
    ),
}


@pytest.mark.parametrize("comparison", [None, Compared(), Compared(lines=())])
@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_page_is_well_formed_and_needs_nothing_else(
    report: Report, comparison: Compared | None, tmp_path: Path
) -> None:
    """Elements end in the order in which they began, identifiers are unique, and no address is named."""
    text = text_of(report, tmp_path, comparison)
    page = Page(text)
    names = [found["id"] for _, found in page.elements if "id" in found]
    assert len(names) == len({*names})
    assert not re.search(r"(?i)(https?:)?//[a-z]", text.replace("</", ""))
    assert {found["href"] for found in page.of("link")} == {"data:,"}
    assert not any("src" in found for _, found in page.elements)
    links = {found["href"].removeprefix("#") for found in page.of("a")}
    assert links <= {*names}


def test_reports_are_compared_by_their_lines() -> None:
    """Data in other batches are another run, and may give the same model."""
    assert report_of(5) == Report(layers=report_of(5).layers)
    assert report_of(5) != Report(layers=report_of(4).layers, model=report_of(5).model)


def test_same_report_is_the_same_page(tmp_path: Path) -> None:
    """There is no time or chance in it."""
    assert text_of(report_of(55), tmp_path, Compared()) == text_of(report_of(55), tmp_path, Compared())


def test_page_can_be_read_aloud(tmp_path: Path) -> None:
    """Headings do not skip a level, pictures say what they show, heads of tables say what they head."""
    page = Page(text_of(report_of(55), tmp_path, Compared()))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    assert page.of("svg")
    assert all(found["role"] == "img" and found["aria-label"] for found in page.of("svg"))
    assert {found["scope"] for found in page.of("th")} == {"row", "col"}
    assert len(page.of("caption")) == len(page.of("table"))
    assert page.of("html") == [{"lang": "en"}]
    assert page.of("a")[0] == {"href": "#modules", "class": "skip"}


def test_page_says_at_first_sight_what_has_become_of_the_model(tmp_path: Path) -> None:
    """Name, bytes, bits, what stayed in float and why, the worst weight, and how near the output is."""
    report = report_of(55)
    text = Page(text_of(report, tmp_path, Compared())).text
    assert "Quantization report: LlamaForCausalLM" in text
    assert "26.8 kB" in text
    assert "of 176 kB in floating point: 15.2 %" in text
    assert "4.48" in text  # 560 bytes for 1000 weights
    assert "11 modules" in text
    assert "it has no columns" in text
    worst = min(dict(each.figures).get(SQNR, 99.0) for each in report.layers)
    assert f"{worst:.1f} dB" in text
    assert "75 %" in text
    assert "0.125" in text
    assert "GPTQConfig" in text
    assert "1.5 s in convert" in text


def test_five_thousand_modules_fit_into_five_megabytes(tmp_path: Path) -> None:
    """Each has a row, and modules that are alike share one in the summary."""
    text = text_of(report_of(5000), tmp_path)
    page = Page(text)
    assert len(text.encode()) < 5_000_000
    assert sum(found.get("scope") == "row" for found in page.of("th")) == 5000 + 4
    assert "model.layers.0…999.mlp.up_proj" in text


def test_more_than_a_table_can_hold_is_left_out_aloud(tmp_path: Path) -> None:
    """The page says how many modules it shows."""
    page = Page(text_of(report_of(6500), tmp_path))
    assert "6,000 of 6,500 modules, those with the most bytes; the JSON has all" in page.text


HOSTILE: Final = "</script><img src=x onerror=alert(1)>'\"&\0\ud800"


def test_no_name_becomes_part_of_the_page(tmp_path: Path) -> None:
    """Whatever stands in a path, a class, a reason or a config is text."""
    layer = attrs.evolve(line(0), path=HOSTILE, module=HOSTILE, weight=HOSTILE, reason=HOSTILE)
    facts = ModelFacts(
        name=HOSTILE,
        before=8,
        after=4,
        runs=(RunFacts(config='{"config": {"kind": "<b>"}}', model=HOSTILE, versions=((HOSTILE, HOSTILE),)),),
        earlier=(layer,),
        sizes=(LayerSize(path=HOSTILE, before=8, after=4, packed=2, weights=2),),
        points=(PointRange(path=HOSTILE, grid=HOSTILE, low=-1.0, high=1.0),),
        codes=(CodeCounts(path=HOSTILE, lowest=0, counts=(1, 2), rows=1, of_rows=1),),
    )
    left = LayerReport(path=f"{HOSTILE}.left", module="x", algorithm="", reason=HOSTILE)
    compared = Compared(lines=(Block(HOSTILE, 0.1, 0.2), Block(HOSTILE, 0.1, 0.2)))
    page = Page(text_of(Report(layers=(layer, left), model=facts), tmp_path, compared))
    assert not page.of("img")
    assert not page.of("b")
    assert len(page.of("script")) == 1
    assert "<img src=x onerror=alert(1)>" in page.text


def test_page_is_not_written_where_there_is_no_folder(tmp_path: Path) -> None:
    """It is the error of the file system."""
    with pytest.raises(FileNotFoundError):
        Report().to_html(tmp_path / "missing" / "report.html")


def test_page_tells_which_parts_hurt(tmp_path: Path) -> None:
    """The worst role stands first in the list; tables have every group, with what is gained without it."""
    file = report_of(5).to_html(tmp_path / "report.html", Compared(), Ablated())
    page = Page(file.read_text(encoding="utf-8"))
    assert "Over 64 rows of the output the mean KL divergence is 0.5 nats" in page.text
    assert page.words.index("softmax") < page.words.index("mlp")
    assert "#ablated" in {found["href"] for found in page.of("a")}
    for cell in ("layers.0", "+0.48", "0.25", "inf", "activations, 2 parts"):
        assert cell in page.words


@pytest.mark.parametrize("lines", [(), (Group("role", HOSTILE, "", 1, 0, 0),)])
def test_page_of_any_ablation_is_well_formed(lines: tuple[Group, ...], tmp_path: Path) -> None:
    """Without lines, and with names that look like markup."""
    file = report_of(5).to_html(tmp_path / "report.html", None, Ablated(lines=lines))
    assert Page(file.read_text(encoding="utf-8")).open == []


def test_page_of_what_grids_see_is_well_formed(tmp_path: Path) -> None:
    """Grids without a range, without values and with names that look like markup are shown, or left out."""
    bins = (
        Span(-4.0, -3.0, 2),
        Span(-1e-9, 0.0, 1),
        Span(0.0, 1e-9, 5),
        Span(1.0, 1.5, 7),
        Span(3.0, 4.0, 1),
    )
    grids = (
        Grid(HOSTILE, "int8 static", -3.5, 3.5, 0.2, bins),
        Grid("follows", "int8 per token", None, None, None, (Span(0.0, 1e-38, 3),)),
        Grid("unseen", "int8 static", 0.0, 1.0, 0.0, ()),
    )
    file = report_of(5).to_html(tmp_path / "report.html", seen=Seen(grids))
    page = Page(file.read_text(encoding="utf-8"))
    assert "1 of 2 grids clip some of the data" in page.text
    assert "20 % clipped by a grid from -3.5 to 3.5; int8 static" in page.words
    assert "The grid follows the data; int8 per token" in page.words
    assert "unseen" not in page.words
