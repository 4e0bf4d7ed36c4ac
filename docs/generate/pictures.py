"""Draw the pictures of the gallery from recorded benchmarks, so that no point is placed by hand.

python docs/generate/pictures.py    writes docs/images/gallery; `nox -s pictures` does the same

The same results give the same bytes: nothing in a file depends on the date, on the machine or on chance. Each
picture brings its own background, light or dark as the reader's system is.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypedDict

import attrs
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "benchmarks" / "results"
PICTURES: Final = ROOT / "docs" / "images" / "gallery"

# Stand-ins in the drawing for the colours that depend on the reader's system: light, then dark.
INK, PAPER, RULE = "#202124", "#fefefe", "#d8dade"
DARK: Final[Mapping[str, str]] = {INK: "#e4e6eb", PAPER: "#1d2027", RULE: "#434853"}

BLUE, ORANGE, GREEN, PURPLE, RED, GRAY = "#3f78d0", "#d9730d", "#2a9263", "#9564cf", "#d64d57", "#808590"
COLORS: Final = (BLUE, ORANGE, GREEN, PURPLE, RED, GRAY)
MARKERS: Final = ("o", "s", "^", "D", "v", "P")

STYLE: Final[dict[RcKeyType, object]] = {
    "axes.edgecolor": RULE,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.facecolor": PAPER,
    "font.size": 10,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "svg.fonttype": "none",
    "svg.hashsalt": "tico.quantization",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 9,
    "ytick.color": INK,
    "ytick.labelsize": 9,
}

# Rows of gptq_model.py, by the bytes that they take.
WIDTHS: Final[Mapping[str, str]] = {
    "W3 per channel": "3 bits,\na row",
    "W3 group 64": "3 bits,\ngroups of 64",
    "W4 per channel": "4 bits,\na row",
    "W4 group 128": "4 bits,\ngroups of 128",
    "W4 group 64": "4 bits,\ngroups of 64",
}

# What rows of analyze.py that give each layer its bits by a pattern are called.
PATTERNS: Final[Mapping[str, str]] = {
    "MLP 3": "3 bits in MLPs",
    "attention 3": "3 bits in attention",
    "3 | 4": "3 bits in the first blocks",
}

# Bits of a weight, its share of scales included, of the formats that have a width of their own.
FORMAT_BITS: Final[Mapping[str, float]] = {
    "FP8_E4M3": 8,
    "FP8_E5M2": 8,
    "MXFP8_E4M3": 8.25,
    "MXFP8_E5M2": 8.25,
    "MXFP6_E2M3": 6.25,
    "MXFP6_E3M2": 6.25,
    "MXFP4": 4.25,
    "MXINT8": 8.25,
    "NVFP4": 4.5,
}


# How far above its point a name is written, where the usual place is taken.
OFFSETS: Final[Mapping[str, int]] = {"rounded": -14, "gptq": -13, "rotation, gptq": -13}

# What rows of accuracy.py are called beside their points.
METHODS: Final[Mapping[str, str]] = {
    "rounded": "rounding",
    "hqq": "HQQ",
    "gptq": "GPTQ",
    "gptq, without gains": "GPTQ without gains",
    "gptq, asymmetric": "GPTQ, asymmetric",
    "awq, gptq": "AWQ, then GPTQ",
    "rotation, gptq": "rotation, then GPTQ",
    "blocks": "BlockTune",
    "rotation, blocks": "rotation, then BlockTune",
    "scales of gptq": "ScaleTune of GPTQ",
    "scales of blocks": "ScaleTune of BlockTune",
    "rotation, scales of blocks": "rotation, then both",
    "llm-compressor, gptq": "GPTQ of llm-compressor",
}


class _Row(TypedDict):
    name: str
    cells: list[str]


class _Fields(TypedDict):
    title: str
    columns: list[str]
    rows: list[_Row]


@attrs.frozen
class Recorded:
    """A table of a recorded result: rows of cells under columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def names(self) -> list[str]:
        """The names of the rows."""
        return [name for name, _ in self.rows]

    def number(self, row: str, column: str) -> float:
        """Return the figure of the first row of that name below `column`."""
        return self.column(column, [row])[0]

    def column(self, column: str, rows: Iterable[str]) -> list[float]:
        """Return the figures below `column`, one for each of the names `rows`."""
        cells, place = dict(reversed(self.rows)), self.columns.index(column)
        return [float(cells[row][place].replace(",", "")) for row in rows]


def tables(name: str) -> list[Recorded]:
    """Return the tables of a file of benchmarks/results."""
    found: Mapping[str, list[_Fields]] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return [
        Recorded(
            each["title"],
            tuple(each["columns"]),
            tuple((row["name"], tuple(row["cells"])) for row in each["rows"]),
        )
        for each in found["tables"]
    ]


def perplexity_against_width() -> Figure:
    """Draw what each width costs on both language models."""
    figure, (above, below) = _panels(2, height=6.4)
    embedded, smollm2 = tables("gptq_defaults_wiki")[0], tables("gptq_model_perplexity")[0]
    rows = [name for name in WIDTHS if name in embedded.names]
    for i, column, label in ((1, "ours, as published", "GPTQ as published"), (0, "ours", "GPTQ by default")):
        _curve(above, i, label, [WIDTHS[row] for row in rows], embedded.column(column, rows))
    rows = [name for name in WIDTHS if name in smollm2.names]
    for i, column, label in (
        (4, "rounded", "rounding"),
        (2, "llm-compressor", "GPTQ of llm-compressor"),
        (3, "tico", "GPTQ of tico"),
        (0, "ours", "GPTQ"),
    ):
        kept = [row for row in rows if (row, column) != ("W4 group 128", "llm-compressor")]
        _curve(below, i, label, [WIDTHS[row] for row in kept], smollm2.column(column, kept))
    for axes, table in ((above, embedded), (below, smollm2)):
        axes.axhline(float(table.title.removeprefix("float: ")), color=GRAY, linestyle="--", label="float")
        _labelled(axes, "", "perplexity")
        axes.legend()
    above.set_title("Embedded LLaMA, weights")
    below.set_title("SmolLM2-135M, weights")
    return figure


def perplexity_against_bytes() -> Figure:
    """Draw what bits chosen for each layer gain over bits that follow a pattern."""
    figure, (axes,) = _panels(1, height=3.9)
    table = tables("analyze_wiki")[0]
    size, perplexity = (table.columns.index(column) for column in ("MB", "perplexity"))
    points = [(name, float(cells[size]), float(cells[perplexity])) for name, cells in table.rows]
    chosen = sorted((x, y) for name, x, y in points if "chosen" in name)
    _curve(axes, 0, "chosen by analyze", [x for x, _ in chosen], [y for _, y in chosen])
    given = [point for point in points if "chosen" not in point[0]]
    axes.plot([x for _, x, _ in given], [y for _, _, y in given], MARKERS[4], color=RED, label="by a pattern")
    for name, x, y in given:
        if name in {"MLP 3", "attention 3", "3 | 4"}:
            _beside(axes, PATTERNS[name], x, y)
    float_model = float(table.title.rpartition("float: ")[2])
    axes.axhline(float_model, color=GRAY, linestyle="--", label="float")
    axes.set_title("Bits of each layer, embedded LLaMA")
    axes.set_xlim(2.87, 3.25)
    axes.margins(y=0.3)
    _labelled(axes, "MB of the whole model", "perplexity")
    axes.legend()
    return figure


def formats() -> Figure:
    """Draw the perplexity of formats of floating point, those of fewest bits on top."""
    figure, (axes,) = _panels(1, height=4.2)
    table = tables("number_formats_wiki")[0]
    names = sorted(FORMAT_BITS, key=FORMAT_BITS.__getitem__, reverse=True)
    solved = [name for name in names if f"{name} weights, GPTQ" in table.names]
    for kept, i, end, label in ((names, 4, "", "rounding"), (solved, 0, ", GPTQ", "GPTQ")):
        found = table.column("perplexity", [f"{name} weights{end}" for name in kept])
        axes.plot(found, list(map(names.index, kept)), MARKERS[i], color=COLORS[i], label=label)
    axes.axvline(table.number("float", "perplexity"), color=GRAY, linestyle="--", label="float")
    axes.set_yticks(range(len(names)), [f"{name}, {FORMAT_BITS[name]:g} bits" for name in names])
    axes.set_title("Formats of floating point, embedded LLaMA")
    _labelled(axes, "perplexity", "")
    axes.legend(loc="center right")
    return figure


def methods() -> Figure:
    """Draw the divergence from the float model against the time that a method takes."""
    figure, (axes,) = _panels(1, height=4.2)
    table = tables("accuracy_embedded")[0]
    for name in table.names[1:]:
        seconds, divergence = table.number(name, "CPU s"), table.number(name, "KL, 1/1000")
        color = GRAY if name.startswith("llm-compressor") else BLUE
        axes.plot(seconds, divergence, "s" if color == GRAY else "o", color=color)
        _beside(axes, METHODS.get(name, name), seconds, divergence, rise=OFFSETS.get(name, 3))
    axes.set_title("3 bits in groups of 64, embedded LLaMA")
    axes.set_xlim(-0.8, 21)
    axes.set_ylim(0, 85)
    _labelled(axes, "CPU seconds", "divergence from float, 1/1000 nat")
    return figure


def error_over_depth() -> Figure:
    """Draw what each block adds to the error, and what has come together."""
    figure, panels = _panels(2, height=5.6)
    for axes, table in zip(panels, tables("error_depth"), strict=True):
        blocks = [int(path.rpartition(".")[2]) for path in table.names]
        for color, method in zip((4, 0, 2), table.columns, strict=True):
            _curve(axes, color, method, blocks, [100 * each for each in table.column(method, table.names)])
        axes.set_xticks(blocks)
        axes.set_ylim(0, None)
        _labelled(axes, "block", "error, % of the output")
        axes.legend()
    panels[0].set_title("Own error of each block")
    panels[1].set_title("Error accumulated so far")
    return figure


def weight_grids() -> Figure:
    """Draw the histogram of a row of weights over the values of four formats."""
    figure, panels = _panels(4, height=6.4, sharex=True)
    histogram, grids = tables("weight_grids")
    lows = list(map(float, histogram.names))
    highs, counts = (histogram.column(column, histogram.names) for column in histogram.columns)
    widths = [high - low for low, high in zip(lows, highs, strict=True)]
    for axes, (name, (_, *values)) in zip(panels, grids.rows, strict=True):
        axes.bar(lows, counts, widths, align="edge", color=BLUE, alpha=0.45, linewidth=0)
        axes.vlines(list(map(float, values)), 0, max(counts), color=ORANGE, linewidth=1.1)
        axes.set_title(f"{name}: error {100 * grids.number(name, 'error'):.1f} %")
        axes.set_yticks([])
        axes.grid(visible=False)
    panels[-1].set_xlabel("value of a weight")
    return figure


def speed_against_batch() -> Figure:
    """Draw how many times faster than float32 a linear layer is, for few and for many tokens."""
    figure, (axes,) = _panels(1, height=4.2)
    every = tables("inference_layers")
    tokens = [table.title.partition(", ")[2].partition(" tokens")[0] for table in every]
    for i, row in enumerate(("W8A8 static", "W8", "W4 group 128", "bfloat16", "torchao int4")):
        speeds = [table.number(row, "float32") for table in every]
        _curve(axes, (0, 1, 2, 5, 3)[i], row, list(range(len(tokens))), speeds)
    axes.axhline(1, color=GRAY, linestyle="--", label="float32")
    axes.set_xticks(range(len(tokens)), tokens)
    axes.set_ylim(0, None)
    axes.set_title("A linear layer of 4096 x 4096, one thread")
    _labelled(axes, "tokens at once", "times as fast as float32")
    axes.legend(ncols=2)
    return figure


def cache() -> Figure:
    """Draw perplexity against the memory of the cache of keys and values."""
    figure, (axes,) = _panels(1, height=4.2)
    table = tables("kv_cache")[0]
    shown = [name for name in table.names if name != "float"]
    shares = [100 * share for share in table.column("of float", shown)]
    for color, column, label in (
        (4, "at once", "text read at once"),
        (0, "by 128", "read 128 tokens at a time"),
    ):
        axes.plot(shares, table.column(column, shown), MARKERS[color], color=COLORS[color], label=label)
    for name, rise in (("8 bits", 5), ("8 bits, static, layer", -14), ("4 bits (default)", 8)):
        _beside(axes, name, 100 * table.number(name, "of float"), table.number(name, "at once"), rise=rise)
    for name in ("2 bits", "2 bits, groups of 16"):
        _beside(axes, name, 100 * table.number(name, "of float"), table.number(name, "at once"))
    axes.axhline(table.number("float", "at once"), color=GRAY, linestyle="--", label="float")
    axes.set_title("Keys and values of SmolLM2-135M, 2,048 tokens")
    axes.set_xlim(12, 38)
    axes.set_ylim(12, None)
    _labelled(axes, "memory, % of a float cache", "perplexity")
    axes.legend()
    return figure


def _panels(count: int, *, height: float, sharex: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of a phone's width in print, with `count` panels below one another."""
    figure = Figure(figsize=(5.2, height), layout="constrained")
    return figure, [each[0] for each in figure.subplots(count, 1, squeeze=False, sharex=sharex)]


def _curve(axes: Axes, i: int, label: str, x: Sequence[str] | Sequence[float], y: Sequence[float]) -> None:
    axes.plot(x, y, marker=MARKERS[i], color=COLORS[i], label=label)


def _beside(axes: Axes, text: str, x: float, y: float, *, rise: int = 3, left: bool = False) -> None:
    """Write `text` to the right of a point, or to its left, so many points higher."""
    side, place = ("right", (-6, rise)) if left else ("left", (6, rise))
    axes.annotate(text, (x, y), place, textcoords="offset points", ha=side, fontsize=9, color=INK)


def _labelled(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)


DRAWN: Final[Mapping[str, Callable[[], Figure]]] = {
    "widths": perplexity_against_width,
    "methods": methods,
    "bytes": perplexity_against_bytes,
    "formats": formats,
    "grids": weight_grids,
    "depth": error_over_depth,
    "speed": speed_against_batch,
    "cache": cache,
}


def svg(name: str) -> str:
    """Return the picture `name` as the text of an SVG file."""
    buffer = io.StringIO()
    with rc_context(STYLE):
        nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
        DRAWN[name]().savefig(buffer, format="svg", metadata=nothing)
    return _for_both_schemes(buffer.getvalue())


def _for_both_schemes(text: str) -> str:
    """Return `text` with the colours of ink, paper and rules left to a style sheet."""
    names = {INK: "--ink", PAPER: "--paper", RULE: "--rule"}
    for color, name in names.items():
        text = text.replace(color, f"var({name})")
    light = "; ".join(f"{name}: {color}" for color, name in names.items())
    dark = "; ".join(f"{name}: {DARK[color]}" for color, name in names.items())
    rules = f"svg {{ {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    head, mark, rest = text.partition(" <defs>")
    return f"{head} <style>{rules}</style>\n{mark}{rest}"


def main() -> None:
    """Write every picture."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in DRAWN:
        (PICTURES / f"{name}.svg").write_text(svg(name), encoding="utf-8")


if __name__ == "__main__":
    main()
