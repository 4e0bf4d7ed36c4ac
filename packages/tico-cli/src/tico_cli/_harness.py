"""tico eval --tasks: a model in lm-evaluation-harness, on tasks of a local file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final, final

import attrs

from tico_cli._model_folders import load_model, load_tokenizer, quiet_libraries
from tico_cli._output import table, tell
from tico_cli._paths import require_file, require_folder
from tico_config import ConfigError, Found, MissingExtraError, Problem

_NAME: Final = re.compile(r"^(?:task|group): *[\"']?([^\s\"'#]+)", re.MULTILINE)


@final
@attrs.frozen(kw_only=True)
class Score:
    """One figure of a task, as lm-evaluation-harness names it; `error` is its standard error, if known."""

    task: str
    metric: str
    value: float
    error: float | None = None


@final
@attrs.frozen(kw_only=True)
class Scores:
    """The figures of a model on tasks, and the version of lm-evaluation-harness that they are of."""

    scores: tuple[Score, ...]
    version: str

    def to_json(self) -> str:
        """Return the figures as JSON."""
        return json.dumps({"version": self.version, "scores": [attrs.asdict(each) for each in self.scores]})

    def to_markdown(self) -> str:
        """Return the figures as a table."""
        rows: list[tuple[str, ...]] = [
            (each.task, each.metric, f"{each.value:.4f}", "" if each.error is None else f"{each.error:.4f}")
            for each in self.scores
        ]
        figures = table(("task", "metric", "value", "standard error"), rows)
        return f"{figures}\n\nlm-evaluation-harness {self.version}"


def evaluate_tasks(folder: Path, tasks: Path, tokenizer: Path | None, limit: int | None) -> Scores:
    """Return what the model in `folder`, quantized or float, scores on the task in the file `tasks`.

    Others that it names stand in the same folder. `limit` is the most documents of each.

    Raises:
        ConfigError: a path is wrong, or the file names no task.
        MissingExtraError: lm-evaluation-harness is not installed.
        TicoError: a model or tokenizer cannot be read.
    """
    require_folder(folder, "model")
    require_file(tasks, "tasks")
    _require_harness()
    name = _task_in(tasks)
    from lm_eval import __version__, simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with quiet_libraries():
        model = load_model(folder)
        words = load_tokenizer(folder if tokenizer is None else tokenizer)
        tell(f"lm-evaluation-harness: {name}")
        found: object = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=words, batch_size=1),
            tasks=[name],
            task_manager=TaskManager(include_path=str(tasks.parent), include_defaults=False),
            limit=limit,
        )
    results = found.get("results") if isinstance(found, dict) else None
    return Scores(scores=tuple(_scores(results)), version=str(__version__))


def _require_harness() -> None:
    if find_spec("lm_eval") is None:
        sentence, remedy = "lm-evaluation-harness is not installed", "pip install 'tico-cli[eval]'"
        found, expected = Found("not installed"), "the extra eval"
        raise MissingExtraError(
            Problem(field="lm_eval", value=found, expected=expected, sentence=sentence, remedy=remedy)
        )


def _task_in(path: Path) -> str:
    """Return the name of the task or group in a file.

    Raises:
        ConfigError: there is none.
    """
    named = _NAME.search(path.read_text(encoding="utf-8"))
    if named is None:
        expected = "a task of lm-evaluation-harness, in YAML"
        remedy = "write `task: NAME` at the beginning of a line"
        raise ConfigError(
            Problem(
                module=str(path),
                field="tasks",
                value=Found("a file that names none"),
                expected=expected,
                remedy=remedy,
            )
        )
    return named.group(1)


def _scores(results: object) -> Iterator[Score]:
    """Yield the figures of each task; the harness names them ``metric,filter``."""
    for task, figures in results.items() if isinstance(results, Mapping) else ():
        for name, value in figures.items() if isinstance(figures, Mapping) else ():
            metric, _, kind = str(name).partition(",")
            if kind and not metric.endswith("_stderr") and isinstance(value, int | float):
                error: object = figures.get(f"{metric}_stderr,{kind}")
                known = float(error) if isinstance(error, float) else None
                shown = metric if kind == "none" else f"{metric} ({kind})"
                yield Score(task=str(task), metric=shown, value=float(value), error=known)
