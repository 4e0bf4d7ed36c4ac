"""What is asked for: number formats, grids, observer specs and one config class per algorithm."""

from tico_config import profiles
from tico_config._awq_config import AWQConfig
from tico_config._base_config import BaseConfig
from tico_config._block_tune_config import BlockTuneConfig
from tico_config._cle_config import CLEConfig
from tico_config._deployment_profile import DeploymentProfile
from tico_config._dtype import INT4, INT8, INT16, INT32, UINT4, UINT8, UINT16, DType
from tico_config._element import Element
from tico_config._errors import (
    ArtifactError,
    CalibrationError,
    ConfigError,
    DiskFullError,
    LifecycleError,
    MissingExtraError,
    NumericsError,
    TicoError,
    UnsupportedError,
)
from tico_config._float_format import (
    FLOAT_FORMATS,
    FP8,
    MXFP4,
    MXFP6,
    MXFP8,
    MXINT8,
    NVFP4,
    FloatFormat,
    NumberFormat,
    ScaleFormat,
    integer_format,
)
from tico_config._frozen_mapping import FrozenMapping
from tico_config._gptq_config import GPTQConfig, TokenWeights
from tico_config._grid import Granularity, PerChannel, PerGroup, PerTensor, PerToken, QScheme, SuperBlock
from tico_config._grid_format import GridFormat, LayerFormat
from tico_config._grid_rule import GridRule, LayerRule
from tico_config._hqq_config import HQQConfig
from tico_config._json import fingerprint, from_json, to_json
from tico_config._kv_cache_config import KVCacheConfig
from tico_config._layer_blocks import LayerBlocks
from tico_config._module_config import ModuleConfig, OnUncalibrated
from tico_config._observer_specs import (
    CustomObserverSpec,
    EMASpec,
    EntropySpec,
    HessianMSESpec,
    HistogramSpec,
    MinMaxSpec,
    MSESpec,
    NoQuant,
    ObserverSpec,
    PercentileSpec,
)
from tico_config._overrides import (
    Resolution,
    Rule,
    pattern_problems,
    unmatched_overrides,
    unmatched_problems,
    winning_rule,
)
from tico_config._partial import apply_partial, partial_problems
from tico_config._problem import Found, Problem
from tico_config._pt2e_config import PT2EConfig
from tico_config._ptq_config import PTQConfig
from tico_config._quant_spec import QuantSpec, affine, is_left_out, no_quant
from tico_config._registry import register_config, register_observer_spec
from tico_config._rotation_config import RotationConfig
from tico_config._scale_tune_config import ScaleTuneConfig
from tico_config._smoothing_config import SmoothingConfig
from tico_config._smoothquant_config import SmoothQuantConfig
from tico_config._spec_config import SpecConfig

__all__ = [
    "FLOAT_FORMATS",
    "FP8",
    "INT4",
    "INT8",
    "INT16",
    "INT32",
    "MXFP4",
    "MXFP6",
    "MXFP8",
    "MXINT8",
    "NVFP4",
    "UINT4",
    "UINT8",
    "UINT16",
    "AWQConfig",
    "ArtifactError",
    "BaseConfig",
    "BlockTuneConfig",
    "CLEConfig",
    "CalibrationError",
    "ConfigError",
    "CustomObserverSpec",
    "DType",
    "DeploymentProfile",
    "DiskFullError",
    "EMASpec",
    "Element",
    "EntropySpec",
    "FloatFormat",
    "Found",
    "FrozenMapping",
    "GPTQConfig",
    "Granularity",
    "GridFormat",
    "GridRule",
    "HQQConfig",
    "HessianMSESpec",
    "HistogramSpec",
    "KVCacheConfig",
    "LayerBlocks",
    "LayerFormat",
    "LayerRule",
    "LifecycleError",
    "MSESpec",
    "MinMaxSpec",
    "MissingExtraError",
    "ModuleConfig",
    "NoQuant",
    "NumberFormat",
    "NumericsError",
    "ObserverSpec",
    "OnUncalibrated",
    "PT2EConfig",
    "PTQConfig",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "PercentileSpec",
    "Problem",
    "QScheme",
    "QuantSpec",
    "Resolution",
    "RotationConfig",
    "Rule",
    "ScaleFormat",
    "ScaleTuneConfig",
    "SmoothQuantConfig",
    "SmoothingConfig",
    "SpecConfig",
    "SuperBlock",
    "TicoError",
    "TokenWeights",
    "UnsupportedError",
    "affine",
    "apply_partial",
    "fingerprint",
    "from_json",
    "integer_format",
    "is_left_out",
    "no_quant",
    "partial_problems",
    "pattern_problems",
    "profiles",
    "register_config",
    "register_observer_spec",
    "to_json",
    "unmatched_overrides",
    "unmatched_problems",
    "winning_rule",
]
