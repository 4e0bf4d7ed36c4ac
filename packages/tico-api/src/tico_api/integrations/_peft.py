"""Adapters of peft on integer layers.

peft makes the layers of an adapter through the tuner that is registered for its kind, and lets a config name
classes for layers that it does not know. The tuner for LoRA is replaced by a subclass that names them.
"""

from __future__ import annotations

from collections.abc import Iterator

from peft import PEFT_TYPE_TO_TUNER_MAPPING, LoraConfig, PeftType
from peft.tuners import lora
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
)
from torch import nn

from tico_config import Found, Problem, UnsupportedError
from tico_modules import ChangedInput, QuantizedLinear, RotatedInput, ScaledInput, named_modules

_ALL_LINEAR = "all-linear"
_CHANGES_WEIGHTS = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Starts of the names of initial adapters that peft takes out of the base weight."""


def register_peft() -> None:
    """Let LoRA attach to integer linear layers, by their names and by ``all-linear``."""
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = IntegerLoraModel


class IntegerLoraLinear(lora.Linear):  # type: ignore[misc]  # peft may be missing where types are checked
    """An adapter beside an integer linear layer, which goes on computing with its codes."""

    in_features: int
    out_features: int

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse to be merged.

        Raises:
            UnsupportedError: always.
        """
        raise _merge_error("")

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        inner = module.layer if isinstance(module, ChangedInput) else module
        features: tuple[int, int] = super()._get_in_out_features(inner)
        return features


class IntegerLoraModel(lora.LoraModel):  # type: ignore[misc]  # peft may be missing where types are checked
    """LoRA on float and integer linear layers.

    A linear layer with a multiplication or rotation of its input is one layer with one adapter, under the
    name that the float layer had: so adapters of the float model fit, and the other way round.
    """

    model: nn.Module

    def _prepare_model(self, peft_config: LoraConfig, model: nn.Module) -> None:
        names = list(_integer_names(model))
        if names:
            _require_weights_kept(peft_config)
            peft_config._register_custom_module(
                dict.fromkeys((QuantizedLinear, ScaledInput, RotatedInput), IntegerLoraLinear)
            )
            _include_integers(peft_config, model, names)
        super()._prepare_model(peft_config, model)

    def _check_merge_allowed(self) -> None:
        merged = (path for path, module in named_modules(self.model) if isinstance(module, IntegerLoraLinear))
        for path in merged:
            raise _merge_error(path)
        super()._check_merge_allowed()


def _integer_names(model: nn.Module) -> Iterator[str]:
    """Yield the paths of integer linear layers, those with something in front of them as one."""
    inside: tuple[str, ...] = ()
    for path, module in named_modules(model):
        if not path.startswith(inside or "\0"):
            if isinstance(module, QuantizedLinear) or _has_linear(module):
                yield path
            if isinstance(module, ChangedInput | BaseTunerLayer):
                inside += (f"{path}.",)


def _has_linear(module: nn.Module) -> bool:
    return isinstance(module, ChangedInput) and isinstance(module.layer, QuantizedLinear | nn.Linear)


def _include_integers(config: LoraConfig, model: nn.Module, names: list[str]) -> None:
    """Replace ``all-linear`` by the names of the float layers that it means to peft, and of integer ones.

    The output layer of a language model is not among them, which is what peft does with float ones.
    """
    wanted: object = config.target_modules
    if not isinstance(wanted, str) or wanted.lower() != _ALL_LINEAR:
        return
    _maybe_include_all_linear_layers(config, model)
    get_head = getattr(model, "get_output_embeddings", None)
    head = None if get_head is None else get_head()
    of_heads = {path for path, module in named_modules(model) if module is head}
    scaled = tuple(f"{name}." for name in names)
    floats = {name for name in config.target_modules if not name.startswith(scaled)}
    config.target_modules = floats | (set(names) - of_heads)


def _require_weights_kept(config: LoraConfig) -> None:
    """Refuse initial adapters that are taken out of the base weight.

    Raises:
        UnsupportedError: naming the setting.
    """
    wanted: object = config.init_lora_weights
    if isinstance(wanted, str) and wanted.lower().startswith(_CHANGES_WEIGHTS):
        expected = "one that leaves the base weight alone, such as true, 'gaussian' or 'orthogonal'"
        raise UnsupportedError(Problem(field="init_lora_weights", value=wanted, expected=expected))


def _merge_error(path: str) -> UnsupportedError:
    remedy = (
        "keep the adapter beside the model, or merge it into the float model and convert that; "
        "unload() gives the integer model back"
    )
    sentence = "an adapter is not merged into an integer layer, whose codes would have to be rounded again"
    found, expected = Found("a merge"), "an adapter beside the layer"
    problem = Problem(
        module=path, field="adapter", value=found, expected=expected, remedy=remedy, sentence=sentence
    )
    return UnsupportedError(problem)
