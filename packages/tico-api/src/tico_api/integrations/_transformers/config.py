"""The `quantization_config` of a model: the name of the method, and what was or is to be done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import final

from transformers.utils.quantization_config import QuantizationConfigMixin

from tico_config import BaseConfig, ConfigError, Found, Problem, PTQConfig, from_json, to_json
from tico_modules import QUANT_METHOD


@final
class TicoConfig(QuantizationConfigMixin):
    """The `quantization_config` of transformers for the method ``tico``.

    With `quant_config`, `from_pretrained` rounds a float model as soon as it has loaded it. Without, it
    stands in the config of a saved model.

    Args:
        quant_config: a config that needs no data, ``PTQConfig(activation=no_quant())``, or its JSON.
        attention: the attention of the saved model, by part where its parts have others.
        dtype: the dtype of its floating-point parameters, as torch calls it.
        conversions: the configs of the conversions that made the saved model, as JSON values.

    Raises:
        ConfigError: `quant_config` is another config.
    """

    quant_method: str  # type: ignore[assignment]  # an enumeration of the methods that transformers has itself

    def __init__(
        self,
        quant_config: BaseConfig | str | None = None,
        *,
        attention: str | dict[str, object] | None = None,
        dtype: str | None = None,
        conversions: Sequence[Mapping[str, object]] = (),
        quant_method: str = QUANT_METHOD,
    ) -> None:
        self.quant_method = quant_method
        self.quant_config = _as_text(quant_config)
        self.attention = attention
        self.dtype = dtype
        self.conversions = list(conversions)

    @property
    def rounding(self) -> BaseConfig | None:
        """The config by which a float model is rounded after it has been loaded, if there is one."""
        return None if self.quant_config is None else from_json(self.quant_config)


def config_of_runs(runs: Sequence[str]) -> TicoConfig:
    """Return the config of a model that has been converted by `runs`, which are configs as JSON."""
    return TicoConfig(conversions=[json.loads(text) for text in runs if text])


def _as_text(config: BaseConfig | str | None) -> str | None:
    if config is None:
        return None
    parsed = from_json(config) if isinstance(config, str) else config
    if not isinstance(parsed, PTQConfig) or parsed.activation.is_quantized:
        remedy = "pass PTQConfig(activation=no_quant()), or load the float model and convert it"
        found, expected = Found(f"a {type(parsed).__name__} that needs them"), "a config that needs no data"
        raise ConfigError(Problem(field="quant_config", value=found, expected=expected, remedy=remedy))
    return to_json(parsed)
