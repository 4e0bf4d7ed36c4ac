"""The commands of `tico`, their arguments and help; the work is in the modules that they import.

Each command imports what does its work when it runs, so that help and completion do not wait for torch.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Protocol

import attrs
import typer

from tico_cli._failures import told_failures
from tico_cli._output import config_text, show, table
from tico_cli._recipe import DataNeed, Recipe
from tico_cli._recipe_files import read_recipe, shipped_names, shipped_text
from tico_config import ConfigError, Found, Problem

_NO_NUMBERS = "leave --samples and --tokens out"

_app = typer.Typer(
    name="tico",
    help="Quantize language models, and see what will happen and what has happened.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 failed, 2 a wrong path, option or recipe, 130 interrupted.",
)


def _recipe_names(incomplete: str) -> list[str]:
    """Return what a shell completes the name of a recipe by."""
    return [name for name in shipped_names() if name.startswith(incomplete)]


FloatFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A float model, saved by save_pretrained.")]
QuantizedFolder = Annotated[Path, typer.Argument(metavar="OUT", help="A model that tico has quantized.")]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        metavar="NAME",
        help="A name of `tico recipes`, or a file .toml.",
        autocompletion=_recipe_names,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write the result as JSON.")]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="FILE", help="A text, or a JSONL of texts or chats.")
]
TokenizerFolder = Annotated[
    Path | None, typer.Option("--tokenizer", metavar="DIR", help="A tokenizer, if not in the model's folder.")
]


def main() -> None:
    """Run the program with the arguments of the process."""
    _app(prog_name="tico")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tico {version('tico-cli')}")
        raise typer.Exit


@_app.callback()
def _every_command(
    *,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Quantize language models, and see what will happen and what has happened."""


@_app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one as it is.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the recipes that come along, or show one, to begin your own with.

    \b
    tico recipes
    tico recipes w4a16 > mine.toml
    """  # noqa: D301  # \b keeps the lines of the example apart
    with told_failures():
        if name is not None:
            typer.echo(shipped_text(name), nl=False)
            return
        found = [read_recipe(each) for each in shipped_names()]
        if as_json:
            typer.echo(json.dumps([_recipe_values(each) for each in found]))
        else:
            show(table(("recipe", "what it makes"), [(each.name, each.description) for each in found]))


def _recipe_values(recipe: Recipe) -> dict[str, object]:
    return {
        "name": recipe.name,
        "description": recipe.description,
        "stages": [config_text(stage) for stage in recipe.stages],
        "data": None if recipe.data is None else attrs.asdict(recipe.data),
        "exports": [each.format for each in recipe.exports],
    }


@_app.command()
def plan(folder: FloatFolder, recipe: RecipeName = "w4a16", *, as_json: AsJson = False) -> None:
    """Tell what a recipe will do to each module, in seconds; the config of the model is enough.

    \b
    tico plan SmolLM2-135M --recipe w4a16
    """  # noqa: D301  # \b keeps the lines of the example apart
    with told_failures():
        chosen = read_recipe(recipe)
        from tico_cli._planning import plan_folder

        made = plan_folder(folder, chosen)
        _write(made, as_json=as_json)


@_app.command()
def quantize(
    folder: FloatFolder,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to be made.")],
    recipe: RecipeName = "w4a16",
    data: Data = None,
    tokenizer: TokenizerFolder = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples to calibrate on, instead of the recipe's.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of a sample, instead of the recipe's.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Quantize a model from folder to folder: plan, calibrate, convert, save, compare, report.

    What is interrupted goes on with the same command.

    \b
    tico quantize SmolLM2-135M --recipe w4a16 \\
        --data text.txt --out smollm2-w4
    """  # noqa: D301  # \b keeps the lines of the example apart
    with told_failures():
        chosen = _with_data(read_recipe(recipe), samples, tokens)
        from tico_cli._quantizing import Job, quantize_folder

        job = Job(source=folder, out=out, recipe=chosen, data=data, tokenizer=tokenizer)
        with told_failures(job.kept):
            done = quantize_folder(job)
        _write(done, as_json=as_json)


@_app.command()
def analyze(  # noqa: PLR0913  # an option each
    folder: FloatFolder,
    *,
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="A text, or a JSONL of texts or chats.")
    ],
    bits: Annotated[
        float | None, typer.Option(help="Bits a weight on average, scales and zero points included.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--bytes", metavar="N", help="Bytes of the whole model.")
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="By how much perplexity may grow: 0.01 is one percent.")
    ] = None,
    recipe: RecipeName = "w4a16",
    widths: Annotated[str, typer.Option(metavar="N,N", help="The bits that a layer may get.")] = "2,3,4,8",
    together: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers of one parent that share their bits; more than once."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write a recipe .toml or a config .json."),
    ] = None,
    tokenizer: TokenizerFolder = None,
    samples: Annotated[int, typer.Option(help="Samples to read; every fourth is held out.")] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens of a sample.")] = 512,
    as_json: AsJson = False,
) -> None:
    """Choose the bits of each layer within a budget, and show what other budgets would give.

    \b
    tico analyze SmolLM2-135M --data text.txt --bits 4.5 \\
        --out mixed.toml
    tico quantize SmolLM2-135M --recipe mixed.toml \\
        --data text.txt --out smollm2-mixed
    """  # noqa: D301  # \b keeps the lines of the example apart
    with told_failures():
        chosen = read_recipe(recipe)
        from tico_cli._analyzing import Question, analyze_folder, budget_of, widths_of

        budget = budget_of(bits, size, error)
        need = DataNeed(samples=samples, tokens=tokens)
        question = Question(
            source=folder,
            recipe=recipe,
            data=data,
            samples=need.samples,
            tokens=need.tokens,
            widths=widths_of(widths),
            together=tuple(together or ()),
            tokenizer=tokenizer,
            out=out,
        )
        _write(analyze_folder(question, budget, chosen), as_json=as_json)


def _with_data(recipe: Recipe, samples: int | None, tokens: int | None) -> Recipe:
    """Return `recipe` with other numbers of samples and tokens, where it reads data."""
    need = recipe.data
    if samples is None and tokens is None:
        return recipe
    if need is None:
        expected, sentence = "left out", f"the recipe {recipe.name} learns nothing from data"
        raise ConfigError(
            Problem(field="samples", value=samples, expected=expected, sentence=sentence, remedy=_NO_NUMBERS)
        )
    return attrs.evolve(
        recipe,
        data=DataNeed(
            samples=need.samples if samples is None else samples,
            tokens=need.tokens if tokens is None else tokens,
        ),
    )


@_app.command()
def inspect(folder: QuantizedFolder, *, as_json: AsJson = False) -> None:
    """Tell what a folder holds: configs, bits, bytes and fingerprints, with every byte checked.

    \b
    tico inspect smollm2-w4
    """  # noqa: D301  # \b keeps the lines of the example apart
    with told_failures():
        from tico_cli._inspecting import inspect_folder

        found = inspect_folder(folder)
        _write(found, as_json=as_json)


Window = Annotated[int, typer.Option(metavar="N", help="Tokens of a window, unless the model takes fewer.")]
Windows = Annotated[int | None, typer.Option(metavar="N", help="The first N windows only.")]
Bos = Annotated[bool, typer.Option("--bos", help="Begin each window with the tokenizer's first token.")]
Page = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a page with pictures there.")
]
Text = Annotated[Path, typer.Option("--data", metavar="FILE", help="A text in UTF-8.")]


def _require_one(data: Path | None, tasks: Path | None) -> None:
    """Refuse to evaluate on nothing, and on a text and tasks at once.

    Raises:
        ConfigError: saying which it was.
    """
    if (data is None) == (tasks is None):
        found, remedy = Found("neither" if data is None else "both"), "pass one of them"
        raise ConfigError(Problem(field="data", value=found, expected="--data or --tasks", remedy=remedy))


def _refuse_unused(given: str, **options: object) -> None:
    """Refuse options that say nothing of what is evaluated on.

    Raises:
        ConfigError: with each of them.
    """
    idle = {"limit"} if given == "data" else {"float", "bos", "windows"}
    problems = [
        Problem(
            field=name,
            value=Found("given"),
            expected=f"left out beside --{given}",
            remedy=f"leave --{name} out",
        )
        for name, value in options.items()
        if name in idle and value not in (None, False)
    ]
    if problems:
        raise ConfigError(*problems)


@_app.command("eval")
def evaluate(  # noqa: PLR0913  # an option each
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A model, quantized or float.")],
    data: Annotated[Path | None, typer.Option("--data", metavar="FILE", help="A text in UTF-8.")] = None,
    original: Annotated[
        Path | None, typer.Option("--float", metavar="DIR", help="The float model to compare with.")
    ] = None,
    tasks: Annotated[
        Path | None,
        typer.Option("--tasks", metavar="FILE", help="A task of lm-evaluation-harness, instead of a text."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="The first N documents of each task only.")
    ] = None,
    window: Window = 2048,
    windows: Windows = None,
    tokenizer: TokenizerFolder = None,
    *,
    bos: Bos = False,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity and speed on a text, and the divergence from the float model; or scores of tasks.

    Windows follow each other without overlap and do not see each other.

    \b
    tico eval smollm2-w4 --data test.txt --float SmolLM2-135M
    tico eval smollm2-w4 --tasks piqa.yaml --limit 200
    """  # noqa: D301  # \b keeps the lines of the example apart
    with told_failures():
        _require_one(data, tasks)
        _refuse_unused(
            "tasks" if data is None else "data", float=original, bos=bos, windows=windows, limit=limit
        )
        if tasks is not None:
            from tico_cli._harness import evaluate_tasks

            _write(evaluate_tasks(folder, tasks, tokenizer, limit), as_json=as_json)
        if data is not None:
            from tico_cli._evaluating import Text, evaluate_folder

            text = Text(path=data, window=window, windows=windows, bos=bos, tokenizer=tokenizer)
            _write(evaluate_folder(folder, text, original), as_json=as_json)


@_app.command()
def compare(  # noqa: PLR0913  # an option each
    original: FloatFolder,
    folder: QuantizedFolder,
    data: Text,
    window: Window = 512,
    windows: Windows = 4,
    tokenizer: TokenizerFolder = None,
    page: Page = None,
    *,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Measure each kind, block and role in float, and alone.")
    ] = False,
    bos: Bos = False,
    as_json: AsJson = False,
) -> None:
    """Tell in which block the error of a quantized model enters, and how it accumulates.

    \b
    tico compare SmolLM2-135M smollm2-w4 --data test.txt
    tico compare SmolLM2-135M smollm2-w4 --data test.txt \\
        --ablate --windows 1 --html parts.html
    """  # noqa: D301  # \b keeps the lines of the example apart
    with told_failures():
        from tico_cli._evaluating import Text, compare_folders

        text = Text(path=data, window=window, windows=windows, bos=bos, tokenizer=tokenizer)
        found = compare_folders(original, folder, text, ablated=ablate, page=page)
        _write(found, as_json=as_json)


@_app.command()
def report(
    folder: QuantizedFolder,
    page: Page = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Tell what grids see of this text, too.")
    ] = None,
    window: Window = 512,
    windows: Windows = 4,
    tokenizer: TokenizerFolder = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Tell what was done to each module, and why the others are float.

    \b
    tico report smollm2-w4
    tico report smollm2-w8a8 --data test.txt --html report.html
    """  # noqa: D301  # \b keeps the lines of the example apart
    with told_failures():
        from tico_cli._evaluating import Text
        from tico_cli._reporting import report_folder

        text = None
        if data is not None:
            text = Text(path=data, window=window, windows=windows, tokenizer=tokenizer)
        _write(report_folder(folder, text, page), as_json=as_json)


@_app.command("export")
def export_model(
    folder: QuantizedFolder,
    target: Annotated[str, typer.Option("--to", metavar="FORMAT", help="gguf, onnx, compressed-tensors, …")],
    path: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="What to write.")],
    data: Data = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the format.")
    ] = None,
    *,
    require: Annotated[bool, typer.Option("--require", help="Fail if no runtime checks it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a quantized model in the format of a runtime, which checks it where it is installed.

    \b
    tico export smollm2-w4 --to gguf --out smollm2-w4.gguf
    """  # noqa: D301  # \b keeps the lines of the example apart
    with told_failures():
        from tico_cli._exporting import export_folder, options_of, result_json, result_text, target_of

        chosen = target_of(target, options_of(options or ()))
        done = export_folder(folder, chosen, path, data=data, require=require)
        if as_json:
            typer.echo(result_json(done))
        else:
            show(result_text(done))


class _Result(Protocol):
    """What a command has found."""

    def to_json(self) -> str:
        """Return it for programs."""

    def to_markdown(self) -> str:
        """Return it for people."""


def _write(result: _Result, *, as_json: bool) -> None:
    if as_json:
        typer.echo(result.to_json())
    else:
        show(result.to_markdown())
