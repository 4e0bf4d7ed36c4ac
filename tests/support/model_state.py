"""The state of models and of the process, from `tico_quantizers.testing`, under its old name."""

from tico_quantizers.testing import (
    modules_by_path,
    process_settings,
    refused,
    same_tensors,
    state_of,
    tensors_of,
    unchanged,
)

__all__ = [
    "modules_by_path",
    "process_settings",
    "refused",
    "same_tensors",
    "state_of",
    "tensors_of",
    "unchanged",
]
