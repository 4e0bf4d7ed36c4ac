"""What a new user gets wrong: each message says what to do, and scripts get an exit code."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from program_runs import Run, run_program
from tico_cli._tables import fitted


def quantizing(source: Path, tmp_path: Path, *more: str | Path) -> tuple[str | Path, ...]:
    """Return the arguments of a run into a new folder."""
    return ("quantize", source, "--out", tmp_path / "out", *more)


def test_a_misspelt_folder_is_answered_with_the_nearest(tico: Run, source: Path, tmp_path: Path) -> None:
    """The name that is there is told."""
    done = tico(*quantizing(source.with_name("tinny"), tmp_path))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "there is no such folder for the model" in done.stderr
    assert "'tiny'" in done.stderr


def test_a_misspelt_text_is_answered_with_the_nearest(
    tico: Run, source: Path, text: Path, tmp_path: Path
) -> None:
    """A file is named before anything is read."""
    done = tico(*quantizing(source, tmp_path, "--data", text.with_name("txt.txt")))
    assert done.exit_code == 2
    assert "the nearest in" in done.stderr
    assert "'text.txt'" in done.stderr


def test_a_folder_without_a_model_says_what_is_expected(tico: Run, tmp_path: Path) -> None:
    """An empty folder is told from one that lacks weights."""
    (tmp_path / "empty").mkdir()
    done = tico(*quantizing(tmp_path / "empty", tmp_path, "-r", "w8a16"))
    assert done.exit_code == 2
    assert "pass a folder that save_pretrained has written" in done.stderr


def test_a_folder_without_weights_says_so(tico: Run, source: Path, tmp_path: Path) -> None:
    """A config alone can be planned for, and not quantized."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((source / "config.json").read_bytes())
    done = tico(*quantizing(tmp_path / "bare", tmp_path, "-r", "w8a16"))
    assert done.exit_code == 1
    assert "file must be a folder with model.safetensors" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_quantized_folder_is_not_quantized_again(tico: Run, quantized: Path, tmp_path: Path) -> None:
    """It is told what to pass instead, and what shows the folder."""
    done = tico(*quantizing(quantized, tmp_path))
    assert done.exit_code == 2
    assert "pass the float model" in done.stderr


def test_a_float_folder_is_not_inspected(tico: Run, source: Path) -> None:
    """It is told what the command is for."""
    done = tico("inspect", source)
    assert done.exit_code == 2
    assert "pass the folder that `tico quantize` was given as --out" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "this is an empty file"),
        (b"\n \n", "this is an empty file"),
        (b"\xff\xfe", "no UTF-8"),
        (b"x", "a text of 1 tokens"),
    ],
)
def test_a_text_without_a_text_says_so(
    content: bytes, message: str, tico: Run, source: Path, tmp_path: Path
) -> None:
    """What was found is told, and nothing is made."""
    (tmp_path / "text.txt").write_bytes(content)
    done = tico(*quantizing(source, tmp_path, "--data", tmp_path / "text.txt"))
    assert done.exit_code == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_needs_data_asks_for_them(tico: Run, source: Path, tmp_path: Path) -> None:
    """It names the option, and a recipe that needs none."""
    done = tico(*quantizing(source, tmp_path))
    assert done.exit_code == 2
    assert "pass --data FILE, or take a recipe without data" in done.stderr


def test_a_recipe_with_a_typo_is_answered_with_the_name_that_is_meant(
    tico: Run, source: Path, tmp_path: Path
) -> None:
    """The name of a recipe, its file, and a field in it."""
    assert "the nearest is 'w4a16'" in tico("plan", source, "-r", "w4a61").stderr
    mine = tmp_path / "mine.toml"
    mine.write_text('[[stage]]\nalgorithm = "gptq"\ngroupsize = 8\n', encoding="utf-8")
    done = tico("plan", source, "-r", mine)
    assert done.exit_code == 2
    assert "mine.toml, stage: GPTQConfig has no field 'groupsize'; the nearest is 'group_size'" in done.stderr
    assert "'mine.toml'" in tico("plan", source, "-r", tmp_path / "mime.toml").stderr


def test_an_override_that_matches_nothing_is_answered_with_the_nearest_path(
    tico: Run, source: Path, tmp_path: Path
) -> None:
    """A recipe that does not fit the model is wrong, too."""
    mine = tmp_path / "mine.toml"
    mine.write_text('[[stage]]\nalgorithm = "gptq"\noverrides."*.down_prj" = "float"\n', encoding="utf-8")
    done = tico("plan", source, "-r", mine)
    assert done.exit_code == 2
    assert "down_proj" in done.stderr


def test_a_folder_that_is_taken_is_left_alone(tico: Run, source: Path, tmp_path: Path) -> None:
    """Somebody's files are not written over."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    done = tico(*quantizing(source, tmp_path, "-r", "w8a16"))
    assert done.exit_code == 2
    assert "pass the path of a new folder" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_folder_without_a_tokenizer_says_how_to_give_one(
    tico: Run, source: Path, text: Path, tmp_path: Path
) -> None:
    """The option is named."""
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((source / name).read_bytes())
    arguments = quantizing(tmp_path / "bare", tmp_path, "--data", text, "--samples", "2")
    done = tico(*arguments)
    assert done.exit_code == 1
    assert "pass --tokenizer FOLDER" in done.stderr
    assert tico(*arguments, "--tokenizer", source).exit_code == 0


@pytest.mark.parametrize("more", [(), ("--data", "text.txt", "--tasks", "task.yaml")])
def test_an_evaluation_is_of_a_text_or_of_tasks(more: tuple[str, ...], tico: Run, source: Path) -> None:
    """Neither and both are wrong usage."""
    done = tico("eval", source, *more)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--data or --tasks" in done.stderr


@pytest.mark.parametrize(
    "more",
    [
        ("--data", "text.txt", "--limit", "3"),
        ("--tasks", "task.yaml", "--bos"),
        ("--tasks", "task.yaml", "--float", "model"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(more: tuple[str, ...], tico: Run, source: Path) -> None:
    """It is named."""
    done = tico("eval", source, *more)
    assert done.exit_code == 2
    assert f"leave {more[2]} out" in done.stderr


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-evaluation-harness is installed")
def test_an_evaluation_without_the_harness_names_the_extra(tico: Run, source: Path, tmp_path: Path) -> None:
    """The task is looked for first."""
    done = tico("eval", source, "--tasks", tmp_path / "task.yaml")
    assert "there is no such file" in done.stderr
    (tmp_path / "task.yaml").write_text("task: words", encoding="utf-8")
    done = tico("eval", source, "--tasks", tmp_path / "task.yaml")
    assert done.exit_code == 1
    assert "pip install 'tico-cli[eval]'" in done.stderr


def test_a_wrong_option_is_wrong_usage(tico: Run, source: Path) -> None:
    """The nearest option is told."""
    done = tico("plan", source, "--recip", "w4a16")
    assert done.exit_code == 2
    assert "--recipe" in done.stderr


@pytest.mark.parametrize(
    "command", ["recipes", "plan", "quantize", "inspect", "eval", "compare", "report", "export"]
)
def test_help_shows_an_example(command: str, tico: Run) -> None:
    """Each command has one that can be copied."""
    assert f"\n  tico {command}" in tico(command, "--help").stdout


def test_a_shell_completes_the_names_of_recipes() -> None:
    """What was begun is completed to the recipes that begin so."""
    done = run_program(_TICO_COMPLETE="complete_bash", COMP_WORDS="tico plan DIR --recipe w3", COMP_CWORD="4")
    assert done.stdout.split() == ["w3a16", "w3a16-block-tune"]


def test_output_into_a_pipe_has_no_colours_and_no_width() -> None:
    """What reads a pipe gets the table in Markdown, each row on a line."""
    done = run_program("recipes", FORCE_COLOR="1", COLUMNS="20")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "| w4a16 | weights of 4 bits by GPTQ, groups of 64 |" in done.stdout.splitlines()


def test_a_reader_that_has_enough_is_no_error() -> None:
    """`tico recipes | head -1` ends without a traceback."""
    command = f"{sys.executable} -m tico_cli recipes | true"
    done = subprocess.run(["/bin/sh", "-c", command], check=False, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_a_terminal_of_60_columns_stays_readable() -> None:
    """No line of a table is cut or wrapped by the terminal."""
    main, end = pty.openpty()
    command = [sys.executable, "-m", "tico_cli", "recipes"]
    variables = {**os.environ, "COLUMNS": "60", "LINES": "40"}
    process = subprocess.Popen(command, stdout=end, stderr=subprocess.DEVNULL, env=variables)
    os.close(end)
    shown = b""
    while chunk := _read(main):
        shown += chunk
    os.close(main)
    assert process.wait() == 0
    lines = shown.decode().replace("\r", "").splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.split()[:1] == ["w4a16"] for line in lines)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the program has ended
        return b""


PLAN = """| module | kind | weight | bytes | notes |
|---|---|---|---|---|
| model.layers.0…29.self_attn.q_proj (30 modules) | Linear | uint4 asymmetric group 64 | 9,953,280 | |
| model.norm | LlamaRMSNorm | float | 2,304 | gptq quantizes linear layers \\| convolutions |

The model has 538.06 MiB, and will have 135.11 MiB, which is a sentence that is longer than sixty columns."""


def test_a_table_that_has_room_stays_one() -> None:
    """Each row has its cells below the names of the columns."""
    lines = fitted(PLAN, 160).splitlines()
    assert lines[0].split() == ["module", "kind", "weight", "bytes", "notes"]
    assert "linear layers | convolutions" in lines[2]


def test_a_table_without_room_becomes_a_list() -> None:
    """Each row is a paragraph, its cells with the names of their columns, and empty ones left out."""
    lines = fitted(PLAN, 60).splitlines()
    assert lines[:4] == [
        "model.layers.0…29.self_attn.q_proj (30 modules)",
        "  kind: Linear",
        "  weight: uint4 asymmetric group 64",
        "  bytes: 9,953,280",
    ]
    assert lines[4] == "model.norm"
    assert max(map(len, lines)) <= 60
