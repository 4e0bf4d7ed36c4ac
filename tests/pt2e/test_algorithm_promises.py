"""What every algorithm promises, kept by PT2E."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from tico_config import PT2EConfig
from tico_pt2e import PT2EQuantizer
from tico_quantizers import Registry, quantizer_entry
from tico_quantizers.testing import AlgorithmPromises, ResidualBlock, seeded


class TestPT2E(AlgorithmPromises):
    """PT2E keeps the promises of an algorithm, on one block, as every export takes half a second."""

    config = PT2EConfig()
    registry = Registry([quantizer_entry(PT2EConfig, PT2EQuantizer)])
    faults = 2
    unmet: ClassVar[Mapping[str, str]] = {
        "test_hooks_are_called_as_often_as_the_model": "exporting runs the hooks, and a graph has none",
        "test_result_takes_part_in_gradients": "torch.export fails in inference mode",
        "test_report_has_a_line_for_every_module_with_a_float_parameter": "a folded batch norm has no line",
    }

    def model(self) -> nn.Module:
        """Return one block."""
        return seeded(lambda: nn.Sequential(ResidualBlock()))

    def are_tied(self, converted: nn.Module, one: str, other: str) -> bool:
        """Tell whether the graph holds one matrix of the shape that the two tied weights have."""
        return [tensor.shape for tensor in converted.state_dict().values()].count((12, 8)) == 1
