"""PT2E: quantization of exported graphs."""

from tico_pt2e._gptq import GPTQEverywhere
from tico_pt2e._graph import QuantGraph
from tico_pt2e._module import PT2EQuantizer

__all__ = ["GPTQEverywhere", "PT2EQuantizer", "QuantGraph"]
