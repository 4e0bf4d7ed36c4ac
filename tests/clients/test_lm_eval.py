"""lm_eval evaluates a converted model by its folder, on a task of a local file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from torch import nn

from client_models import both
from client_tokenizer import word_tokenizer
from tico.quantization import save_quantized
from tico_cli._harness import evaluate_tasks
from tico_modules import QuantizedModule

CLIENT = "lm_eval"
TEXTS = tuple(" ".join(f"w{4 + (3 * line + 7 * word) % 60}" for word in range(12)) for line in range(4))

TASK = """
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
metadata: {version: 1}
"""


def _write_task(folder: Path) -> None:
    folder.mkdir()
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (folder / "words.jsonl").write_text("\n".join(lines))
    (folder / "words.yaml").write_text(TASK.replace("FILE", str(folder / "words.jsonl")))


def _perplexity(model: nn.Module) -> float:
    """Return what the task measures: of each text, every word after the token of the start."""
    tokenizer, total, words = word_tokenizer(), 0.0, 0
    for text in TEXTS:
        tokens = torch.tensor(
            [[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]]
        )
        with torch.no_grad():
            scores = model(tokens).logits.log_softmax(-1)[0, :-1]
        total += float(scores.gather(1, tokens[0, 1:, None]).sum())
        words += len(text.split())
    return math.exp(-total / words)


def test_a_local_task_by_folder(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The perplexity is that of the model called by hand."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    _write_task(tmp_path / "task")
    for number, model in enumerate(both(kind)):
        folder = tmp_path / str(number)
        if any(isinstance(module, QuantizedModule) for module in model.modules()):
            save_quantized(model, folder, tokenizer=word_tokenizer())
        else:
            model.save_pretrained(folder)
            word_tokenizer().save_pretrained(folder)
        results = simple_evaluate(
            model="hf",
            model_args=f"pretrained={folder},dtype=float32",
            tasks=["words"],
            device="cpu",
            batch_size=1,
            task_manager=TaskManager(include_path=str(tmp_path / "task"), include_defaults=False),
            bootstrap_iters=0,
        )
        found = results["results"]["words"]["word_perplexity,none"]
        assert found == pytest.approx(_perplexity(model), rel=1e-5)  # sums of float32 in another order


def test_the_program_hands_a_folder_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tico eval --tasks` gives the figure of the model called by hand."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    _write_task(tmp_path / "task")
    model, folder = both("GPTQ")[1], tmp_path / "model"
    save_quantized(model, folder, tokenizer=word_tokenizer())
    found = evaluate_tasks(folder, tmp_path / "task" / "words.yaml", None, None)
    assert [(each.task, each.metric) for each in found.scores] == [("words", "word_perplexity")]
    assert found.scores[0].value == pytest.approx(_perplexity(model), rel=1e-5)
    assert "words" in found.to_markdown()
