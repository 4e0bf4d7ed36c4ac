"""The public names of tico_modules."""

from public_api import PublicAPI


class TestPublicAPI(PublicAPI):
    """What `tico_modules` promises."""

    package = "tico_modules"
    hidden = ("tico_quantizers", "tico_pt2e", "tico_wrapq", "tico_api", "tico")
    names = (
        "BrokenPlugIn",
        "INTEGER_MODULES",
        "ActivationGrid",
        "ConvSettings",
        "ConvTransposeSettings",
        "DataFingerprint",
        "Edit",
        "ExactModule",
        "LayerReport",
        "Layout",
        "PackedWeight",
        "Parts",
        "QuantizedConv1d",
        "QuantizedConv2d",
        "QuantizedConv3d",
        "QuantizedConvTranspose1d",
        "QuantizedConvTranspose2d",
        "QuantizedConvTranspose3d",
        "QuantizedEmbedding",
        "QuantizedLinear",
        "QuantizedModule",
        "Report",
        "RestorableModule",
        "Run",
        "ScaledInput",
        "TransposedLinear",
        "select_below",
        "child_path",
        "children",
        "copy_bias",
        "drop_stale_ties",
        "keep_dequantized",
        "library_versions",
        "load_quantized",
        "model_fingerprint",
        "named_modules",
        "find_entry_points",
        "own_tensor",
        "load_plug_in",
        "parameter",
        "record_outputs",
        "remember",
        "report",
        "runs_of",
        "save_quantized",
        "set_backend",
        "answer_for",
        "tensor_place",
        "carry_over",
        "require_tensor",
        "find_tied_paths",
    )
