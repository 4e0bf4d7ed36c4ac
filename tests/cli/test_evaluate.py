"""tico eval, compare, report and export: what the library's own functions say of the same folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from program_runs import LIMIT, Run, text_of
from tico.quantization import (
    PTQConfig,
    ablation,
    compare,
    load_quantized,
    map_checkpoint,
    perplexity,
    quantize_checkpoint,
    report,
    watch_points,
)
from tico_cli import read_recipe
from tico_cli._exporting import target_of
from tico_cli._model_folders import load_tokenizer
from tico_export import load_program


def windows_of(source: Path, length: int) -> Tensor:
    """Return the windows of the text that tests read."""
    tokens = torch.tensor(load_tokenizer(source).encode(text_of(1200), add_special_tokens=False))
    return tokens[: len(tokens) // length * length].view(-1, length)


def test_eval_gives_perplexity_and_its_convention(
    tico: Run, source: Path, quantized: Path, text: Path
) -> None:
    """The windows are those of the model's limit, one after the other, without BOS."""
    told = json.loads(tico("eval", quantized, "--data", text, "--json").stdout)
    windows = windows_of(source, LIMIT)
    assert told["perplexity"] == perplexity(load_quantized(quantized), windows, batch=1)
    assert (told["windows"], told["window"], told["stride"], told["bos"]) == (
        len(windows),
        LIMIT,
        LIMIT,
        False,
    )
    assert told["kl"] is None
    assert told["tokens_per_second"] > 0
    shown = tico("eval", quantized, "--data", text).stdout
    assert f"{len(windows)} windows of {LIMIT} tokens, one after the other (stride {LIMIT}); no BOS" in shown


def test_eval_puts_bos_in_the_place_of_a_token(tico: Run, source: Path, quantized: Path, text: Path) -> None:
    """Windows keep their length, and their first token is the tokenizer's."""
    told = json.loads(
        tico("eval", quantized, "--data", text, "--bos", "--window", "8", "--windows", "3", "--json").stdout
    )
    tokens = windows_of(source, 7)[:3]
    expected = torch.cat([torch.zeros(3, 1, dtype=torch.int64), tokens], 1)
    assert told["perplexity"] == perplexity(load_quantized(quantized), expected, batch=1)
    assert (told["windows"], told["window"]) == (3, 8)


def test_eval_compares_with_the_float_model(tico: Run, source: Path, quantized: Path, text: Path) -> None:
    """Perplexity of both, divergence and share of equal first choices are those of the library."""
    arguments = ("eval", quantized, "--data", text, "--windows", "4", "--float", source)
    told = json.loads(tico(*arguments, "--json").stdout)
    windows = windows_of(source, LIMIT)[:4]
    original: nn.Module = map_checkpoint(source)
    found = compare(original, load_quantized(quantized), torch.split(windows, 1))
    assert (told["kl"], told["agreement"]) == (found.kl, found.agreement)
    assert told["float_perplexity"] == perplexity(original, windows, batch=1)
    assert "KL divergence from the float model" in tico(*arguments).stdout


def test_a_float_model_can_be_evaluated(tico: Run, source: Path, text: Path) -> None:
    """It has a perplexity of its own."""
    told = json.loads(tico("eval", source, "--data", text, "--windows", "2", "--json").stdout)
    windows = windows_of(source, LIMIT)[:2]
    assert told["perplexity"] == perplexity(map_checkpoint(source), windows, batch=1)


def test_compare_gives_the_blocks(tico: Run, source: Path, quantized: Path, text: Path) -> None:
    """What it prints is what the library's comparison is."""
    windows = windows_of(source, LIMIT)[:4]
    found = compare(map_checkpoint(source), load_quantized(quantized), torch.split(windows, 1))
    arguments = ("compare", source, quantized, "--data", text)
    assert tico(*arguments, "--json").stdout == f"{found.to_json()}\n"
    assert tico(*arguments).stdout == f"{found.to_markdown()}\n"


def test_compare_measures_parts_where_asked(
    tico: Run, source: Path, quantized: Path, text: Path, tmp_path: Path
) -> None:
    """The ablation is the library's, beside the comparison, and both are on the page."""
    windows = torch.split(windows_of(source, LIMIT)[:1], 1)
    original, model = map_checkpoint(source), load_quantized(quantized)
    found = ablation(original, model, windows, show_progress=False)
    page = tmp_path / "parts.html"
    arguments = ("compare", source, quantized, "--data", text, "--windows", "1", "--ablate")
    told = json.loads(tico(*arguments, "--json", "--html", page).stdout)
    assert told.pop("ablation") == json.loads(found.to_json())
    assert told == json.loads(compare(original, model, windows).to_json())
    assert f"{found.to_markdown()}\n" in tico(*arguments).stdout
    assert "Which parts hurt" in page.read_text(encoding="utf-8")


def test_report_tells_what_grids_see_of_a_text(tico: Run, source: Path, text: Path, tmp_path: Path) -> None:
    """What it adds is the library's count, in JSON, below the table, and on the page."""
    out, page = tmp_path / "w8a8", tmp_path / "page.html"
    windows = windows_of(source, LIMIT)
    quantize_checkpoint(source, out, PTQConfig(), [windows[:2]])
    found = watch_points(load_quantized(out), torch.split(windows[:4], 1))
    arguments = ("report", out, "--data", text)
    told = json.loads(tico(*arguments, "--json", "--html", page).stdout)
    assert told["seen"] == json.loads(found.to_json())["points"]
    assert tico(*arguments).stdout.endswith(f"\n\n{found.to_markdown()}\n")
    assert 'id="seen"' in page.read_text(encoding="utf-8")


def test_report_gives_a_line_for_each_module(tico: Run, quantized: Path) -> None:
    """What it prints is what the library's report is."""
    found = report(load_quantized(quantized))
    assert tico("report", quantized, "--json").stdout == f"{found.to_json()}\n"
    assert tico("report", quantized).stdout == f"{found.to_markdown()}\n"


def test_report_writes_a_page(tico: Run, quantized: Path, tmp_path: Path) -> None:
    """It is the library's page, and its path is told beside the result."""
    done = tico("report", quantized, "--html", tmp_path / "report.html")
    expected = report(load_quantized(quantized)).to_html(tmp_path / "expected.html")
    assert (tmp_path / "report.html").read_bytes() == expected.read_bytes()
    assert f"page: {tmp_path / 'report.html'}" in done.stderr


def test_a_model_is_exported_and_checked(tico: Run, quantized: Path, text: Path, tmp_path: Path) -> None:
    """A program of torch.export gives what the model gives, and the result says so."""
    path = tmp_path / "model.pt2"
    done = tico("export", quantized, "--to", "pt2", "--out", path, "--data", text, "--require", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["path"], told["target"], told["verified"]) == (str(path), "pt2", True)
    tokens = torch.arange(LIMIT)[None] + 7
    expected: Tensor = load_quantized(quantized)(tokens).logits
    (given, *_) = torch.utils._pytree.tree_leaves(load_program(path).module()(tokens, use_cache=False))
    # torch's own attention is one operator outside of programs: 80 dB are promised.
    assert (given - expected).norm() < 1e-4 * expected.norm()


def test_a_recipe_exports_what_it_makes(tico: Run, source: Path, text: Path, tmp_path: Path) -> None:
    """The exports stand below the folder of the model, and the result names them."""
    mine = tmp_path / "mine.toml"
    mine.write_text(
        """
        data = { samples = 2 }
        stage = [{ algorithm = "gptq", group_size = 32, symmetric = true, target = "vllm" }]
        export = [{ format = "compressed-tensors" }]
        """,
        encoding="utf-8",
    )
    done = tico("quantize", source, "-r", mine, "--data", text, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.stderr
    (told,) = json.loads(done.stdout)["exports"]
    assert told["verified"], told
    assert (tmp_path / "out" / "exports" / "compressed-tensors" / "config.json").is_file()


@pytest.mark.parametrize("name", ["w4a16-vllm", "w4a16-llama-cpp", "w4a16-gptqmodel"])
def test_every_recipe_for_a_runtime_names_a_format_that_is_there(name: str) -> None:
    """Its export has a target with those options."""
    for step in read_recipe(name).exports:
        assert target_of(step.format, dict(step.options)).name == step.format


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--to", "ggfu"), 2, "there is no format 'ggfu'; the nearest is 'gguf'"),
        (("--to", "gguf", "--set", "scale=exact"), 2, "there is no option 'scale'; the nearest is 'scales'"),
        (("--to", "gguf", "--set", "scales=best"), 2, "scales must be one of 'exact', 'nearest', got 'best'"),
        (("--to", "gguf", "--set", "scales"), 2, "--set must be NAME=VALUE, got 'scales'"),
        (("--to", "openvino"), 1, "tico-export[openvino]"),
    ],
)
def test_an_export_that_cannot_be_says_what_to_do(
    arguments: tuple[str, ...], code: int, message: str, tico: Run, quantized: Path, tmp_path: Path
) -> None:
    """Names that are meant, values that are legal, packages to install; and nothing is written."""
    done = tico("export", quantized, *arguments, "--out", tmp_path / "model.xml")
    assert message in done.stderr
    assert (done.exit_code, done.stdout) == (code, "")
    assert [*tmp_path.iterdir()] == []


def test_records_have_no_perplexity(tico: Run, quantized: Path, tmp_path: Path) -> None:
    """It says what to pass instead."""
    (tmp_path / "chats.jsonl").write_text('"old town"\n', encoding="utf-8")
    done = tico("eval", quantized, "--data", tmp_path / "chats.jsonl")
    assert done.exit_code == 2
    assert "pass a text file" in done.stderr


def test_models_that_do_not_belong_together_are_refused(
    tico: Run, source: Path, quantized: Path, text: Path
) -> None:
    """The folder that is missing is named, whichever of the two it is."""
    done = tico("compare", source.with_name("tinny"), quantized, "--data", text)
    assert done.exit_code == 2
    assert "for the float model" in done.stderr
    assert tico("eval", quantized, "--data", text, "--float", source.with_name("tinny")).exit_code == 2
