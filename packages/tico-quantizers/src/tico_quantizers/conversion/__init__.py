"""From a plan to integer modules."""

from tico_quantizers.conversion._block_quantizer import BlockCalibration, BlockQuantizer
from tico_quantizers.conversion._conversion import Conversion
from tico_quantizers.conversion._opened_experts import ClosedExperts, close_experts, open_experts
from tico_quantizers.conversion._planning import (
    NEVER_CALLED,
    SKIPPED,
    gram_memory,
    planned_layers,
)
from tico_quantizers.conversion._solved_weight import solved_weight
from tico_quantizers.conversion._weight_quantizer import WeightQuantizer

__all__ = [
    "NEVER_CALLED",
    "SKIPPED",
    "BlockCalibration",
    "BlockQuantizer",
    "ClosedExperts",
    "Conversion",
    "WeightQuantizer",
    "close_experts",
    "gram_memory",
    "open_experts",
    "planned_layers",
    "solved_weight",
]
