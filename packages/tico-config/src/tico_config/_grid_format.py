"""Which codes a tensor has and what shares a scale, as runtimes tell formats apart."""

from __future__ import annotations

import attrs

from tico_config._dtype import DType
from tico_config._float_format import FloatFormat, NumberFormat
from tico_config._grid import Granularity, PerChannel, PerGroup, PerTensor, PerToken, SuperBlock
from tico_config._named_fields import NamedFields
from tico_config._quant_spec import QuantSpec


@attrs.frozen(kw_only=True)
class GridFormat(NamedFields):
    """A format of codes with scales, asked for or found.

    Attributes:
        dtype: the number format of a code.
        granularity: what shares a scale.
        symmetric: whether the zero point is in the middle; None where that is not known.
        even: whether groups are runs of neighbouring columns, all of one size.
        super_block: what the scales of groups share; None where each is a number of its own.

    >>> str(GridFormat(dtype=DType.int(4), granularity=PerGroup(size=32), symmetric=True))
    'int4 symmetric, groups of 32'
    """

    dtype: NumberFormat
    granularity: Granularity = PerTensor()
    symmetric: bool | None = None
    even: bool = True
    super_block: SuperBlock | None = None

    @classmethod
    def of(cls, spec: QuantSpec, default: Granularity) -> GridFormat | None:
        """Return what `spec` asks for at a point whose granularity is `default`; None for floats.

        >>> from tico_config import INT8, affine
        >>> str(GridFormat.of(affine(INT8), PerChannel(0)))
        'int8 symmetric, a scale a channel'
        """
        if not spec.is_quantized:
            return None
        granularity = spec.granularity_or(default)
        return cls(dtype=spec.dtype, granularity=granularity, symmetric=spec.is_symmetric)

    @classmethod
    def of_weight(cls, *, bits: int, group_size: int | None, symmetric: bool) -> GridFormat:
        """Return that of a weight with a scale for each group of columns, or for each row.

        >>> str(GridFormat.of_weight(bits=4, group_size=None, symmetric=True))
        'int4 symmetric, a scale a channel'
        """
        unit = PerChannel(0) if group_size is None else PerGroup(size=group_size)
        return cls(dtype=DType(bits, signed=symmetric), granularity=unit, symmetric=symmetric)

    def __str__(self) -> str:
        """Return the format in words."""
        if isinstance(self.dtype, FloatFormat) and self.dtype.block_size:
            return str(self.dtype)
        scheme = {True: " symmetric", False: " asymmetric", None: ""}[self.symmetric]
        scheme = "" if isinstance(self.dtype, FloatFormat) else scheme
        match self.granularity:
            case PerTensor():
                unit = "one scale"
            case PerChannel():
                unit = "a scale a channel"
            case PerGroup(size=size):
                unit = f"groups of {size}" if self.even else f"uneven groups of {size}"
            case PerToken():
                unit = "a scale a token"
        shared = "" if self.super_block is None else f", {self.super_block}"
        return f"{self.dtype}{scheme}, {unit}{shared}"


@attrs.frozen(kw_only=True)
class LayerFormat(NamedFields):
    """A layer with a weight: the formats of the weight and of what the layer reads, asked for or found.

    Attributes:
        path: the layer's path in the model.
        kind: what it computes, such as ``linear``, ``head``, ``embedding`` or ``conv2d``, else the name of
            its class; ``transposed_linear`` where the float weight has a row for each input; None where it
            is not known.
        weight: the format of the weight; None for floats.
        inputs: the format of what it reads; None for floats.
        inputs_known: whether `inputs` says so; an algorithm for weights alone leaves them to the next one.
        rows: the number of output channels; None where it is not known.
        columns: the number of values that each of them multiplies; None where it is not known.

    >>> LayerFormat(path="fc", kind="linear").weight is None
    True
    """

    path: str
    kind: str | None = None
    weight: GridFormat | None = None
    inputs: GridFormat | None = None
    inputs_known: bool = True
    rows: int | None = None
    columns: int | None = None

    def __str__(self) -> str:
        """Return both formats in words."""
        weight = "float" if self.weight is None else str(self.weight)
        return f"{weight}, inputs {self.inputs}" if self.inputs is not None else weight
