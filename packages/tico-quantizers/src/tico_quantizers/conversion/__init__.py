"""From a plan to integer modules."""

from tico_quantizers.conversion._progress import Progress

__all__ = [
    "Progress",
]
