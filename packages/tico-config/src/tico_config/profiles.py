"""What the runtimes take that models are exported to, one value each.

Each was found by running it: vLLM 0.32 on the CPU, llama.cpp b9190, ONNX Runtime 1.32, OpenVINO 2026.4,
GPTQModel 7.7, XNNPACK by ExecuTorch 1.5, Circle by Samsung's converter 0.3.

>>> from tico_config import GPTQConfig
>>> VLLM.config(GPTQConfig, bits=4, symmetric=True).target.runtime
'vLLM'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from tico_config._deployment_profile import DeploymentProfile
from tico_config._dtype import INT4, INT8, INT16, UINT4, UINT8, UINT16, DType
from tico_config._float_format import FP8, MXFP4
from tico_config._grid import SuperBlock
from tico_config._grid_rule import GridRule, LayerRule

__all__ = [
    "BUILT_IN",
    "CIRCLE",
    "GPTQMODEL",
    "LLAMA_CPP",
    "ONNX_RUNTIME",
    "OPENVINO",
    "VLLM",
    "XNNPACK",
]

_SERVED: Final = ("group", "channel")
_SERVED_GROUPS: Final = (128, 64, 32)

VLLM: Final = DeploymentProfile(
    name="vllm",
    runtime="vLLM",
    layers=(
        LayerRule(
            name="W4A16",
            kinds=("linear",),
            weights=GridRule(dtypes=(INT4,), symmetric=True, units=_SERVED, group_sizes=_SERVED_GROUPS),
            multiple=32,
        ),
        LayerRule(
            name="W4A16 asymmetric",
            kinds=("linear",),
            weights=GridRule(dtypes=(UINT4,), units=_SERVED, group_sizes=_SERVED_GROUPS),
            multiple=32,
            mixed=False,
        ),
        LayerRule(
            name="W8A8",
            kinds=("linear",),
            weights=GridRule(dtypes=(INT8,), symmetric=True, units=("channel",)),
            inputs=GridRule(dtypes=(INT8,), symmetric=True, units=("token", "tensor")),
            alone=False,
        ),
        LayerRule(
            name="W8A16",
            kinds=("linear",),
            weights=GridRule(dtypes=(INT8,), symmetric=True, units=_SERVED, group_sizes=_SERVED_GROUPS),
            multiple=32,
        ),
        LayerRule(
            name="FP8",
            kinds=("linear",),
            weights=GridRule(dtypes=(FP8("e4m3"),), symmetric=True, units=("channel",)),
            inputs=GridRule(dtypes=(FP8("e4m3"),), symmetric=True, units=("token",)),
            alone=False,
        ),
    ),
    fused=(("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")),
)
"""vLLM, from a folder of compressed-tensors: linear layers alone; what it fuses needs one format.

Zero points of 4 bits are loaded where all layers have them, by transformers too.
"""


def _of_bits(*bits: int) -> tuple[DType, ...]:
    """Return the formats of so many bits, signed and unsigned."""
    return tuple(DType(each, signed) for each in bits for signed in (True, False))


def _blocks(name: str, dtypes: Iterable[DType], *, symmetric: bool | None) -> LayerRule:
    """Return the rule of a type of llama.cpp: blocks of 32 columns, of which larger groups are made."""
    units: Final = ("group", "channel", "tensor")
    return LayerRule(
        name=name,
        kinds=("linear", "head", "embedding"),
        weights=GridRule(dtypes=tuple(dtypes), symmetric=symmetric, units=units, group_multiple=32),
        column_multiple=32,
    )


def _super_blocks(name: str, dtype: DType, group_size: int, shared: SuperBlock) -> LayerRule:
    """Return the rule of a K-quant of llama.cpp: unsigned codes have offsets, signed ones are symmetric."""
    return LayerRule(
        name=name,
        kinds=("linear", "head", "embedding"),
        weights=GridRule(
            dtypes=(dtype,),
            symmetric=dtype.signed,
            units=("group",),
            group_sizes=(group_size,),
            super_block=shared,
        ),
        column_multiple=shared.columns,
    )


_WITH_OFFSETS: Final = SuperBlock(columns=256, scale_bits=6, offset_bits=6)

LLAMA_CPP: Final = DeploymentProfile(
    name="llama_cpp",
    runtime="llama.cpp",
    layers=(
        _blocks("Q4_0", _of_bits(4), symmetric=True),
        _blocks("Q4_1", _of_bits(4), symmetric=False),
        _blocks("Q5_0", _of_bits(5), symmetric=True),
        _blocks("Q5_1", _of_bits(5), symmetric=False),
        _blocks("Q8_0", _of_bits(8), symmetric=True),
        # Codes less their zero points have one bit more.
        _blocks("Q8_0 of fewer bits", _of_bits(7, 6), symmetric=None),
        _blocks("Q4_0 or Q4_1 of fewer bits", _of_bits(3, 2), symmetric=None),
        _super_blocks("Q4_K", UINT4, 32, _WITH_OFFSETS),
        _super_blocks("Q5_K", DType.uint(5), 32, _WITH_OFFSETS),
        _super_blocks("Q6_K", DType.int(6), 16, SuperBlock(columns=256, scale_bits=7)),
        LayerRule(
            name="MXFP4",
            kinds=("linear", "head", "embedding"),
            weights=GridRule(dtypes=(MXFP4(),), symmetric=True, units=("group",), group_sizes=(32,)),
            column_multiple=32,
        ),
    ),
)
"""llama.cpp, from a GGUF file: weights in blocks of 32 columns, of which larger groups and rows are made.

In super-blocks of 256, which GPTQ rounds under, are also Q6_K, and with offsets Q4_K and Q5_K. MXFP4 has a
type of its own.
"""


def _whole_model(bits: int) -> LayerRule:
    """Return the rule of GPTQModel for weights of so many bits, which all layers have."""
    return LayerRule(
        name=f"W{bits}A16",
        kinds=("linear",),
        weights=GridRule(dtypes=_of_bits(bits), units=_SERVED, group_sizes=(*_SERVED_GROUPS, 16)),
        multiple=32,
        mixed=False,
    )


GPTQMODEL: Final = DeploymentProfile(
    name="gptqmodel",
    runtime="GPTQModel",
    layers=tuple(map(_whole_model, (4, 8, 3, 2))),
    in_blocks=True,
)
"""GPTQModel, from a folder in the format of GPTQ, or of AWQ, which has 4 bits alone.

All layers have one format; the same ones in every block are quantized, and none outside of the blocks.
"""

_ONNX_VALUES: Final = GridRule(dtypes=(UINT8, INT8, UINT16, INT16), units=("tensor", "token"))
_KERNEL_GROUPS: Final = (128, 64, 32, 16, 256)
_GROUPED: Final = GridRule(dtypes=_of_bits(8, 7, 6, 5), units=("group",), group_sizes=_KERNEL_GROUPS)

ONNX_RUNTIME: Final = DeploymentProfile(
    name="onnx_runtime",
    runtime="ONNX Runtime",
    layers=(
        LayerRule(
            name="8 bits",
            weights=GridRule(dtypes=(INT8, UINT8), units=("channel", "tensor")),
            inputs=_ONNX_VALUES,
        ),
        # Its products of 8 bits by 8 bits fail on groups.
        LayerRule(
            name="8 bits in groups",
            weights=_GROUPED,
            inputs=attrs.evolve(_ONNX_VALUES, units=("token",)),
        ),
        LayerRule(
            name="8 bits in groups, inputs of 16 bits",
            weights=_GROUPED,
            inputs=GridRule(dtypes=(UINT16, INT16)),
            alone=False,
        ),
        LayerRule(
            name="4 bits",
            weights=GridRule(
                dtypes=_of_bits(4, 3, 2), units=("group", "channel"), group_sizes=_KERNEL_GROUPS
            ),
            inputs=_ONNX_VALUES,
        ),
        LayerRule(
            name="7, 6 and 5 bits, stored as 8",
            weights=GridRule(dtypes=_of_bits(7, 6, 5), units=("channel", "tensor")),
            inputs=_ONNX_VALUES,
        ),
        LayerRule(
            name="FP8",
            weights=GridRule(dtypes=(FP8("e4m3"), FP8("e5m2")), units=("channel", "tensor")),
            inputs=_ONNX_VALUES,
        ),
    ),
    points=(_ONNX_VALUES,),
    biases=("int32", "float"),
    multiplications=True,
)
"""ONNX Runtime, from an ONNX file: integer kernels for 8 bits and for 4 in blocks, floats for the rest."""

_OPENVINO_VALUES: Final = GridRule(dtypes=(UINT8, INT8), units=("tensor", "token"))

OPENVINO: Final = DeploymentProfile(
    name="openvino",
    runtime="OpenVINO",
    layers=(
        LayerRule(
            name="8 bits",
            weights=GridRule(dtypes=(INT8, UINT8), units=("channel", "tensor")),
            inputs=_OPENVINO_VALUES,
        ),
        LayerRule(
            name="4 bits",
            weights=GridRule(
                dtypes=_of_bits(4, 3, 2), units=("group", "channel"), group_sizes=_KERNEL_GROUPS
            ),
            inputs=_OPENVINO_VALUES,
        ),
        LayerRule(
            name="7, 6 and 5 bits, stored as 8",
            weights=GridRule(dtypes=_of_bits(7, 6, 5), units=("channel", "tensor")),
            inputs=_OPENVINO_VALUES,
        ),
    ),
    points=(_OPENVINO_VALUES,),
    biases=("int32", "float"),
    multiplications=True,
)
"""OpenVINO, from an ONNX file; from a program of torch.export it takes the format ``8 bits`` alone.

Its sums of uint8 times int8 overflow 16 bits on processors without VNNI, where weights of 7 bits are exact.
"""

_XNNPACK_VALUES: Final = GridRule(dtypes=(INT8,))
_XNNPACK_WEIGHTS: Final = GridRule(dtypes=(INT8,), symmetric=True, units=("channel", "tensor"))

XNNPACK: Final = DeploymentProfile(
    name="xnnpack",
    runtime="XNNPACK",
    layers=(
        LayerRule(name="8 bits", weights=_XNNPACK_WEIGHTS, inputs=_XNNPACK_VALUES, alone=False),
        LayerRule(name="embedding", kinds=("embedding",), weights=_XNNPACK_WEIGHTS),
    ),
    points=(_XNNPACK_VALUES,),
    float_operators=(
        "conv_transpose1d",
        "embedding",
        "gelu",
        "layer_norm",
        "matmul",
        "rms_norm",
        "rsqrt",
        "silu",
        "softmax",
        "tanh",
    ),
    multiplications=True,
)
"""XNNPACK, from a program of ExecuTorch: int8 with fixed grids; int32 biases stay outside of its delegate."""

_CIRCLE_VALUES: Final = GridRule(dtypes=(UINT8, INT8, INT16, UINT16))

CIRCLE: Final = DeploymentProfile(
    name="circle",
    runtime="Circle",
    layers=(
        LayerRule(
            name="8, 16 and 4 bits",
            weights=GridRule(dtypes=(UINT8, INT8, INT16, UINT4), units=("channel", "tensor")),
            inputs=_CIRCLE_VALUES,
        ),
    ),
    points=(_CIRCLE_VALUES,),
    multiplications=True,
)
"""Circle, from a saved program by ``pt2-to-circle``, which makes int32 of biases itself."""

BUILT_IN: Final[Mapping[str, DeploymentProfile]] = {
    each.name: each for each in (VLLM, LLAMA_CPP, GPTQMODEL, ONNX_RUNTIME, OPENVINO, XNNPACK, CIRCLE)
}
"""The profiles of this module by name, as JSON has them."""
