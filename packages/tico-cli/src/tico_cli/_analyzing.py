"""tico analyze: the bits of each layer that cost least within a budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, final

import attrs

from tico_api import Budget, GPTQConfig, analyze
from tico_cli._model_folders import load_model, load_tokenizer, longest_window, quiet_libraries, require_float
from tico_cli._output import bytes_text, tell
from tico_cli._paths import require_file
from tico_cli._recipe import Recipe
from tico_cli._recipe_files import recipe_text
from tico_cli._texts import read_samples, spread
from tico_config import ConfigError, Found, Problem, to_json
from tico_quantizers.analysis import Analysis

_ENDINGS: Final = (".toml", ".json")


@final
@attrs.frozen(kw_only=True)
class Question:
    """Which model is to be analyzed, on what, and what is to become of it besides.

    Attributes:
        source: the folder of the float model.
        recipe: the recipe by its name or path, of one stage of GPTQ, which says all but the bits.
        data: a text, or a JSONL of texts or chats.
        samples: how many windows or records are read, of which every fourth is held out.
        tokens: the length of a window.
        widths: the bits that a layer may get.
        together: patterns of layers that share their bits.
        tokenizer: its folder, where it is not that of the model.
        out: the file that the choice is written to: a recipe .toml, or a config .json.
    """

    source: Path
    recipe: str
    data: Path
    samples: int = 16
    tokens: int = 512
    widths: tuple[int, ...] = (2, 3, 4, 8)
    together: tuple[str, ...] = ()
    tokenizer: Path | None = None
    out: Path | None = None


def budget_of(bits: float | None, size: int | None, error: float | None) -> Budget:
    """Return the budget that was given.

    Raises:
        ConfigError: none was, or several were, or it is no positive number.
    """
    given = {"--bits": bits, "--bytes": size, "--error": error}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        found, expected = Found(" and ".join(names) or "none"), "one of --bits, --bytes and --error"
        remedy = "pass for example --bits 4.5"
        raise ConfigError(Problem(field="budget", value=found, expected=expected, remedy=remedy))
    return Budget(bits=bits, bytes=size, error=error)


def widths_of(text: str) -> tuple[int, ...]:
    """Return the numbers of bits in a text such as ``2,3,4``.

    Raises:
        ConfigError: it is something else.

    >>> widths_of("3,4")
    (3, 4)
    """
    parts = text.split(",")
    if not all(part.isascii() and part.strip().isdigit() for part in parts):
        raise ConfigError(Problem(field="widths", value=text, expected="numbers of bits, such as 2,3,4"))
    return tuple(map(int, parts))


def analyze_folder(question: Question, budget: Budget, recipe: Recipe) -> Analysis:
    """Return the choice within `budget`, and write it to the file that is asked for.

    Raises:
        ConfigError: a path or the recipe is wrong, or no choice is within the budget.
        TicoError: the model cannot be handled.
        OSError: a file cannot be read or written.
    """
    base = _base(recipe)
    require_float(question.source)
    require_file(question.data, "data")
    if question.out is not None:
        _require_ending(question.out)
    length = min(question.tokens, longest_window(question.source) or question.tokens)
    with quiet_libraries():
        tokenizer = load_tokenizer(question.source if question.tokenizer is None else question.tokenizer)
        samples = spread(read_samples(question.data, tokenizer, length), question.samples)
        tell(f"data: {sum(each.numel() for each in samples):,} tokens in {len(samples)} samples")
        found = analyze(
            load_model(question.source),
            samples,
            budget=budget,
            base=base,
            candidates=[{"bits": bits} for bits in question.widths],
            together=question.together,
        )
    tell(f"chosen: {found.chosen.bits:.3f} bits on average, {bytes_text(found.chosen.bytes)} in all")
    if question.out is not None:
        question.out.write_text(_written(question, found), encoding="utf-8")
        tell(f"written: {question.out}")
    return found


def _base(recipe: Recipe) -> GPTQConfig:
    """Return the config of a recipe that only lacks the bits of each layer.

    Raises:
        ConfigError: it has other stages, or overrides.
    """
    stage, *others = recipe.stages
    if not isinstance(stage, GPTQConfig) or others or stage.overrides:
        names = ", ".join(each.name for each in recipe.stages)
        found = Found(f"{names} with overrides" if stage.overrides else names)
        expected, remedy = "one stage of gptq without overrides", "begin from w4a16"
        raise ConfigError(
            Problem(module=recipe.name, field="stage", value=found, expected=expected, remedy=remedy)
        )
    return stage


def _require_ending(path: Path) -> None:
    if path.suffix not in _ENDINGS:
        expected = "a path that ends in .toml, for a recipe, or in .json, for a config"
        raise ConfigError(Problem(field="out", value=str(path), expected=expected))


def _written(question: Question, found: Analysis) -> str:
    """Return the recipe with an override for each layer, or the config alone."""
    if question.out is not None and question.out.suffix == ".json":
        return to_json(found.config)
    lines = [
        f"{json.dumps(path)} = {{ bits = {found.config.resolve(path).spec.bits} }}"
        for path in found.config.overrides
    ]
    text = recipe_text(question.recipe).rstrip()
    return "\n".join([text, "", "[stage.overrides]", *lines, ""])
