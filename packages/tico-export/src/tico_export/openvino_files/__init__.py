"""Files of OpenVINO: how a language model of ONNX keeps its keys and values in the runtime, and names."""

from tico_export.openvino_files._names import name_by_place
from tico_export.openvino_files._stateful import BEAM, Graph, keep_state

__all__ = ["BEAM", "Graph", "keep_state", "name_by_place"]
