"""Post-training quantization in three steps: prepare, calibrate, convert."""

from tico_api._analysis import analyze
from tico_api._checkpoints import quantize_checkpoint
from tico_api._facade import BUILT_IN, prepare
from tico_api._planning import plan
from tico_config import (
    AWQConfig,
    BlockTuneConfig,
    CLEConfig,
    GPTQConfig,
    HQQConfig,
    KVCacheConfig,
    PT2EConfig,
    PTQConfig,
    RotationConfig,
    ScaleTuneConfig,
    SmoothQuantConfig,
)
from tico_modules import (
    Offload,
    Report,
    cache_bytes,
    load_quantized,
    map_checkpoint,
    quantized_cache,
    report,
    save_quantized,
    set_backend,
)
from tico_quantizers import Registry, quantizer_entry
from tico_quantizers.analysis import Budget
from tico_quantizers.evaluation import Selection, ablate, ablation, compare, perplexity, watch_points
from tico_quantizers.lifecycle import calibrate, convert
from tico_wrapq import coverage, load_calibration, save_calibration

__all__ = [
    "BUILT_IN",
    "AWQConfig",
    "BlockTuneConfig",
    "Budget",
    "CLEConfig",
    "GPTQConfig",
    "HQQConfig",
    "KVCacheConfig",
    "Offload",
    "PT2EConfig",
    "PTQConfig",
    "Registry",
    "Report",
    "RotationConfig",
    "ScaleTuneConfig",
    "Selection",
    "SmoothQuantConfig",
    "ablate",
    "ablation",
    "analyze",
    "cache_bytes",
    "calibrate",
    "compare",
    "convert",
    "coverage",
    "load_calibration",
    "load_quantized",
    "map_checkpoint",
    "perplexity",
    "plan",
    "prepare",
    "quantize_checkpoint",
    "quantized_cache",
    "quantizer_entry",
    "report",
    "save_calibration",
    "save_quantized",
    "set_backend",
    "watch_points",
]
