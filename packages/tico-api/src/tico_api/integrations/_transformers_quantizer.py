"""The quantizer that transformers asks while it loads a model with the method ``tico``."""

from __future__ import annotations

from pathlib import Path
from typing import final

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from tico_api._facade import prepare
from tico_api.integrations._transformers_config import TicoConfig
from tico_api.integrations._transformers_loading import Loading
from tico_config import ConfigError, Found, Problem, UnsupportedError
from tico_modules import INDEX_NAME
from tico_quantizers.lifecycle import convert


@final
class TicoQuantizer(HfQuantizer):
    """Puts the integer modules of a saved model into its float skeleton, or rounds a float model.

    transformers then reads the tensors itself, so that it can spread them over devices.
    """

    quantization_config: TicoConfig
    _loading: Loading | None = None
    _asked: torch.dtype | None = None

    def validate_environment(self, *args: object, **kwargs: object) -> None:
        """Refuse a float model without a config that says how to round it."""
        if not self.pre_quantized and self.quantization_config.quant_config is None:
            expected, remedy = "a config to round by", "pass round_on_load(PTQConfig(activation=no_quant()))"
            found = Found("none, for a float model")
            raise ConfigError(Problem(field="quant_config", value=found, expected=expected, remedy=remedy))

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Let the model have the attention that it was saved with, and its own index of files."""
        if self.pre_quantized:
            setattr(config, "transformers_weights", INDEX_NAME)  # noqa: B010
            if config._attn_implementation is None:
                config._attn_implementation = self.quantization_config.attention
        return config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Remember the dtype that was asked for."""
        self._asked = dtype
        return dtype

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: object) -> None:
        if self.pre_quantized:
            files = kwargs.get("checkpoint_files")
            paths = [Path(str(file)) for file in files] if isinstance(files, list) else []
            self._loading = Loading.begin(model, paths, self._cast)

    @property
    def _cast(self) -> torch.dtype | None:
        """The dtype to cast the float part of a saved model to; None for the one that it has."""
        same = str(self._asked).removeprefix("torch.") == self.quantization_config.dtype
        return None if same else self._asked

    def get_new_dtype(
        self, converter: object, param: object, dtype: torch.dtype | None
    ) -> torch.dtype | None:
        """Return the dtype of a tensor of the file in the model: its own, unless another was asked for."""
        return None if self._cast is None else super().get_new_dtype(converter, param, dtype)

    def update_weight_conversions(
        self, weight_conversions: list[object], model: PreTrainedModel
    ) -> list[object]:
        """Leave names as they are: files have those of the model."""
        if self.pre_quantized:
            return []
        given: list[object] = super().update_weight_conversions(weight_conversions, model)  # type: ignore[no-untyped-call]
        return given

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: object
    ) -> PreTrainedModel:
        rounding = self.quantization_config.rounding
        if self._loading is not None:
            self._loading.finish()
            self._loading = None
        elif rounding is not None:
            convert(prepare(model, rounding))
        return model

    def is_serializable(self) -> bool:
        """Return that `save_pretrained` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained on the integer layers."""
        return True

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        remedy = "load the float model instead, or read weights by layer.dequantize()"
        sentence = "a model with integer layers is not turned into a float one again"
        raise UnsupportedError(
            Problem(
                field="model", value=Found("dequantize()"), expected="left", sentence=sentence, remedy=remedy
            )
        )
