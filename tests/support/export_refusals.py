"""Why cells of the matrix of exports are refused."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

import attrs

from export_cells import TARGETS
from tico_config import TicoError, UnsupportedError
from tico_export import ExporterRegistry, Source
from tico_export.formats import (
    AWQ_FORMAT_ENTRY,
    COMPRESSED_TENSORS_ENTRY,
    EXECUTORCH_ENTRY,
    GGUF_ENTRY,
    GPTQ_FORMAT_ENTRY,
    ONNX_ENTRY,
    OPENVINO_ENTRY,
    PT2_ENTRY,
)

_EXPORTERS: Final = ExporterRegistry(
    [
        *(AWQ_FORMAT_ENTRY, COMPRESSED_TENSORS_ENTRY, EXECUTORCH_ENTRY, GGUF_ENTRY),
        *(GPTQ_FORMAT_ENTRY, ONNX_ENTRY, OPENVINO_ENTRY, PT2_ENTRY),
    ]
)


@attrs.frozen
class Refusal:
    """Why targets refuse models of schemes, of which any pattern fits: words of the first problem."""

    targets: tuple[str, ...]
    subjects: tuple[str, ...]
    schemes: tuple[str, ...]
    reason: str

    def fits(self, subject: str, scheme: str, target: str) -> bool:
        """Whether a cell is one of these."""
        pairs = ((target, self.targets), (subject, self.subjects), (scheme, self.schemes))
        return all(any(fnmatchcase(name, each) for each in patterns) for name, patterns in pairs)


_ANY: Final = ("*",)
_NETWORKS: Final = ("linear stack", "convolutions", "encoder")
_TEXT: Final = ("embedded LLaMA", "Qwen3")
_XNNPACK: Final = ("PT2 xnnpack", "ExecuTorch")
_FOLDERS: Final = ("CompressedTensors", "GPTQFormat", "AWQFormat")
_ASYMMETRIC: Final = ("W4 g32", "W4 g128")
_ACTIVATIONS: Final = ("W8A8", "W8A8 int8", "W8A8 per token", "W8A16")
_LINEAR: Final = ("W8A8 linear", "W8A8 per token linear")
_ELEMENTS: Final = ("FP8*", "MXFP4", "NVFP4")
_INTEGERS_ALONE: Final = ("PT2 *", "OpenVINO", "ExecuTorch", "GPTQFormat", "AWQFormat")

REFUSALS: Final = (
    Refusal(_ANY, ("convolutions",), ("W4 g*",), "does not divide its 27 input columns"),
    Refusal(
        _ANY,
        ("encoder",),
        (*_LINEAR, "FP8 per token linear"),
        "has no module with a point or weight to quantize",
    ),
    Refusal(_INTEGERS_ALONE, _ANY, _ELEMENTS, "has no place for them"),
    Refusal(("GGUF",), _ANY, ("FP8*", "NVFP4"), "has no place for them"),
    Refusal(("Onnx",), _ANY, ("MXFP4", "NVFP4"), "has no kernel for elements of 4 bits"),
    Refusal(("Onnx",), _ANY, ("FP8 per token linear",), "has a place in weights only"),
    Refusal(_XNNPACK, _ANY, ("W8A8", "PT2E onnx"), "and the activation is uint8"),
    Refusal(_XNNPACK, _ANY, ("PT2E circle",), "takes weights of int8, and the weight is uint8"),
    Refusal(_XNNPACK, _ANY, ("W8A8 per token*",), "and the activation has a grid a token"),
    Refusal(_XNNPACK, _ANY, ("W8A16",), "takes activations of int8, and the activation is int16"),
    Refusal(_XNNPACK, _ANY, _ASYMMETRIC, "takes weights of int8, and the weight is uint4"),
    Refusal(_XNNPACK, _ANY, ("W4*",), "takes weights of int8, and the weight is int4"),
    Refusal(("PT2 openvino",), _ANY, ("W8A16",), "takes activations of uint8 or int8"),
    Refusal(("PT2 openvino",), _ANY, _ASYMMETRIC, "takes weights of int8 or uint8, and the weight is uint4"),
    Refusal(("PT2 openvino",), _ANY, ("W4*",), "takes weights of int8 or uint8, and the weight is int4"),
    Refusal(("PT2 circle",), _ANY, ("W8A8 per token*",), "and the activation has a grid a token"),
    Refusal(("PT2 circle",), _ANY, _ASYMMETRIC, "takes weights of uint4 with a scale a row or one scale"),
    Refusal(("PT2 circle",), _ANY, ("W4*",), "and the weight is int4"),
    Refusal(_FOLDERS, _NETWORKS, _ANY, "must be a model of transformers, which reads the folder"),
    Refusal(_FOLDERS, _TEXT, ("PT2E*",), "must be a model of transformers, which reads the folder"),
    Refusal(("GGUF",), _NETWORKS, _ANY, "and this is no model of transformers"),
    Refusal(("GGUF",), _TEXT, ("PT2E*",), "and this is no model of transformers"),
    Refusal(("GGUF",), _TEXT, (*_ACTIVATIONS, *_LINEAR), "holds no grids of activations"),
    Refusal(("CompressedTensors",), _TEXT, ("W8A16",), "takes inputs of at most 8 bits"),
    Refusal(("CompressedTensors",), _TEXT, _ACTIVATIONS, "holds grids of the inputs of layers only"),
    Refusal(("GPTQFormat", "AWQFormat"), _TEXT, _ACTIVATIONS, "takes layers of Linear"),
    Refusal(("GPTQFormat",), _TEXT, _LINEAR, "takes inputs in float"),
    Refusal(("AWQFormat",), _TEXT, _LINEAR, "takes weights of 4 bits"),
    Refusal(("GPTQFormat", "AWQFormat"), ("embedded LLaMA",), ("W4*",), "scales within the range of float16"),
)
"""The first that fits a cell counts."""


def listed(subject: str, scheme: str, target: str) -> Refusal | None:
    """Return why a cell is refused; None where it is not."""
    return next((each for each in REFUSALS if each.fits(subject, scheme, target)), None)


def every_problem(source: Source, target: str) -> TicoError | None:
    """Return the error that `export` would give before it writes anything; None where there is none."""
    try:
        problems = list(_EXPORTERS.exporter(TARGETS[target]).every_problem(source))
    except TicoError as error:
        return error
    return UnsupportedError(*problems) if problems else None
