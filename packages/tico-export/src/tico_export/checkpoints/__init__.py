"""Folders of safetensors with a config beside them, as transformers and those who follow it read them."""

from tico_export.checkpoints._checkpoint import CheckpointExporter, CheckpointTarget
from tico_export.checkpoints._float_model import (
    float_model,
    has_tied_floats,
    left_in_float,
    write_beside,
)
from tico_export.checkpoints._shards import INDEX, ONE_FILE, SHARD_BYTES, write_shards
from tico_export.checkpoints._unheld import unheld_problems
from tico_export.checkpoints._words import words_of

__all__ = [
    "INDEX",
    "ONE_FILE",
    "SHARD_BYTES",
    "CheckpointExporter",
    "CheckpointTarget",
    "float_model",
    "has_tied_floats",
    "left_in_float",
    "unheld_problems",
    "words_of",
    "write_beside",
    "write_shards",
]
