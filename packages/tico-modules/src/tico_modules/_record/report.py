"""The report of a conversion, with a line for each module."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Final

import attrs
from typing_extensions import Self

from tico_modules._facts.layer_report import LayerReport, line_values, not_a_report, parse_lines
from tico_modules._facts.model_facts import ModelFacts
from tico_modules._page.comparison import Ablated, Compared, Seen
from tico_modules._page.report_page import report_page
from tico_modules._record.report_table import bytes_sentence, markdown_table
from tico_modules._storage.layout import Layout

_SCHEMA: Final = 1


@attrs.frozen(kw_only=True)
class Report:
    """One line for each module that holds weights or computes, the latest for each path.

    Attributes:
        layers: the lines.
        model: what is known of the model as a whole, ignored when reports are compared; None in the report of
            one run.

    >>> line = LayerReport(path="fc", module="Linear", algorithm="gptq", weight="uint4 per row")
    >>> print(Report(layers=(line,)).to_markdown())
    | module | kind | algorithm | weight | activation | notes |
    |---|---|---|---|---|---|
    | fc | Linear | gptq | uint4 per row | float |  |
    """

    layers: tuple[LayerReport, ...] = ()
    model: ModelFacts | None = attrs.field(default=None, eq=False)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return itself: nothing in it can change."""
        return self

    def without_times(self) -> Self:
        """Return the report with every `seconds` 0, so that the same work gives the same text.

        >>> line = LayerReport(path="fc", module="Linear", algorithm="gptq", seconds=2.0)
        >>> Report(layers=(line,)).without_times().layers[0].seconds
        0.0
        """
        layers = tuple(attrs.evolve(layer, seconds=0.0) for layer in self.layers)
        return attrs.evolve(self, layers=layers, model=self.model and self.model.without_times())

    def to_json(self) -> str:
        """Return the report as a JSON object: ``schema``, which is 1, ``layers`` and ``model``.

        >>> Report().to_json()
        '{"schema": 1, "layers": [], "model": null}'
        """
        model = None if self.model is None else self.model.to_values()
        return json.dumps({"schema": _SCHEMA, "layers": list(map(line_values, self.layers)), "model": model})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the report that `to_json` wrote as `text`.

        Raises:
            ArtifactError: `text` is not the JSON of a report, or that of another schema.

        >>> Report.from_json(Report().to_json()) == Report()
        True
        """
        try:
            values: object = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        match values:
            case {"schema": 1, "layers": list(rows), "model": None | dict() as model, **rest} if not rest:
                facts = None if model is None else ModelFacts.from_layout(Layout("report.model", model))
                return cls(layers=parse_lines(rows), model=facts)
            case _:
                raise not_a_report(values)

    def to_markdown(self, *, every_expert: bool = False) -> str:
        """Return the report as a Markdown table.

        Experts of one list or parameter of which the same was made share a row, with the range of each figure
        and how many each note is about, unless there are few. With `every_expert` each has a row of its own.
        Below it stands what is known of the bytes of the model.
        """
        table = markdown_table(self.layers, every_expert=every_expert)
        return table if self.model is None else f"{table}\n\n{bytes_sentence(self.model)}"

    def to_html(
        self,
        path: str | PathLike[str],
        comparison: Compared | None = None,
        ablation: Ablated | None = None,
        seen: Seen | None = None,
    ) -> Path:
        """Write the report to the file `path` as one page that needs nothing else, and return its path.

        The page has what a person asks first: how many bits on average, how many bytes before and after,
        which layers lose most, what stayed in float and why; then a table of every module.

        Args:
            path: where to write it; its folder has to be there.
            comparison: what `compare` says of the float and the quantized model, to be shown as well.
            ablation: what `ablation` says of them, likewise.
            seen: what `watch_points` says of the quantized model, likewise.

        Raises:
            OSError: the file cannot be written.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Report().to_html(f"{folder}/report.html").name
        'report.html'
        """
        file = Path(path)
        page = report_page(self.layers, self.model, comparison, ablation, seen)
        file.write_text(page, encoding="utf-8", newline="\n")
        return file

    def __str__(self) -> str:
        """Return the Markdown table."""
        return self.to_markdown()
