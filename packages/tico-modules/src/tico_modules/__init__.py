"""Integer modules of converted models, their reports and files, and edits of a module tree.

Enough to load and run a saved model, and what exporters stand on. No algorithm is in here.
"""

from tico_modules._cache.key_value_cache import (
    KV_CACHE,
    KeyValueCache,
    cache_bytes,
    find_cache,
    given_arguments,
    quantized_cache,
    reasons_against_codes,
)
from tico_modules._cache.layer_cache import LayerCache, over_units
from tico_modules._cache.watched_call import WatchedCall, watched_call
from tico_modules._facts.layer_report import SQNR, LayerReport
from tico_modules._facts.model_facts import CodeCounts, LayerSize, ModelFacts, PointRange, RunFacts
from tico_modules._files.artifact import load_quantized, save_quantized
from tico_modules._files.companions import Tokenizer, write_companions
from tico_modules._files.float_checkpoint import map_checkpoint
from tico_modules._files.model_stage import empty_copy, load_stage, save_stage
from tico_modules._files.saved_model import SavedModel
from tico_modules._files.shards import INDEX_NAME
from tico_modules._files.transformers_model import QUANT_METHOD, mark_initialized
from tico_modules._layers.backend import set_backend
from tico_modules._layers.changed_input import ChangedInput
from tico_modules._layers.expert_weights import ExpertWeights, FloatExpert
from tico_modules._layers.lent_state import Forward, call_as
from tico_modules._layers.quantized_conv import (
    ConvSettings,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
)
from tico_modules._layers.quantized_conv_transpose import (
    ConvTransposeSettings,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
)
from tico_modules._layers.quantized_experts import QuantizedExperts
from tico_modules._layers.quantized_linear import QuantizedEmbedding, QuantizedLinear
from tico_modules._layers.quantized_module import Parts, QuantizedModule, copy_bias
from tico_modules._layers.restorable import RestorableModule
from tico_modules._layers.rotated_input import RotatedInput
from tico_modules._layers.scaled_input import ScaledInput
from tico_modules._layers.transposed_linear import TransposedLinear
from tico_modules._page.comparison import Ablated, Compared, Seen
from tico_modules._record.fingerprint import DataFingerprint, all_tensors, model_fingerprint
from tico_modules._record.history import remember, report, runs_of
from tico_modules._record.model_bytes import bytes_by_line, total_bytes
from tico_modules._record.named_grids import named_grids
from tico_modules._record.report import Report
from tico_modules._record.run import Run, library_versions
from tico_modules._record.stand_in import carry_over
from tico_modules._storage.activation_grid import ActivationGrid, is_fixed, needs_calibration
from tico_modules._storage.exact_module import ExactModule
from tico_modules._storage.exported import code_dtype, dialect_operator
from tico_modules._storage.float_weight import FloatWeight
from tico_modules._storage.kept_weights import keep_dequantized, read_as
from tico_modules._storage.layout import Layout, require_tensor, select_below
from tico_modules._storage.packed_weight import PackedWeight
from tico_modules._storage.planned_weight import PlannedWeight
from tico_modules._storage.read_only_weight import is_read_only, read_only
from tico_modules._storage.weight_statistics import weight_sqnr
from tico_modules._tree.answers import answer_for
from tico_modules._tree.edit import Edit
from tico_modules._tree.entry_points import find_entry_points
from tico_modules._tree.free_memory import return_free_memory
from tico_modules._tree.module_tree import (
    child_path,
    children,
    named_modules,
    own_tensor,
    parameter,
    tensor_place,
)
from tico_modules._tree.offload import Offload
from tico_modules._tree.plug_ins import BrokenPlugIn, load_plug_in
from tico_modules._tree.progress import Progress
from tico_modules._tree.recorded_outputs import record_outputs
from tico_modules._tree.result_marks import add_result_mark, mark_result
from tico_modules._tree.stage import PREPARED, is_prepared
from tico_modules._tree.ties import drop_broken_ties, drop_stale_ties, find_tied_paths

INTEGER_MODULES = (
    ScaledInput,
    RotatedInput,
    QuantizedLinear,
    QuantizedEmbedding,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedExperts,
    KeyValueCache,
)

__all__ = [
    "INDEX_NAME",
    "INTEGER_MODULES",
    "KV_CACHE",
    "PREPARED",
    "QUANT_METHOD",
    "SQNR",
    "Ablated",
    "ActivationGrid",
    "BrokenPlugIn",
    "ChangedInput",
    "CodeCounts",
    "Compared",
    "ConvSettings",
    "ConvTransposeSettings",
    "DataFingerprint",
    "Edit",
    "ExactModule",
    "ExpertWeights",
    "FloatExpert",
    "FloatWeight",
    "Forward",
    "KeyValueCache",
    "LayerCache",
    "LayerReport",
    "LayerSize",
    "Layout",
    "ModelFacts",
    "Offload",
    "PackedWeight",
    "Parts",
    "PlannedWeight",
    "PointRange",
    "Progress",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedConv3d",
    "QuantizedConvTranspose1d",
    "QuantizedConvTranspose2d",
    "QuantizedConvTranspose3d",
    "QuantizedEmbedding",
    "QuantizedExperts",
    "QuantizedLinear",
    "QuantizedModule",
    "Report",
    "RestorableModule",
    "RotatedInput",
    "Run",
    "RunFacts",
    "SavedModel",
    "ScaledInput",
    "Seen",
    "Tokenizer",
    "TransposedLinear",
    "WatchedCall",
    "add_result_mark",
    "all_tensors",
    "answer_for",
    "bytes_by_line",
    "cache_bytes",
    "call_as",
    "carry_over",
    "child_path",
    "children",
    "code_dtype",
    "copy_bias",
    "dialect_operator",
    "drop_broken_ties",
    "drop_stale_ties",
    "empty_copy",
    "find_cache",
    "find_entry_points",
    "find_tied_paths",
    "given_arguments",
    "is_fixed",
    "is_prepared",
    "is_read_only",
    "keep_dequantized",
    "library_versions",
    "load_plug_in",
    "load_quantized",
    "load_stage",
    "map_checkpoint",
    "mark_initialized",
    "mark_result",
    "model_fingerprint",
    "named_grids",
    "named_modules",
    "needs_calibration",
    "over_units",
    "own_tensor",
    "parameter",
    "quantized_cache",
    "read_as",
    "read_only",
    "reasons_against_codes",
    "record_outputs",
    "remember",
    "report",
    "require_tensor",
    "return_free_memory",
    "runs_of",
    "save_quantized",
    "save_stage",
    "select_below",
    "set_backend",
    "tensor_place",
    "total_bytes",
    "watched_call",
    "weight_sqnr",
    "write_companions",
]
