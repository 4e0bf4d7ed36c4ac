"""Converted models inside other libraries: what transformers and peft are told about integer layers."""

from tico_api.integrations._registration import register

__all__ = ["register"]
