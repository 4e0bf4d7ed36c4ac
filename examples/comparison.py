"""How far a quantized module or model is from the float one, on what reaches it in a language model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Final

import attrs
import torch
from torch import Tensor, nn

from language_models import WIKI_LLAMA, LanguageModel, load, logits_of, text_of
from tico.quantization import PTQConfig
from tico_wrapq import PTQWrapper

WINDOW: Final = 256


@attrs.frozen
class Difference:
    """What quantizing has changed.

    Attributes:
        mean: mean absolute difference.
        sqnr: signal to quantization noise, 10 log10(sum of squares / sum of squared differences), in dB.
        peak: largest absolute difference over the interval that the float values span.
    """

    mean: float
    sqnr: float
    peak: float

    @classmethod
    def between(cls, expected: Tensor, found: Tensor) -> Difference:
        """Return the difference of two tensors of one shape."""
        error = (found - expected).double()
        noise, signal = error.square().sum(), expected.double().square().sum()
        interval = float(expected.max() - expected.min())
        sqnr = float(10 * torch.log10(signal / noise))
        return cls(float(error.abs().mean()), sqnr, float(error.abs().max()) / interval)

    def __str__(self) -> str:
        """Return the three figures."""
        return (
            f"mean |error| {self.mean:.5f}, SQNR {self.sqnr:5.1f} dB, peak error / interval {self.peak:.4f}"
        )


@attrs.frozen(eq=False)
class Call:
    """The arguments that a module was called with."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]


@attrs.frozen(eq=False)
class Part:
    """A module of the embedded model, the calls of it to calibrate on, and those to compare on."""

    module: nn.Module
    calibration: list[Call]
    heldout: list[Call]

    @classmethod
    def at(cls, path: str) -> Part:
        """Return the module at `path` of the embedded model."""
        source = embedded()
        module = source.model.get_submodule(path)
        calls = (_calls(source, module, text) for text in ("calibration", "heldout"))
        return cls(module, *calls)

    def watched(self, config: PTQConfig | None = None) -> PTQWrapper:
        """Return a copy of the module in its wrapper, which has seen the calibration data."""
        wrapper = PTQWrapper(copy.deepcopy(self.module), config)
        wrapper.enable_calibration()
        outputs(wrapper, self.calibration)
        return wrapper

    def quantized(self, config: PTQConfig | None = None) -> PTQWrapper:
        """Return a quantized copy of the module."""
        wrapper = self.watched(config)
        wrapper.freeze_qparams()
        return wrapper

    def difference(self, quantized: nn.Module) -> Difference:
        """Return how far `quantized` is from the module, on texts that it was not calibrated on."""
        return Difference.between(outputs(self.module, self.heldout), outputs(quantized, self.heldout))


def embedded() -> LanguageModel:
    """Return the embedded model, without the progress bars of others."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    return load(WIKI_LLAMA, WINDOW)


def outputs(module: nn.Module, calls: list[Call]) -> Tensor:
    """Return what `module` makes of the calls; the first of several results."""
    with torch.no_grad():
        found = [module(*call.args, **call.kwargs) for call in calls]
    return torch.cat([each[0] if isinstance(each, tuple) else each for each in found])


def _calls(source: LanguageModel, module: nn.Module, text: str) -> list[Call]:
    calls: list[Call] = []

    def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        calls.append(Call(args, kwargs))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    for row in source.windows(text_of(text), 8 * WINDOW):
        logits_of(source.model, row[None])
    handle.remove()
    return calls
