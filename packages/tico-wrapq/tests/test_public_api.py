"""The public names of tico_wrapq."""

from public_api import PublicAPI


class TestPublicAPI(PublicAPI):
    """What `tico_wrapq` promises."""

    package = "tico_wrapq"
    hidden = ("tico_api", "tico")
    names = (
        "ACT_IN",
        "ACT_OUT",
        "RESTORABLE_MODULES",
        "Coverage",
        "CoverageLine",
        "Frozen",
        "Mode",
        "PTQCalibration",
        "PTQQuantizer",
        "PTQWrapper",
        "Passing",
        "PointDeclaration",
        "QuantConv",
        "QuantEmbedding",
        "QuantInteger",
        "QuantIntegerEmbedding",
        "QuantLinear",
        "QuantLlamaMLP",
        "QuantModuleBase",
        "QuantPoint",
        "QuantUnary",
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
