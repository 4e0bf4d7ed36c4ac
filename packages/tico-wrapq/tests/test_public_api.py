"""The public names of tico_wrapq."""

from public_api import PublicAPI


class TestPublicAPI(PublicAPI):
    """What `tico_wrapq` promises."""

    package = "tico_wrapq"
    hidden = ("tico_api", "tico")
    names = (
        "ACT_IN",
        "ACT_OUT",
        "Add",
        "Concat",
        "Coverage",
        "CoverageLine",
        "FoldedNorm",
        "Frozen",
        "MatMul",
        "Mode",
        "Mul",
        "PTQCalibration",
        "PTQQuantizer",
        "PTQWrapper",
        "Passing",
        "PointDeclaration",
        "QuantConv",
        "QuantConvTranspose",
        "QuantEmbedding",
        "QuantEmbeddingBag",
        "QuantInteger",
        "QuantIntegerEmbedding",
        "QuantJoint",
        "QuantLinear",
        "QuantLlamaAttention",
        "QuantLlamaDecoderLayer",
        "QuantLlamaMLP",
        "QuantModuleBase",
        "QuantMultiheadAttention",
        "QuantNorm",
        "QuantOutput",
        "QuantPoint",
        "QuantScaledEmbedding",
        "QuantStub",
        "QuantTransformerEncoderLayer",
        "QuantUnary",
        "QuantizedEmbeddingBag",
        "QuantizedNorm",
        "RESTORABLE_MODULES",
        "Role",
        "Watching",
        "WeightCodes",
        "WrapperEntry",
        "WrapperRegistry",
        "coverage",
        "load_calibration",
        "lookup",
        "register",
        "save_calibration",
        "try_register",
        "wrapper_entry",
    )
