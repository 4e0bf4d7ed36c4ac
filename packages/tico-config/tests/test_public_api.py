"""The public names of tico_config and of its validators."""

from public_api import PublicAPI


class TestPublicAPI(PublicAPI):
    """What `tico_config` promises."""

    package = "tico_config"
    hidden = ("torch", "tico_observers", "tico_quantizers", "tico_wrapq", "tico_api", "tico")
    names = (
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
        "LayerBlocks",
        "LayerFormat",
        "LayerRule",
        "LifecycleError",
        "MSESpec",
        "MXFormat",
        "MXSpec",
        "MinMaxSpec",
        "MissingExtraError",
        "ModuleConfig",
        "NoQuant",
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
        "ScaleTuneConfig",
        "Rule",
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
        "is_left_out",
        "mx",
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
    )


class TestPublicValidation(PublicAPI):
    """What `tico_config.validation` promises to authors of configs."""

    package = "tico_config.validation"
    hidden = TestPublicAPI.hidden
    names = (
        "as_float",
        "check_boolean",
        "check_choice",
        "check_instance",
        "check_integer",
        "check_number",
        "check_optional_integer",
        "freeze",
        "refuse",
    )
