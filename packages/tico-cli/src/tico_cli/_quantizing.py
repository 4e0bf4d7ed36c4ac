"""tico quantize: the whole job, from the folder of a float model to that of a quantized one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

import attrs
from torch import Tensor

from tico_api import compare, load_quantized, map_checkpoint, quantize_checkpoint, report
from tico_cli._exporting import export_folder, place_in, result_values, target_of
from tico_cli._model_folders import (
    MANIFEST,
    Tokenizer,
    load_tokenizer,
    longest_window,
    quiet_libraries,
    require_float,
)
from tico_cli._output import bytes_text, tell
from tico_cli._paths import require_file
from tico_cli._planning import plan_folder
from tico_cli._recipe import Recipe
from tico_cli._texts import read_samples, spread
from tico_config import ConfigError, Found, Problem
from tico_export import ExportResult, ExportTarget
from tico_quantizers.evaluation import Comparison
from tico_quantizers.planning import Plan

_UNFINISHED: Final = ".unfinished"
_REPORT: Final = "report.html"
_HELD_OUT: Final = 4
_WINDOW: Final = 512


@final
@attrs.frozen(kw_only=True)
class Job:
    """What to quantize, how, with which data, and where to."""

    source: Path
    out: Path
    recipe: Recipe
    data: Path | None = None
    tokenizer: Path | None = None

    def kept(self) -> str:
        """Return what is kept of a run that is interrupted now, and how to go on."""
        if (self.out / MANIFEST).is_file():
            return f"the quantized model is whole, in {self.out}; `tico report {self.out}` shows it"
        unfinished = self.out / _UNFINISHED
        if not unfinished.is_dir():
            return f"nothing was finished, and {self.out} is as it was"
        size = sum(path.stat().st_size for path in unfinished.rglob("*") if path.is_file())
        kept = f"what is finished is kept in {unfinished} ({bytes_text(size)})"
        return f"{kept}; the same command goes on from there"


@final
@attrs.frozen(kw_only=True)
class Outcome:
    """What came of a job.

    Attributes:
        out: the folder of the quantized model.
        plan: what was planned, which the report agrees with.
        comparison: how far it is from the float model on text that calibration did not read; None without it.
        report: the file of the report.
        exports: what became of the exports that the recipe asks for.
    """

    out: Path
    plan: Plan
    comparison: Comparison | None
    report: Path
    exports: tuple[ExportResult, ...] = ()

    def to_json(self) -> str:
        """Return the outcome as JSON."""
        found = None if self.comparison is None else json.loads(self.comparison.to_json())
        return json.dumps(
            {
                "out": str(self.out),
                "bytes_before": self.plan.bytes_before,
                "bytes": self.plan.bytes,
                "comparison": found,
                "report": str(self.report),
                "exports": [result_values(each) for each in self.exports],
            }
        )

    def to_markdown(self) -> str:
        """Return the outcome as a few sentences."""
        return "\n".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        before, after = bytes_text(self.plan.bytes_before), bytes_text(self.plan.bytes)
        yield f"model: {self.out}, {after} of {before}"
        if self.comparison is not None:
            kl, agreement = self.comparison.kl, self.comparison.agreement
            yield f"held-out text: KL divergence {kl:.4g} nats, same first choice {agreement:.2%}"
        yield from (f"export: {each}" for each in self.exports)
        yield f"report: {self.report}"


def quantize_folder(job: Job) -> Outcome:
    """Plan, calibrate, convert, save, compare, report and export.

    Raises:
        ConfigError: a path or the recipe is wrong, or there are no data for a recipe that needs some.
        TicoError: the model cannot be handled, or the work fails.
        OSError: a file cannot be read or written.
    """
    _require_inputs(job)
    targets = [target_of(step.format, dict(step.options)) for step in job.recipe.exports]
    made = plan_folder(job.source, job.recipe)
    tell(f"plan: {bytes_text(made.bytes_before)} become {bytes_text(made.bytes)}, by {job.recipe.name}")
    calibration, held_out = _samples(job)
    tell(f"calibration: {sum(each.numel() for each in calibration):,} tokens in {len(calibration)} samples")
    with quiet_libraries():
        manifest = quantize_checkpoint(job.source, job.out, job.recipe.stages, calibration)
        tell(f"saved: {manifest.parent}")
        quantized = load_quantized(job.out)
        found = None
        if held_out:
            tell(f"comparison: {sum(each.numel() for each in held_out):,} tokens held out")
            found = compare(map_checkpoint(job.source), quantized, held_out)
    page = report(quantized).to_html(job.out / _REPORT, found)
    exports = tuple(_export(job, target) for target in targets)
    return Outcome(out=job.out, plan=made, comparison=found, report=page, exports=exports)


def _export(job: Job, target: ExportTarget) -> ExportResult:
    path = place_in(job.out, target)
    path.parent.mkdir(exist_ok=True)
    return export_folder(job.out, target, path, data=job.data)


def _require_inputs(job: Job) -> None:
    require_float(job.source)
    if job.data is not None:
        require_file(job.data, "data")
    elif job.recipe.data is not None:
        sentence, expected = f"the recipe {job.recipe.name} learns from data", "a text, or JSONL"
        remedy = "pass --data FILE, or take a recipe without data, such as w4a16-hqq"
        raise ConfigError(
            Problem(field="data", value=Found("none"), expected=expected, sentence=sentence, remedy=remedy)
        )


def _samples(job: Job) -> tuple[list[Tensor], list[Tensor]]:
    """Return what calibration reads, and what is held out for the comparison."""
    need = job.recipe.data
    if job.data is None:
        return [], []
    samples = read_samples(job.data, _tokenizer(job), _length(job, _WINDOW if need is None else need.tokens))
    if need is None:
        return [], samples[-_HELD_OUT:]
    if len(samples) < 2:
        tell(f"comparison: left out, as {job.data} has no more text than calibration reads")
        return samples, []
    count = min(_HELD_OUT, max(1, len(samples) // 8))
    return spread(samples[:-count], need.samples), samples[-count:]


def _length(job: Job, wanted: int) -> int:
    limit = longest_window(job.source)
    if limit is None or limit >= wanted:
        return wanted
    tell(f"data: samples of {limit} tokens instead of {wanted}, as the model takes no more")
    return limit


def _tokenizer(job: Job) -> Tokenizer:
    return load_tokenizer(job.source if job.tokenizer is None else job.tokenizer)
