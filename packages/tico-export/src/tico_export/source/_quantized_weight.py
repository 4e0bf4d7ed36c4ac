"""A quantized layer, as writers need it."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from tico_config import Found, GridFormat, NumberFormat, Problem, UnsupportedError
from tico_export.source._grid import Grid
from tico_modules import FloatWeight, PackedWeight, QuantizedModule


@attrs.frozen(eq=False, kw_only=True)
class QuantizedWeight:
    """A layer whose weight is codes: ``weight = (code - zero_point) * scale`` of each group of columns.

    Codes of a `FloatFormat` stand for elements, ``weight = element(code) * scale``, and are refused by
    `export` unless the exporter's `float_formats` has the format. Where there is an `offset`, it is
    subtracted; `export` refuses such a layer unless the exporter's `takes_offsets` is true, so that nothing
    that reads scales and zero points alone ever sees one.

    The weight of shape `shape` is seen as a matrix (rows, columns): the first axis gives the rows, all others
    together the columns.

    Attributes:
        path: the layer's path in the model; the weight's name in the float model is ``{path}.weight``.
        kind: the layer's kind as files have it, such as ``linear``, ``embedding`` or ``conv2d``.
        module: the class of the quantized layer, for messages.
        packed: the codes as they are stored; what is tied shares one object.
        settings: what else makes the layer, such as strides, as JSON values.
        bias: (rows,) or None.
        act_in: the grid of the layer's input, None where it is float.
        act_out: the grid of its output, None where it is float.
    """

    path: str
    kind: str
    module: str
    packed: PackedWeight
    settings: Mapping[str, object]
    bias: Tensor | None
    act_in: Grid | None
    act_out: Grid | None

    @classmethod
    def of(cls, path: str, module: QuantizedModule) -> QuantizedWeight:
        """Return what writers need of `module`, which is at `path`."""
        return cls(
            path=path,
            kind=module.kind,
            module=type(module).__name__,
            packed=module.packed,
            settings=dict(module.settings()),
            bias=module.bias,
            act_in=None if module.act_in is None else Grid.of(module.act_in),
            act_out=None if module.act_out is None else Grid.of(module.act_out),
        )

    @property
    def name(self) -> str:
        """The weight's name in the state dict of the float model."""
        return f"{self.path}.weight" if self.path else "weight"

    @property
    def dtype(self) -> NumberFormat:
        """The number format of a code."""
        return self.packed.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the float weight."""
        return self.packed.shape

    @property
    def columns(self) -> int:
        """The number of columns of the matrix."""
        return self.packed.columns

    @property
    def group_size(self) -> int | None:
        """The number of columns that share a scale; None where whole rows do."""
        return self.packed.group_size

    @property
    def group_index(self) -> Tensor | None:
        """The group of each column, int32 (columns,); None where groups are runs of `group_size` columns."""
        return self.packed.group_index

    @property
    def float_dtype(self) -> torch.dtype:
        """The dtype of the float weight."""
        return self.packed.float_dtype

    @property
    def scale(self) -> Tensor:
        """The scales, float32 (rows, groups)."""
        return self.packed.scale

    @property
    def elements(self) -> FloatWeight:
        """The weight as it is stored, where the codes are floating-point elements.

        Raises:
            UnsupportedError: they are integers.
        """
        if not isinstance(self.packed, FloatWeight):
            expected = "a format of floating-point elements"
            raise UnsupportedError(
                Problem(module=self.path, field="dtype", value=Found(str(self.dtype)), expected=expected)
            )
        return self.packed

    @property
    def zero_point(self) -> Tensor:
        """The zero points in codes of `dtype`, int32 (rows, groups)."""
        return self.packed.zero_point

    @property
    def offset(self) -> Tensor | None:
        """The offsets that are subtracted, float32 (rows, groups); None where there are none."""
        return self.packed.offset

    @property
    def format(self) -> GridFormat:
        """The codes, and what shares a scale."""
        return self.packed.grid_format()

    @property
    def is_symmetric(self) -> bool:
        """Whether every zero point is in the middle: 0 of signed codes, ``2 ** (bits - 1)`` of others."""
        return self.format.symmetric is True

    def codes(self) -> Tensor:
        """Return the codes in the range of `dtype`, int32 (rows, columns)."""
        return self.packed.integer_codes()

    def dequantize(self) -> Tensor:
        """Return the weight in its own shape, float32."""
        return self.packed.dequantize()
