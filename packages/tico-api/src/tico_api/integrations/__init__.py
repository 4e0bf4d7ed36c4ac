"""Converted models inside other libraries: what transformers and peft are told about integer layers."""

from tico_api.integrations._registration import register
from tico_api.integrations._rounding import round_on_load

__all__ = ["register", "round_on_load"]
