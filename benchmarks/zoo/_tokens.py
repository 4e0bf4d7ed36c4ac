"""Text that a converted model continues: with either cache, and whatever it was padded with."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from tico.quantization import convert, prepare
from tico_config import BaseConfig
from zoo._architecture import Call
from zoo._cell import ABSENT, Cell, FloatModelError, WrongError
from zoo._trial import Trial

NEW: Final = 4
_SAMPLES: Final = 3
_PER_TOKEN: Final = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class _Generate(Protocol):
    """What `generate` is."""

    def __call__(self, **settings: object) -> Tensor:
        """Return the prompt and the tokens that follow."""


class _Law(Protocol):
    """Something that the tokens of a model have to fulfil."""

    def __call__(self, model: nn.Module, prompt: Call) -> None:
        """Raise `WrongError` if they do not."""


def caches(trial: Trial, config: BaseConfig) -> Cell:
    """Greedy tokens are the same with a cache that grows and with one of a fixed size."""
    return _holds(_same_with_either_cache, trial, config)


def padding(trial: Trial, config: BaseConfig) -> Cell:
    """A sample that is padded on its left goes on as it does by itself, without padding."""
    return _holds(_same_without_padding, trial, config)


def _holds(law: _Law, trial: Trial, config: BaseConfig) -> Cell:
    if not trial.architecture.generates:
        return Cell(ABSENT)
    prompt = _prompt(trial.call(1))
    try:
        law(trial.model(), prompt)
    except Exception as error:
        raise FloatModelError(" ".join(str(error).split())[:160]) from error
    law(_converted(trial, config), prompt)
    return Cell("ok")


@lru_cache(maxsize=1)
def _converted(trial: Trial, config: BaseConfig) -> nn.Module:
    """Return the model quantized with data of the prompt and of the tokens that follow, one by one."""
    prepared = prepare(trial.model(), config, kwargs=trial.call(0))
    for seed in (0, 1):
        trial.outputs(prepared, seed)
        continued(prepared, _prompt(trial.call(seed)))
    return convert(prepared)


def _same_with_either_cache(model: nn.Module, prompt: Call) -> None:
    grown, fixed = continued(model, prompt), continued(model, prompt, "static")
    if not torch.equal(grown, fixed):
        raise WrongError(f"the tokens with a static cache are {fixed.tolist()}, not {grown.tolist()}")


def _same_without_padding(model: nn.Module, prompt: Call) -> None:
    if "attention_mask" not in prompt:
        raise WrongError("the model takes no mask")
    together = continued(model, prompt)
    padded = [sample for sample in range(_SAMPLES) if not prompt["attention_mask"][sample].all()]
    for sample in padded:
        alone = continued(model, _alone(prompt, sample))
        if not torch.equal(alone[0, -NEW:], together[sample, -NEW:]):
            after, without = together[sample, -NEW:].tolist(), alone[0, -NEW:].tolist()
            raise WrongError(f"the tokens after padding are {after}, those without padding {without}")


def _prompt(call: Call) -> Call:
    return {name: each for name, each in call.items() if not name.startswith("decoder_")}


def _alone(prompt: Call, sample: int) -> Call:
    real = prompt["attention_mask"][sample].bool()
    return {
        name: each[sample : sample + 1, real] if name in _PER_TOKEN else each.chunk(_SAMPLES)[sample]
        for name, each in prompt.items()
    }


def continued(model: nn.Module, prompt: Call, cache: str | None = None) -> Tensor:
    """Return the prompt of each sample and the tokens that are the most likely to follow."""
    generate: _Generate = getattr(model, "generate")  # noqa: B009  # torch takes it for a tensor
    tokens: Tensor = generate(
        **prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, cache_implementation=cache
    )
    return tokens
