"""What `from_pretrained` takes to round a float model."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from tico_config import BaseConfig, Found, MissingExtraError, Problem

if TYPE_CHECKING:
    from tico_api.integrations._transformers_config import TicoConfig


def round_on_load(quant_config: BaseConfig) -> TicoConfig:
    """Return the `quantization_config` with which `from_pretrained` of transformers rounds a float model.

    `quant_config` needs no data: ``PTQConfig(activation=no_quant())``, with the weight format and the
    overrides that are wanted. The float model is loaded first, and then rounded in place.

    Raises:
        ConfigError: `quant_config` needs data.
        MissingExtraError: transformers is not installed.
    """
    if find_spec("transformers") is None:
        found, expected = Found("no such package"), "the package transformers to be installed"
        raise MissingExtraError(Problem(value=found, expected=expected, remedy="pip install 'tico-api[hf]'"))
    from tico_api.integrations._transformers_config import TicoConfig

    return TicoConfig(quant_config)
