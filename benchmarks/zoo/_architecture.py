"""What is known of an architecture: how a tiny model of it is made, and the data that it takes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs
import torch
import transformers
from torch import Tensor, nn

from tico_quantizers.testing import seeded

Settings = Mapping[str, object]
Call = Mapping[str, Tensor]
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d

_MEASURED: Final = 8


def text(seed: int) -> Call:
    """Return tokens, two of three samples padded on the left."""
    tokens = torch.randint(3, 36, (3, 12), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(tokens)
    mask[0, :4] = mask[1, :2] = 0
    return {"input_ids": tokens * mask, "attention_mask": mask}


def picture(seed: int, size: int = 16) -> Call:
    """Return two pictures, with large surfaces as pictures have, which differ from one to the other."""
    surfaces = nn.functional.interpolate(pixels(seed, 2, 3, 4, 4), size=size, mode="bilinear")
    return {"pixel_values": 2 * surfaces + 0.5 * pixels(seed + 100, 2, 3, size, size)}


def pixels(seed: int, *shape: int) -> Tensor:
    """Return normally distributed numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@attrs.frozen(kw_only=True)
class Architecture:
    """A kind of model.

    Attributes:
        name: what the table calls it.
        family: the part of the table in which it stands.
        build: makes the model with an attention of transformers by its name; None is the model's own choice.
        call: gives the keyword arguments of a call, by a seed.
        larger: by how much weights are multiplied that transformers begins with, to be like learned ones:
            they are so small that all tokens get about the same attention.
        outputs: the fields of the output that are looked at; empty for the first one.
        generates: whether it continues text, the prompt of which is among the arguments of a call.
    """

    name: str
    family: str
    build: Callable[[str | None], nn.Module]
    call: Callable[[int], Call] = text
    outputs: tuple[str, ...] = ()
    generates: bool = False
    larger: float = 3

    def make(self, attention: str | None = None) -> nn.Module:
        """Return the model from seed 0, in evaluation mode, with weights and norms like learned ones."""
        with contextlib.redirect_stderr(io.StringIO()):
            model = seeded(lambda: self.build(attention))
        norms = [each for each in model.modules() if isinstance(each, BatchNorm)]
        if norms:
            _measure(norms, model, [self.call(seed) for seed in range(_MEASURED)])
        else:
            _enlarge(model, self.larger)
        return model


def _enlarge(model: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)


def _measure(norms: Sequence[BatchNorm], model: nn.Module, calls: Sequence[Call]) -> None:
    """Give convolutions a common start, and batch norms the means and variances that they would learn."""
    chance = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, generator=chance)
    for norm in norms:
        nn.init.ones_(norm.weight)
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(**{name: torch.cat([each[name] for each in calls]) for name in calls[0]})
    for norm in norms:
        norm.eval()


def of_transformers(
    family: str,
    model: str,
    settings: Settings,
    call: Callable[[int], Call] = text,
    config: str = "",
    outputs: tuple[str, ...] = (),
    *,
    generates: bool = False,
) -> Architecture:
    """Return the architecture of transformers' class `model`, with `settings` of its config class."""

    def build(attention: str | None) -> nn.Module:
        made = getattr(transformers, config or _config_of(model))(**settings)
        if attention is not None:
            made._attn_implementation = attention
        built: nn.Module = getattr(transformers, model)(made)
        return built

    return Architecture(
        name=model, family=family, build=build, call=call, outputs=outputs, generates=generates
    )


def _config_of(model: str) -> str:
    """Return the name of the config class of transformers' class `model`."""
    tasks = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForImageClassification", "ForCTC")
    more = ("ForMaskedLM", "EncoderModel", "ForSemanticSegmentation", "ForObjectDetection", "Model")
    return (
        next((model.removesuffix(each) for each in (*tasks, *more) if model.endswith(each)), model) + "Config"
    )


def outputs_of(architecture: Architecture, model: nn.Module, call: Call) -> tuple[Tensor, ...]:
    """Return what `model` gives for `call`, what padding gives left out."""
    with torch.no_grad():
        found = model(**call)
    if isinstance(found, Tensor):
        return (found,)
    named = [found[name] for name in architecture.outputs] or [found[0]]
    mask = call.get("attention_mask")
    return tuple(_without_padding(each, mask) for each in named)


def _without_padding(output: Tensor, mask: Tensor | None) -> Tensor:
    alike = mask is not None and output.shape[:2] == mask.shape
    return output[mask.bool()] if alike and mask is not None else output
