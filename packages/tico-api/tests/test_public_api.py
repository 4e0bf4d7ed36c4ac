"""The public names of tico_api."""

from public_api import PublicAPI, PublicNames


class TestPublicAPI(PublicAPI):
    """What `tico_api` promises."""

    package = "tico_api"
    hidden = ("transformers", "torchao")
    names = (
        "BUILT_IN",
        "AWQConfig",
        "BlockTuneConfig",
        "CLEConfig",
        "GPTQConfig",
        "HQQConfig",
        "Offload",
        "PT2EConfig",
        "PTQConfig",
        "Registry",
        "Report",
        "RotationConfig",
        "ScaleTuneConfig",
        "SmoothQuantConfig",
        "calibrate",
        "convert",
        "coverage",
        "load_calibration",
        "load_quantized",
        "map_checkpoint",
        "prepare",
        "quantize_checkpoint",
        "quantizer_entry",
        "report",
        "save_calibration",
        "save_quantized",
        "set_backend",
        "compare",
        "perplexity",
        "plan",
    )


class TestPublicAlias(PublicAPI):
    """What `tico.quantization` promises."""

    package = "tico.quantization"
    hidden = ("transformers", "torchao")
    names = (
        "BUILT_IN",
        "AWQConfig",
        "BlockTuneConfig",
        "CLEConfig",
        "GPTQConfig",
        "HQQConfig",
        "Offload",
        "PT2EConfig",
        "PTQConfig",
        "Registry",
        "Report",
        "RotationConfig",
        "ScaleTuneConfig",
        "SmoothQuantConfig",
        "calibrate",
        "convert",
        "coverage",
        "load_calibration",
        "load_quantized",
        "map_checkpoint",
        "prepare",
        "quantize_checkpoint",
        "quantizer_entry",
        "report",
        "save_calibration",
        "save_quantized",
        "set_backend",
        "compare",
        "perplexity",
        "plan",
    )


class TestPublicConfigAlias(PublicAPI):
    """What `tico.quantization.config` promises."""

    package = "tico.quantization.config"
    hidden = ("transformers", "torchao")
    names = (
        "FLOAT_FORMATS",
        "FP8",
        "MXFP4",
        "MXFP6",
        "MXFP8",
        "MXINT8",
        "NVFP4",
        "Element",
        "FloatFormat",
        "NumberFormat",
        "ScaleFormat",
        "INT4",
        "INT8",
        "INT16",
        "INT32",
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
        "EntropySpec",
        "Found",
        "FrozenMapping",
        "GPTQConfig",
        "Granularity",
        "GridFormat",
        "GridRule",
        "HQQConfig",
        "HessianMSESpec",
        "HistogramSpec",
        "LayerFormat",
        "LayerRule",
        "LifecycleError",
        "MSESpec",
        "MinMaxSpec",
        "MissingExtraError",
        "ModuleConfig",
        "NoQuant",
        "NumericsError",
        "ObserverSpec",
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
        "ScaleTuneConfig",
        "Rule",
        "SmoothQuantConfig",
        "SmoothingConfig",
        "SpecConfig",
        "SuperBlock",
        "TicoError",
        "UnsupportedError",
        "affine",
        "apply_partial",
        "fingerprint",
        "from_json",
        "no_quant",
        "partial_problems",
        "pattern_problems",
        "profiles",
        "register_config",
        "register_observer_spec",
        "to_json",
        "unmatched_problems",
        "winning_rule",
    )


class TestPublicIntegrations(PublicNames):
    """What `tico.quantization.integrations` promises."""

    package = "tico.quantization.integrations"
    names = ("register", "round_on_load")
