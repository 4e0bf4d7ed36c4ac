"""What nodes of ``quantized_decomposed`` are in ONNX, where torch's own translation does not do.

That of grids leaves out the limits of codes that are part of a format; of weights in groups there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from tico_export.program import element_operator
from tico_export.protocol import require_extra
from tico_modules import dialect_operator

# The exporter takes arguments of such a type for inputs, and ints and floats for attributes.
X = TypeVar("X")
S = TypeVar("S")
Z = TypeVar("Z")

_BYTES: Final = (2, 3)  # uint8 and int8, as ONNX numbers them
_LIMITS: Final[Mapping[int, tuple[int, int]]] = {
    2: (0, 255),
    3: (-128, 127),
    4: (0, 65535),
    5: (-32768, 32767),
}


def translations() -> Mapping[object, object]:
    """Return what translates operators, by operator.

    Raises:
        MissingExtraError: onnxscript is not installed.
    """
    op = require_extra("onnxscript", "onnx").opset21
    constant = require_extra("onnxscript.function_libs.torch_lib.ops.common", "onnx").constant

    def quantize_per_tensor(
        x: X, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: int
    ) -> X:
        limits, whole = (quant_min, quant_max), _LIMITS[dtype]
        if limits != whole and dtype not in _BYTES:  # the runtimes clip no codes of 16 bits
            low, high = ((each - zero_point) * scale for each in limits)
            x = op.Clip(x, constant(low, dtype=1), constant(high, dtype=1))
        codes = op.QuantizeLinear(x, constant(scale, dtype=1), constant(zero_point, dtype=dtype))
        if limits != whole and dtype in _BYTES:
            codes = op.Clip(codes, *(constant(each, dtype=dtype) for each in limits))
        return codes  # type: ignore[no-any-return]  # onnxscript is not typed

    def dequantize_groups(
        codes: X,
        scale: S,
        zero_point: Z,
        quant_min: int,
        quant_max: int,
        dtype: int,
        group_size: int,
        output_dtype: int,
    ) -> X:
        points = op.Cast(zero_point, to=dtype)
        return op.DequantizeLinear(codes, scale, points, axis=1, block_size=group_size)  # type: ignore[no-any-return]  # as above

    def dequantize_elements(codes: X, scale: S, size: int) -> X:
        return op.DequantizeLinear(codes, scale, axis=1, block_size=size)  # type: ignore[no-any-return]  # as above

    return {
        element_operator(): dequantize_elements,
        dialect_operator("quantize_per_tensor"): quantize_per_tensor,
        dialect_operator("dequantize_per_channel_group"): dequantize_groups,
    }
