"""The model families of transformers that are built like LLaMA: their classes differ in name, little else."""

from __future__ import annotations

from typing import Final

FAMILIES: Final = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Gemma")


def classes_of(part: str) -> tuple[str, ...]:
    """Return the dotted path of the class ``<family><part>`` of every family.

    >>> classes_of("MLP")[0]
    'transformers.models.llama.modeling_llama.LlamaMLP'
    """
    return tuple(_path(family, part) for family in FAMILIES)


def _path(family: str, part: str) -> str:
    name = family.lower()
    return f"transformers.models.{name}.modeling_{name}.{family}{part}"
