"""tico eval and compare: how good a model is on a text, and how far it is from the float one."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import final

import attrs
import torch
from torch import Tensor

from tico_api import ablation, compare, perplexity, report
from tico_cli._model_folders import load_model, load_tokenizer, longest_window, quiet_libraries
from tico_cli._output import table, tell
from tico_cli._paths import require_folder
from tico_cli._texts import read_samples
from tico_config import ConfigError, Found, Problem
from tico_quantizers.evaluation import Ablation, Comparison


@final
@attrs.frozen(kw_only=True)
class Text:
    """What to evaluate on.

    Attributes:
        path: a text in UTF-8.
        window: tokens of a window; a model that takes fewer has shorter ones.
        windows: the first so many; None for all.
        bos: put the tokenizer's first token before each window, in the place of one of the text.
        tokenizer: its folder, where it is not that of the model.
    """

    path: Path
    window: int = 2048
    windows: int | None = None
    bos: bool = False
    tokenizer: Path | None = None

    def read(self, folder: Path) -> Tensor:
        """Return the windows (windows, tokens) for the model in `folder`.

        Raises:
            ConfigError: there is no such file, or it holds records instead of one text.
            TicoError: there is no tokenizer, none with a first token for `bos`, or no text.
        """
        if self.path.suffix == ".jsonl":
            expected, remedy = "one text", "pass a text file, of which windows of one length can be cut"
            raise ConfigError(
                Problem(
                    module=str(self.path),
                    field="data",
                    value=Found("records"),
                    expected=expected,
                    remedy=remedy,
                )
            )
        tokenizer = load_tokenizer(folder if self.tokenizer is None else self.tokenizer)
        length = min(self.window, longest_window(folder) or self.window)
        if length < self.window:
            tell(f"windows of {length} tokens instead of {self.window}, as the model takes no more")
        rows = torch.cat(read_samples(self.path, tokenizer, length - self.bos)[: self.windows])
        if not self.bos:
            return rows
        first = tokenizer.bos_token_id
        if first is None:
            remedy, expected = "leave --bos out", "a tokenizer with a token for the beginning of a text"
            raise ConfigError(
                Problem(field="bos", value=Found("one without"), expected=expected, remedy=remedy)
            )
        return torch.cat([torch.full_like(rows[:, :1], first), rows], 1)


@final
@attrs.frozen(kw_only=True)
class Evaluation:
    """How good a model is on a text.

    Attributes:
        perplexity: of all tokens but the first of each window, which do not see each other.
        tokens_per_second: read in windows, not generated.
        windows: how many, and how long.
        bos: whether each begins with a token of its own.
        float_perplexity: that of the float model; None without one.
        comparison: how far it is from the float model; None without one.
    """

    perplexity: float
    tokens_per_second: float
    windows: tuple[int, int]
    bos: bool
    float_perplexity: float | None = None
    comparison: Comparison | None = None

    def to_json(self) -> str:
        """Return the evaluation as JSON; what is infinite or no number is null."""
        count, length = self.windows
        found = self.comparison
        return json.dumps(
            {
                "perplexity": _number(self.perplexity),
                "tokens_per_second": self.tokens_per_second,
                "windows": count,
                "window": length,
                "stride": length,
                "bos": self.bos,
                "float_perplexity": _number(self.float_perplexity),
                "kl": None if found is None else _number(found.kl),
                "agreement": None if found is None else found.agreement,
            }
        )

    def to_markdown(self) -> str:
        """Return the evaluation as a table, with the convention below."""
        count, length = self.windows
        first = "each begins with BOS" if self.bos else "no BOS is put before them"
        convention = (
            f"{count} windows of {length} tokens, one after the other (stride {length}); {first}; the first "
            "token of each is not counted."
        )
        return f"{table(('figure', 'value'), [*self._rows()])}\n\n{convention}"

    def _rows(self) -> Iterator[tuple[str, ...]]:
        yield "perplexity", f"{self.perplexity:.4f}"
        if self.float_perplexity is not None:
            yield "perplexity of the float model", f"{self.float_perplexity:.4f}"
        if self.comparison is not None:
            yield "KL divergence from the float model, nats", f"{self.comparison.kl:.4g}"
            yield "same first choice", f"{self.comparison.agreement:.2%}"
        yield "tokens a second, reading", f"{self.tokens_per_second:.1f}"


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def evaluate_folder(folder: Path, text: Text, float_folder: Path | None = None) -> Evaluation:
    """Return how good the model in `folder`, quantized or float, is on `text`.

    Raises:
        ConfigError: a path is wrong.
        TicoError: a model, tokenizer or text cannot be read.
    """
    require_folder(folder, "model")
    if float_folder is not None:
        require_folder(float_folder, "float model")
    windows = text.read(folder)
    with quiet_libraries():
        model = load_model(folder)
        tell(f"perplexity: {windows.numel():,} tokens in {len(windows)} windows")
        start = time.perf_counter()
        found = perplexity(model, windows, batch=1)
        seconds = time.perf_counter() - start
        evaluation = Evaluation(
            perplexity=found,
            tokens_per_second=windows.numel() / seconds,
            windows=(windows.shape[0], windows.shape[1]),
            bos=text.bos,
        )
        if float_folder is None:
            return evaluation
        tell("comparison with the float model")
        original = load_model(float_folder)
        return attrs.evolve(
            evaluation,
            float_perplexity=perplexity(original, windows, batch=1),
            comparison=compare(original, model, torch.split(windows, 1)),
        )


@final
@attrs.frozen(kw_only=True)
class Difference:
    """Where the error of a quantized model enters, and, if that was asked for, which parts make it.

    Attributes:
        comparison: block by block.
        ablation: for each kind, block and role; None without it.
        page: the page that was written; None without one.
    """

    comparison: Comparison
    ablation: Ablation | None = None
    page: Path | None = None

    def to_json(self) -> str:
        """Return the comparison as JSON, with ``ablation`` in it where there is one."""
        if self.ablation is None:
            return self.comparison.to_json()
        values: dict[str, object] = json.loads(self.comparison.to_json())
        return json.dumps({**values, "ablation": json.loads(self.ablation.to_json())})

    def to_markdown(self) -> str:
        """Return the tables of both."""
        tables = [each.to_markdown() for each in (self.comparison, self.ablation) if each is not None]
        return "\n\n".join(tables)


def compare_folders(
    float_folder: Path, folder: Path, text: Text, *, ablated: bool = False, page: Path | None = None
) -> Difference:
    """Return where the error of the quantized model in `folder` enters, on `text`, and write it to `page`.

    Raises:
        ConfigError: a path is wrong.
        TicoError: a model, tokenizer or text cannot be read, or the two do not belong together.
        OSError: the page cannot be written.
    """
    require_folder(folder, "model")
    require_folder(float_folder, "float model")
    windows = torch.split(text.read(float_folder), 1)
    with quiet_libraries():
        original, quantized = load_model(float_folder), load_model(folder)
        found = compare(original, quantized, windows)
        if ablated:
            tell("ablation: each kind, block and role in float, and alone")
        parts = ablation(original, quantized, windows) if ablated else None
        if page is not None:
            tell(f"page: {report(quantized).to_html(page, found, parts)}")
    return Difference(comparison=found, ablation=parts, page=page)
