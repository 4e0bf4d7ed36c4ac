"""tico analyze: the choice of the library, and the file that it is written to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from program_runs import LIMIT, Run
from tico.quantization import Budget, GPTQConfig, analyze, map_checkpoint
from tico_cli import read_recipe
from tico_cli._model_folders import load_tokenizer
from tico_cli._texts import read_samples, spread
from tico_config import from_json

BASE = """description = "weights by GPTQ"

[data]
samples = 4
tokens = 32

[[stage]]
algorithm = "gptq"
group_size = 16
show_progress = false

[[export]]
format = "pt2"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Return a recipe of one stage."""
    path = tmp_path / "base.toml"
    path.write_text(BASE, encoding="utf-8")
    return path


def test_the_choice_is_that_of_the_library(
    tico: Run, source: Path, text: Path, recipe: Path, tmp_path: Path
) -> None:
    """As JSON, as a config, and as a recipe that says all else as the one before."""
    budget = ("--bits", "8", "--samples", "4", "--widths", "3,8", "--recipe", recipe)
    config, mixed = tmp_path / "mixed.json", tmp_path / "mixed.toml"
    told = json.loads(tico("analyze", source, "--data", text, *budget, "--json", "--out", config).stdout)
    samples = spread(read_samples(text, load_tokenizer(source), LIMIT), 4)
    base = GPTQConfig(group_size=16, show_progress=False)
    found = analyze(
        map_checkpoint(source),
        samples,
        budget=Budget(bits=8),
        base=base,
        candidates=[{"bits": 3}, {"bits": 8}],
        show_progress=False,
    )
    assert told == json.loads(found.to_json())
    assert from_json(config.read_text(encoding="utf-8")) == found.config
    shown = tico("analyze", source, "--data", text, *budget, "--out", mixed)
    assert found.to_markdown() in shown.stdout
    written = read_recipe(str(mixed))
    assert written.stages == (found.config,)
    assert (written.data, written.exports) == (
        read_recipe(str(recipe)).data,
        read_recipe(str(recipe)).exports,
    )


@pytest.mark.parametrize(
    ("arguments", "text_of_error"),
    [
        ((), "one of --bits, --bytes and --error, got none"),
        (("--bits", "4", "--error", "0.1"), "got --bits and --error"),
        (("--bits", "4", "--widths", "3;4"), "numbers of bits, such as 2,3,4"),
        (("--bits", "4", "--recipe", "w4a16-hqq"), "one stage of gptq without overrides, got hqq"),
        (("--bits", "4", "--out", "mixed.yaml"), "ends in .toml"),
        (("--bits", "3", "--widths", "4,8"), "the candidates take"),
    ],
)
def test_what_is_wrong_is_said(
    tico: Run, source: Path, text: Path, arguments: tuple[str, ...], text_of_error: str
) -> None:
    """In one sentence, with the exit code of a wrong option."""
    found = tico("analyze", source, "--data", text, *arguments)
    assert found.exit_code == 2
    assert text_of_error in " ".join(found.stderr.split())


def test_layers_share_what_a_pattern_says(tico: Run, source: Path, text: Path, recipe: Path) -> None:
    """More than one pattern may be given."""
    told = json.loads(
        tico(
            *("analyze", source, "--data", text, "--bits", "8", "--samples", "2", "--widths", "3,8"),
            *("--recipe", recipe, "--together", "*.[qkv]_proj", "--together", "*.mlp.*", "--json"),
        ).stdout
    )
    chosen = {line["path"]: line["chosen"] for line in told["lines"]}
    for kind in ("self_attn.q self_attn.k self_attn.v", "mlp.gate mlp.up mlp.down"):
        assert len({chosen[f"model.layers.0.{name}_proj"] for name in kind.split()}) == 1
    assert len(set(chosen.values())) > 1
