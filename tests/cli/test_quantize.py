"""tico quantize and inspect: the whole job, interrupted and resumed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest
import torch

from program_runs import LIMIT, Run, text_of
from tico.quantization import compare, load_quantized, plan, report
from tico_cli import read_recipe
from tico_cli._model_folders import load_tokenizer, skeleton
from tico_cli._texts import read_samples
from tico_config import CalibrationError
from tico_quantizers.algorithms.gptq import _layer
from tico_quantizers.solvers import solve_by

P = ParamSpec("P")
R = TypeVar("R")


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of each file of a folder."""
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def stopping(function: Callable[P, R], after: int, error: BaseException) -> Callable[P, R]:
    """Return `function`, which raises `error` after so many calls."""
    calls = iter(range(after))

    def counted(*args: P.args, **kwargs: P.kwargs) -> R:
        if next(calls, None) is None:
            raise error
        return function(*args, **kwargs)

    return counted


def test_the_whole_job_from_folder_to_folder(tico: Run, source: Path, text: Path, tmp_path: Path) -> None:
    """The result is saved, compared and reported; standard output has the result alone."""
    out = tmp_path / "out"
    done = tico("quantize", source, "--recipe", "w4a16", "--data", text, "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["bytes"] < told["bytes_before"]
    assert 0 < told["comparison"]["kl"] < 1
    assert "tico: plan: " in done.stderr
    model = load_quantized(out)
    page = report(model).to_html(tmp_path / "expected.html").read_text(encoding="utf-8")
    written = (out / "report.html").read_text(encoding="utf-8")
    assert written.startswith("<!doctype html>")
    assert len(written) > len(page)  # it has the comparison, too
    assert load_tokenizer(out).encode("the river", add_special_tokens=False)


def test_a_recipe_without_data_needs_none(tico: Run, source: Path, tmp_path: Path) -> None:
    """It is quantized, and nothing is compared."""
    done = tico("quantize", source, "-r", "w8a16", "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["comparison"] is None


def test_a_recipe_without_data_compares_on_the_text_that_is_given(
    tico: Run, source: Path, text: Path, tmp_path: Path
) -> None:
    """Nothing is calibrated, and four windows are compared."""
    done = tico("quantize", source, "-r", "w8a16", "--data", text, "-o", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["comparison"]["rows"] == 4 * LIMIT


def test_a_text_of_one_window_is_calibrated_on_and_not_compared(
    tico: Run, source: Path, tmp_path: Path
) -> None:
    """It is told that the comparison is left out, and why."""
    short = tmp_path / "short.txt"
    short.write_text(text_of(20), encoding="utf-8")
    done = tico("quantize", source, "--data", short, "-o", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["comparison"] is None
    assert "comparison: left out" in done.stderr


def test_numbers_of_samples_are_refused_where_nothing_is_read(
    tico: Run, source: Path, tmp_path: Path
) -> None:
    """An option that has no effect is not passed over."""
    done = tico("quantize", source, "-r", "w8a16", "--samples", "4", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "the recipe w8a16 learns nothing from data; leave --samples and --tokens out" in done.stderr


def test_an_interrupted_run_says_what_is_kept_and_goes_on(
    tico: Run, source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code is 130, and the same command gives the files of a run that nothing interrupts."""
    arguments = ("quantize", source, "--data", text, "--samples", "4")
    with monkeypatch.context() as patched:
        patched.setattr(_layer, "solve_by", stopping(solve_by, 6, KeyboardInterrupt()))
        stopped = tico(*arguments, "--out", tmp_path / "out")
    assert stopped.exit_code == 130
    assert stopped.stdout == ""
    assert f"interrupted: what is finished is kept in {tmp_path / 'out' / '.unfinished'}" in stopped.stderr
    assert "the same command goes on from there" in stopped.stderr
    assert tico(*arguments, "--out", tmp_path / "out").exit_code == 0
    assert tico(*arguments, "--out", tmp_path / "whole").exit_code == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_run_that_is_interrupted_at_once_leaves_nothing(
    tico: Run, source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to go on from, and it says so."""
    monkeypatch.setattr("tico_cli._quantizing.read_samples", stopping(read_samples, 0, KeyboardInterrupt()))
    stopped = tico("quantize", source, "--data", text, "--out", tmp_path / "out")
    assert (stopped.exit_code, (tmp_path / "out").exists()) == (130, False)
    assert "nothing was finished" in stopped.stderr


def test_a_run_that_is_interrupted_at_its_end_says_that_the_model_is_whole(
    tico: Run, source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after saving can be had by other commands."""
    monkeypatch.setattr("tico_cli._quantizing.compare", stopping(compare, 0, KeyboardInterrupt()))
    stopped = tico("quantize", source, "--data", text, "--samples", "2", "--out", tmp_path / "out")
    assert stopped.exit_code == 130
    assert "the quantized model is whole" in stopped.stderr


def test_a_full_disk_says_what_is_kept(
    tico: Run, source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work has failed, with one sentence that says how to go on."""
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", stopping(os.fsync, 2, full))
    stopped = tico("quantize", source, "--data", text, "--samples", "2", "--out", tmp_path / "out")
    assert stopped.exit_code == 1
    assert "the disk is full" in stopped.stderr
    assert "make room" in stopped.stderr


def test_a_disk_that_is_full_after_saving_says_that_the_model_is_whole(
    tico: Run, source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the report is missing, and the message names the command for it."""
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("tico_cli._quantizing.report", stopping(report, 0, full))
    stopped = tico("quantize", source, "--data", text, "--samples", "2", "--out", tmp_path / "out")
    assert stopped.exit_code == 1
    assert "the disk is full" in stopped.stderr
    assert f"`tico report {tmp_path / 'out'}` shows it" in stopped.stderr


def test_a_plan_says_what_the_files_then_hold(tico: Run, source: Path, text: Path, tmp_path: Path) -> None:
    """The plan from the config alone has the lines of the report, module by module, and the bytes."""
    recipe = read_recipe("w4a16")
    done = tico("quantize", source, "-r", "w4a16", "--data", text, "-o", tmp_path / "out", "--samples", "2")
    assert done.exit_code == 0, done.stderr
    planned = json.loads(tico("plan", source, "-r", "w4a16", "--json").stdout)
    assert planned["bytes"] == plan(skeleton(source), recipe.stages).bytes
    held = json.loads(tico("inspect", tmp_path / "out", "--json").stdout)
    found = {line["path"]: (line["weight"], line["bits"]) for line in held["layers"]}
    assert {
        line["path"]: (line["weight"], line["bits"]) for line in planned["lines"] if line["path"] in found
    } == found


def test_a_plan_needs_no_weights(tico: Run, source: Path, tmp_path: Path) -> None:
    """The config of a model that was never downloaded is enough."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_bytes((source / "config.json").read_bytes())
    made = tico("plan", tmp_path / "large")
    assert made.exit_code == 0
    assert "uint4 asymmetric group 64" in made.stdout


def test_inspect_tells_configs_bits_bytes_and_fingerprints(tico: Run, quantized: Path) -> None:
    """The bytes of the lines are those of all tensors in the files."""
    told = json.loads(tico("inspect", quantized, "--json").stdout)
    assert told["architecture"] == "LlamaForCausalLM"
    assert told["bits"] == {"4": 14}
    (run,) = told["runs"]
    assert (run["config"]["kind"], run["config"]["group_size"], run["calls"]) == ("GPTQConfig", 16, 2)
    assert len(run["model"]) == 64
    index = json.loads((quantized / "quantized.safetensors.index.json").read_text(encoding="utf-8"))
    assert sum(line["bytes"] for line in told["layers"]) == index["metadata"]["total_size"]
    shown = tico("inspect", quantized).stdout
    assert "conversion 1: GPTQConfig(group_size=16, show_progress=False); 2 calls" in shown


def test_inspect_notices_a_changed_byte(tico: Run, quantized: Path, tmp_path: Path) -> None:
    """A damaged file is an error that names it."""
    for path in quantized.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (damaged,) = tmp_path.glob("*.safetensors")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(bytes(content))
    found = tico("inspect", tmp_path)
    assert (found.exit_code, found.stdout) == (1, "")
    assert damaged.name in found.stderr


def test_windows_follow_each_other_without_special_tokens(source: Path, tmp_path: Path) -> None:
    """A text is cut into windows, and only what is shorter than one at its end is left out."""
    tokenizer, path = load_tokenizer(source), tmp_path / "text.txt"
    path.write_text(text_of(100), encoding="utf-8")
    tokens = tokenizer.encode(text_of(100), add_special_tokens=False)
    windows = read_samples(path, tokenizer, 8)
    assert {each.shape for each in windows} == {(1, 8)}
    assert torch.cat(windows, 1)[0].tolist() == tokens[: len(tokens) // 8 * 8]
    assert [each.tolist() for each in read_samples(path, tokenizer, 10**6)] == [[tokens]]


def test_records_are_samples_of_their_own(source: Path, tmp_path: Path) -> None:
    """Texts and conversions of a JSONL file stay apart, and conversations go through the chat template."""
    tokenizer, path = load_tokenizer(source), tmp_path / "chats.jsonl"
    chat = {"messages": [{"role": "user", "content": "the river"}]}
    path.write_text(f'"old town"\n{{"text": "a stone"}}\n\n{json.dumps(chat)}\n', encoding="utf-8")
    first, second, third = read_samples(path, tokenizer, 32)
    assert first[0].tolist() == tokenizer.encode("old town", add_special_tokens=False)
    assert second[0].tolist() == tokenizer.encode("a stone", add_special_tokens=False)
    assert third[0].tolist() == tokenizer.encode("<s>user: the river", add_special_tokens=False)
    assert third[0, 0] == tokenizer.bos_token_id
    assert [each.shape[1] for each in read_samples(path, tokenizer, 2)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1, which is no JSON"),
        ('"old town"\n{"texts": ""}', "line 2, which has neither text nor messages"),
        ('{"text": ""}', "a record of 0 tokens in line 1"),
        ('{"messages": ["no role"]}', "line 1, of which the chat template makes nothing"),
    ],
)
def test_a_record_that_is_none_is_named(content: str, message: str, source: Path, tmp_path: Path) -> None:
    """The line is told, and what to write."""
    path = tmp_path / "chats.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CalibrationError, match=message):
        read_samples(path, load_tokenizer(source), 8)
