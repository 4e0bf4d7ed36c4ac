"""What a consumer gives, compared with what the model gives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from tico_config import ArtifactError, ConfigError, Found, Problem, TicoError
from tico_export.protocol import Consumer, Example, Run
from tico_modules import QuantizedLinear, named_modules

_ON_GRID: Final = 2.0**-7  # float32 holds 16 bits of a code and eight behind the point


@attrs.frozen(kw_only=True)
class Comparison:
    """How near outputs come to those of the model, as the fields of `ExportResult` have it."""

    sqnr: float
    bound: float = math.nan
    max_difference: float
    equal_share: float
    kl: float | None = None
    perplexities: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


def verify(model: nn.Module, example: Example, consumer: Consumer, path: Path) -> Comparison:
    """Have `consumer` run the export at `path`, and compare.

    Raises:
        ArtifactError: it cannot run the export, or gives something else than the model, beyond the bound of
            the format.
    """
    expected = outputs_of(model, example)
    found = _outputs(consumer, consumer.run, path, example)
    _require_alike(expected, found, consumer)
    compared = compare(expected[: len(found)], found, _tokens(model, example))
    step = _step_of(expected[: len(found)], consumer)
    if not (compared.sqnr >= consumer.smallest_sqnr or compared.max_difference <= step):
        difference = f"{compared.sqnr:.1f} dB, at most {compared.max_difference:.3g} apart"
        sentence = f"{consumer.name} gives other values than the model ({difference})"
        expectation = f"at least {consumer.smallest_sqnr:.0f} dB: {consumer.why}"
        raise ArtifactError(
            Problem(field="export", value=Found(difference), expected=expectation, sentence=sentence)
        )
    notes = [
        _note(name, compare(expected[: len(others)], others))
        for name, run in consumer.beside.items()
        if (others := _outputs(consumer, run, path, example))
    ]
    return attrs.evolve(compared, bound=consumer.smallest_sqnr, notes=tuple(notes))


def _step_of(outputs: Sequence[Tensor], consumer: Consumer) -> float:
    """Return the largest step of a grid that all `outputs` are on; 0 where they are on none."""
    values = torch.cat([each.double().flatten() for each in outputs])
    for step in sorted(consumer.steps, reverse=True):
        codes = values / step
        if bool(((codes - codes.round()).abs() < _ON_GRID).all()):
            return step * (1 + _ON_GRID)
    return 0.0


def _outputs(consumer: Consumer, run: Run, path: Path, example: Example) -> list[Tensor]:
    """Return what `run` gives.

    Raises:
        ArtifactError: it fails.
    """
    try:
        return [each.detach().cpu() for each in run(path, example)]
    except TicoError:
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        sentence = f"{consumer.name} cannot run the export: {first}"
        found, expected = Found(type(error).__name__), "an export that it runs"
        raise ArtifactError(
            Problem(field="export", value=found, expected=expected, sentence=sentence)
        ) from error


def _note(name: str, compared: Comparison) -> str:
    return f"{name}: {compared.sqnr:.1f} dB, at most {compared.max_difference:.2g} apart"


def outputs_of(model: nn.Module, example: Example) -> list[Tensor]:
    """Return the tensors of floats that the reference of `model` gives, in the order of its outputs.

    Raises:
        ConfigError: the model cannot be called with the example inputs.
    """
    try:
        with torch.no_grad(), _by_reference(model):
            output: object = model(*example.args, **example.kwargs)
    except TicoError:
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        sentence = f"the model cannot be called with the example inputs: {first}"
        found, expected = Found(type(error).__name__), "inputs that the model takes"
        raise ConfigError(Problem(field="args", value=found, expected=expected, sentence=sentence)) from error
    return floats_in(output)


def floats_in(output: object) -> list[Tensor]:
    """Return the tensors of floats in `output`, on the CPU."""
    leaves: list[object] = pytree.tree_leaves(output)
    return [each.detach().cpu() for each in leaves if isinstance(each, Tensor) and each.is_floating_point()]


@contextmanager
def _by_reference(model: nn.Module) -> Iterator[None]:
    """Let integer layers compute by the reference back end."""
    layers = [each for _, each in named_modules(model) if isinstance(each, QuantizedLinear)]
    before = [each.backend for each in layers]
    for each in layers:
        each.use("reference")
    try:
        yield
    finally:
        for each, backend in zip(layers, before, strict=True):
            each.use(backend)


def _require_alike(expected: Sequence[Tensor], found: Sequence[Tensor], consumer: Consumer) -> None:
    shapes = [tuple(each.shape) for each in expected]
    given = [tuple(each.shape) for each in found]
    if not found or given != shapes[: len(given)]:
        sentence = f"{consumer.name} gives outputs of shapes {given}, the model {shapes}"
        raise ArtifactError(
            Problem(field="export", value=Found(str(given)), expected=str(shapes), sentence=sentence)
        )


def compare(expected: Sequence[Tensor], found: Sequence[Tensor], tokens: Tensor | None = None) -> Comparison:
    """Return how near `found` comes to `expected`; `tokens` (batch, tokens) are what was read."""
    one = torch.cat([each.double().flatten() for each in expected])
    other = torch.cat([each.double().flatten() for each in found])
    noise, signal = (one - other).square().sum().item(), one.square().sum().item()
    figures = Comparison(
        sqnr=_decibels(signal, noise),
        max_difference=(one - other).abs().max().item() if one.numel() else 0.0,
        equal_share=(one == other).double().mean().item() if one.numel() else 1.0,
    )
    logits = expected[0]
    if tokens is None or logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        return figures
    first, second = (F.log_softmax(each[0].double(), -1) for each in (expected, found))
    return attrs.evolve(
        figures,
        kl=F.kl_div(second, first, log_target=True, reduction="none").sum(-1).mean().item(),
        perplexities=(_perplexity(first, tokens), _perplexity(second, tokens)),
    )


def _decibels(signal: float, noise: float) -> float:
    if math.isnan(noise) or math.isnan(signal):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _perplexity(log_probabilities: Tensor, tokens: Tensor) -> float:
    chosen = log_probabilities[:, :-1].gather(-1, tokens[:, 1:, None].cpu())
    return math.exp(-chosen.mean().item()) if chosen.numel() else math.nan


def _tokens(model: nn.Module, example: Example) -> Tensor | None:
    """Return what a language model reads as tokens, of which it gives the next ones: integers of two axes."""
    given = [*example.args, *(each for name, each in example.kwargs.items() if name == "input_ids")]
    first = next(iter(given), None)
    is_text = isinstance(first, Tensor) and first.ndim == 2 and not first.is_floating_point()
    return first if is_text and isinstance(first, Tensor) and _continues_text(model) else None


def _continues_text(model: object) -> bool:
    """Whether a model of transformers gives the next token of what it reads, as encoders do not."""
    can_generate: object = getattr(model, "can_generate", None)
    config: object = getattr(model, "config", None)
    return (
        callable(can_generate) and bool(can_generate()) and not getattr(config, "is_encoder_decoder", False)
    )
