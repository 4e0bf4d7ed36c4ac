"""The perplexity of a causal language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tico_config import ConfigError, Found, Problem
from tico_modules import Progress, find_cache
from tico_observers import products
from tico_quantizers.calibration import unchanged_process
from tico_quantizers.evaluation._outputs import device_of, logits_of, require_finished


def perplexity(model: nn.Module, windows: Tensor, batch: int = 8, *, show_progress: bool = True) -> float:
    """Return exp of the mean negative log likelihood of each token but the first of its window.

    Args:
        model: a causal language model, which is called with token numbers and gives logits. If it takes
            ``use_cache`` that is False, unless `KVCacheConfig` has converted it: attention then reads
            the cache.
        windows: token numbers (windows, tokens). Windows do not see each other: a window of 2048 tokens gives
            2047 losses. Whether one begins with a token of its own, such as BOS, is up to the caller.
        batch: windows a call. The result is the same up to the rounding of the model's own products.
        show_progress: show a bar on standard error, if that is a terminal and the extra `progress` is there.

    Raises:
        ConfigError: `windows` are none of two tokens or more, or `batch` is no positive number.
        LifecycleError: the model is prepared.
        CalibrationError: the model is in training mode, or gives no logits.

    >>> class Even(nn.Module):
    ...     def forward(self, tokens):
    ...         return torch.zeros(*tokens.shape, 8)
    >>> round(perplexity(Even().eval(), torch.zeros(2, 5, dtype=torch.int64)), 3)
    8.0
    """
    _require_windows(windows, batch)
    require_finished("model", model)
    device = device_of(model)
    batches, parts = torch.split(windows, batch), []
    with (
        Progress("PERPLEXITY", total=len(batches), show=show_progress, unit="batch") as bar,
        unchanged_process(),
    ):
        for rows in batches:
            parts.append(_loss(model, rows.to(device)))
            bar.step()
    tokens = windows.shape[0] * (windows.shape[1] - 1)
    return float((products.total(torch.stack(parts)) / tokens).exp())


def _loss(model: nn.Module, rows: Tensor) -> Tensor:
    """Return the sum of the losses of `rows`, a number in float64."""
    caches = hasattr(getattr(model, "config", None), "use_cache")
    named = {"use_cache": find_cache(model) is not None} if caches else {}
    logits = logits_of(model(rows, **named), "model")[:, :-1].flatten(0, 1)
    losses = nn.functional.cross_entropy(logits.float(), rows[:, 1:].flatten(), reduction="none")
    return products.total(losses).cpu()


def _require_windows(windows: object, batch: object) -> None:
    problems = []
    fits = isinstance(windows, Tensor) and windows.ndim == 2 and not windows.is_floating_point()
    if not (fits and isinstance(windows, Tensor) and windows.shape[0] and windows.shape[1] > 1):
        found = Found(f"{windows.dtype} {tuple(windows.shape)}") if isinstance(windows, Tensor) else windows
        expected = "token numbers (windows, tokens), two tokens or more in each"
        problems.append(Problem(field="windows", value=found, expected=expected))
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        problems.append(Problem(field="batch", value=batch, expected="a positive number of windows"))
    if problems:
        raise ConfigError(*problems)
