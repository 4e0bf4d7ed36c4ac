"""What is done: algorithms, calibration, and the integer modules that `convert` leaves behind."""

from tico_quantizers._calibration.blocks import find_blocks
from tico_quantizers._calibration.forward_watch import Calibration, Recorder, require_watched
from tico_quantizers._calibration.recorded_outputs import record_outputs
from tico_quantizers._entry_points import offered_entry_points
from tico_quantizers._files.artifact import load_quantized, save_quantized
from tico_quantizers._fingerprint import model_fingerprint
from tico_quantizers._history import remember, report, runs_of
from tico_quantizers._module_tree import (
    Edit,
    child_path,
    children,
    named_modules,
    parameter,
)
from tico_quantizers._modules.activation_grid import ActivationGrid
from tico_quantizers._modules.backend import set_backend
from tico_quantizers._modules.exact_module import ExactModule
from tico_quantizers._modules.layout import Layout, below, tensor_of
from tico_quantizers._modules.packed_weight import PackedWeight
from tico_quantizers._modules.quantized_conv import (
    ConvSettings,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
)
from tico_quantizers._modules.quantized_conv_transpose import (
    ConvTransposeSettings,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
)
from tico_quantizers._modules.quantized_linear import QuantizedEmbedding, QuantizedLinear
from tico_quantizers._modules.quantized_module import Parts, QuantizedModule
from tico_quantizers._modules.restorable import RestorableModule
from tico_quantizers._quantizer import (
    AnyPrepared,
    AnyQuantizer,
    BaseQuantizer,
    Converted,
    Example,
    Prepared,
    QuantizerEntry,
    Registry,
    installed_entries,
    quantizer_entry,
)
from tico_quantizers._report import LayerReport, Report
from tico_quantizers._run import Run
from tico_quantizers._smoothing.scaled_input import ScaledInput
from tico_quantizers._stand_in import stand_in
from tico_quantizers._weight_view import tied_paths
from tico_quantizers.awq import AWQQuantizer
from tico_quantizers.gptq import GPTQQuantizer, quantize_weight
from tico_quantizers.pt2e import GPTQEverywhere, PT2EQuantizer, QuantGraph
from tico_quantizers.smoothquant import SmoothQuantQuantizer, smoothing_scale

INTEGER_MODULES = (
    ScaledInput,
    QuantizedLinear,
    QuantizedEmbedding,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
)

__all__ = [
    "INTEGER_MODULES",
    "AWQQuantizer",
    "ActivationGrid",
    "AnyPrepared",
    "AnyQuantizer",
    "BaseQuantizer",
    "Calibration",
    "ConvSettings",
    "ConvTransposeSettings",
    "Converted",
    "Edit",
    "ExactModule",
    "Example",
    "GPTQEverywhere",
    "GPTQQuantizer",
    "LayerReport",
    "Layout",
    "PT2EQuantizer",
    "PackedWeight",
    "Parts",
    "Prepared",
    "QuantGraph",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedConv3d",
    "QuantizedConvTranspose1d",
    "QuantizedConvTranspose2d",
    "QuantizedConvTranspose3d",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedModule",
    "QuantizerEntry",
    "Recorder",
    "Registry",
    "Report",
    "RestorableModule",
    "Run",
    "ScaledInput",
    "SmoothQuantQuantizer",
    "below",
    "child_path",
    "children",
    "find_blocks",
    "installed_entries",
    "load_quantized",
    "model_fingerprint",
    "named_modules",
    "offered_entry_points",
    "parameter",
    "quantize_weight",
    "quantizer_entry",
    "record_outputs",
    "remember",
    "report",
    "require_watched",
    "runs_of",
    "save_quantized",
    "set_backend",
    "smoothing_scale",
    "stand_in",
    "tensor_of",
    "tied_paths",
]
