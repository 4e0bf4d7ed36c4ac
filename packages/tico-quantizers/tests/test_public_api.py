"""The public names of tico_quantizers."""

from public_api import PublicAPI


class TestPublicAPI(PublicAPI):
    """What `tico_quantizers` promises."""

    package = "tico_quantizers"
    hidden = ("tico_wrapq", "tico_api", "tico")
    names = (
        "INTEGER_MODULES",
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
        "GPTQQuantizer",
        "LayerReport",
        "Layout",
        "PackedWeight",
        "Parts",
        "Prepared",
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
        "below",
        "child_path",
        "children",
        "find_blocks",
        "installed_entries",
        "load_quantized",
        "model_fingerprint",
        "named_modules",
        "parameter",
        "quantize_weight",
        "quantizer_entry",
        "remember",
        "report",
        "require_watched",
        "runs_of",
        "save_quantized",
        "stand_in",
        "tensor_of",
        "tied_paths",
    )
