"""How a layer is quantized, in the words of compressed-tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import attrs
import torch
from typing_extensions import Self

from tico_config import FP8, MXFP4, MXFP6, MXFP8, NVFP4, DType, FloatFormat, NumberFormat
from tico_export.source import Grid, QuantizedWeight, Source

Strategy: TypeAlias = Literal["tensor", "channel", "group", "tensor_group", "token"]

_PACKED: Final[Mapping[type[FloatFormat], str]] = {
    NVFP4: "nvfp4-pack-quantized",
    MXFP4: "mxfp4-pack-quantized",
    MXFP6: "mxfp6-pack-quantized",
}
_SCALES: Final[Mapping[str, str]] = {"e8m0": "torch.uint8", "e4m3": "torch.float8_e4m3fn"}


@attrs.frozen(kw_only=True)
class Codes:
    """What codes are, and which of them share a scale: the library's `QuantizationArgs`.

    Attributes:
        elements: the format of floating-point elements; None for integers.
        group_size: the columns that share a scale, with the strategies of groups.
    """

    bits: int
    symmetric: bool
    strategy: Strategy
    elements: FloatFormat | None = None
    group_size: int | None = None
    dynamic: bool = False

    @classmethod
    def of_weight(cls, weight: QuantizedWeight) -> Self:
        """Return what the weight of a layer is."""
        return cls(
            bits=weight.dtype.bits,
            symmetric=weight.is_symmetric,
            strategy=_strategy_of(weight),
            elements=_elements_of(weight.dtype),
            group_size=weight.group_size,
        )

    @classmethod
    def of_grid(cls, grid: Grid) -> Self:
        """Return what is on `grid`, which is fixed for a tensor or made for each token."""
        return cls(
            bits=grid.dtype.bits,
            symmetric=grid.symmetric,
            strategy="token" if grid.is_dynamic else "tensor",
            elements=_elements_of(grid.dtype),
            dynamic=grid.is_dynamic,
        )

    def to_json(self) -> dict[str, object]:
        """Return the fields as the library has them."""
        found: dict[str, object] = {
            "num_bits": self.bits,
            "type": "int" if self.elements is None else "float",
            "symmetric": self.symmetric,
            "strategy": self.strategy,
            "dynamic": self.dynamic,
        }
        if self.elements is not None and self.elements.scale_format in _SCALES:
            found["scale_dtype"] = _SCALES[self.elements.scale_format]
        return found


def _strategy_of(weight: QuantizedWeight) -> Strategy:
    if weight.dtype == NVFP4():
        return "tensor_group"
    if weight.group_size is not None:
        return "group"
    one = isinstance(weight.dtype, FloatFormat) and bool((weight.scale == weight.scale[0]).all())
    return "tensor" if one and weight.shape[0] > 1 else "channel"


def _elements_of(dtype: NumberFormat) -> FloatFormat | None:
    return dtype if isinstance(dtype, FloatFormat) else None


@attrs.frozen(kw_only=True)
class Scheme:
    """The codes of a layer's weight and input, and whether those are packed; equal ones make a group."""

    weights: Codes
    inputs: Codes | None
    is_packed: bool

    @classmethod
    def of(cls, weight: QuantizedWeight) -> Self:
        """Return the scheme of a layer.

        Integers are packed where inputs are floats, and elements where they have fewer than 8 bits; others
        take a byte each.
        """
        integers = not isinstance(weight.dtype, FloatFormat)
        return cls(
            weights=Codes.of_weight(weight),
            inputs=None if weight.act_in is None else Codes.of_grid(weight.act_in),
            is_packed=weight.act_in is None if integers else weight.dtype.bits < 8,
        )

    @property
    def format(self) -> str:
        """The library's name of how codes are stored."""
        match self.weights.elements:
            case None:
                return "pack-quantized" if self.is_packed else "int-quantized"
            case FP8():
                return "naive-quantized" if self.inputs is None else "float-quantized"
            case MXFP8():
                return "mxfp8-quantized"
            case elements:
                return _PACKED[type(elements)]

    def to_json(self, targets: list[str]) -> Mapping[str, object]:
        """Return the library's `QuantizationScheme` for `targets`."""
        return {
            "targets": targets,
            "weights": self.weights.to_json() | {"group_size": self.weights.group_size},
            "input_activations": None if self.inputs is None else self.inputs.to_json(),
            "output_activations": None,
            "format": self.format,
        }


def schemes_of(source: Source) -> Mapping[str, Scheme]:
    """Return the scheme of each layer, by path.

    Layers of a kind that differ in nothing but in having zero points have one scheme, with zero points. Where
    there are several schemes, layers of 8 bits that `needs_floats` speaks of are not packed: so transformers
    loads them as they are.
    """
    schemes = {path: Scheme.of(weight) for path, weight in source.weights.items()}
    alike = {path: (source.weights[path].kind, _with_points(each, False)) for path, each in schemes.items()}
    with_points = {alike[path] for path, each in schemes.items() if not each.weights.symmetric}
    for path, each in schemes.items():
        schemes[path] = _with_points(each, alike[path] in with_points)
    if len(set(schemes.values())) > 1:
        for path, weight in source.weights.items():
            if weight.dtype.bits == 8 and needs_floats(weight, schemes[path]):
                schemes[path] = attrs.evolve(schemes[path], is_packed=False)
    return schemes


def _with_points(scheme: Scheme, has_points: bool) -> Scheme:
    return attrs.evolve(scheme, weights=attrs.evolve(scheme.weights, symmetric=not has_points))


def needs_floats(weight: QuantizedWeight, scheme: Scheme) -> bool:
    """Tell whether transformers loads a layer only as floats, and only if all have one scheme.

    So it is with packed zero points and embeddings, up to 5.23 with 0.20 of the library, and with blocks of
    elements where the model is not bfloat16, which the library makes of them.
    """
    if is_made_bfloat16(weight) and weight.float_dtype != torch.bfloat16:
        return True
    return scheme.is_packed and (not scheme.weights.symmetric or weight.kind == "embedding")


def is_made_bfloat16(weight: QuantizedWeight) -> bool:
    """Tell whether the library dequantizes a layer to bfloat16: blocks of elements of MX and NVFP4."""
    return isinstance(weight.dtype, FloatFormat) and weight.dtype.block_size is not None


def loads_as_floats(source: Source) -> bool:
    """Tell whether transformers has to load an export of `source` as floats."""
    schemes = schemes_of(source)
    return any(needs_floats(each, schemes[path]) for path, each in source.weights.items())


def middle_of(dtype: DType) -> int:
    """Return the code of `dtype` that is 0 in the library, whose codes are all signed."""
    return 0 if dtype.signed else 2 ** (dtype.bits - 1)
