"""Folders of safetensors with a config beside them, as transformers and those who follow it read them."""

from tico_export.checkpoints._checkpoint import CheckpointExporter, CheckpointTarget
from tico_export.checkpoints._progress import without_progress
from tico_export.checkpoints._words import words_of

__all__ = ["CheckpointExporter", "CheckpointTarget", "without_progress", "words_of"]
