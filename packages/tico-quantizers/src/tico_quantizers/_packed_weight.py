"""A weight as packed integer codes with the grid of every group."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tico_config import ArtifactError, DType, Found, NumericsError, PerGroup, Problem, TicoError
from tico_observers import (
    AffineParams,
    RangeStatistic,
    pack,
    packed_width,
    params_from_range,
    quantize,
    unpack,
)
from tico_quantizers._exact_module import ExactModule
from tico_quantizers._layout import Layout, tensor_of


class PackedWeight(ExactModule):
    """Codes of a weight seen as a matrix of output rows by input columns.

    Buffers, which are the format on disk:

    - ``codes``: uint8 (rows, bytes), ``code - qmin`` packed as `tico_observers.pack` says;
    - ``scale``: float32 (rows, groups);
    - ``zero_point``: int32 (rows, groups), in codes of `dtype`;
    - ``group_index``: int32 (columns,), the group of each column; absent where the groups are runs of
      `group_size` columns.

    `shape` is that of the weight itself; `group_size` None means one group a row.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    group_index: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        *,
        dtype: DType,
        shape: tuple[int, ...],
        group_size: int | None = None,
        group_index: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.shape = tuple(shape)
        self.group_size = group_size
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("group_index", group_index)

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        *,
        dtype: DType,
        shape: tuple[int, ...],
        group_size: int | None = None,
        group_index: Tensor | None = None,
    ) -> PackedWeight:
        """Return the weight of the given integer `codes` (rows, columns) in the range of `dtype`.

        Raises:
            NumericsError: a code is out of range, or the shapes do not fit each other.
        """
        rows, columns = codes.shape
        groups = 1 if group_size is None else -(-columns // group_size)
        if tuple(scale.shape) != (rows, groups):
            expected = f"of shape {(rows, groups)}"
            raise NumericsError(Problem(field="scale", value=Found(tuple(scale.shape)), expected=expected))
        AffineParams(scale=scale, zero_point=zero_point, dtype=dtype)
        return cls(
            pack(codes.to(torch.int32) - dtype.qmin, dtype.bits),
            scale.to(torch.float32).contiguous(),
            zero_point.to(torch.int32).contiguous(),
            dtype=dtype,
            shape=shape,
            group_size=group_size,
            group_index=None if group_index is None else group_index.to(torch.int32),
        )

    @classmethod
    def round_to_nearest(
        cls, weight: Tensor, dtype: DType, *, symmetric: bool, group_size: int | None
    ) -> PackedWeight:
        """Return `weight` rounded to the min/max grid of each row, or of each group of a row's columns.

        Raises:
            NumericsError: the weight holds NaN or infinity.
        """
        matrix = weight.detach().flatten(1)
        unit = PerGroup(axis=1, size=group_size or max(matrix.shape[1], 1))
        seen = RangeStatistic(granularity=unit).observe(matrix).extremes
        empty = matrix.new_zeros(len(matrix), 0)
        low, high = (seen.minimum, seen.maximum) if seen else (empty, empty)
        params = params_from_range(low, high, dtype, symmetric=symmetric, granularity=unit)
        return cls.on_grid(weight, params, group_size=group_size)

    @classmethod
    def on_grid(cls, weight: Tensor, params: AffineParams, *, group_size: int | None = None) -> PackedWeight:
        """Return `weight`, seen as rows by columns, rounded to nearest on the grid `params` of that matrix.

        Raises:
            NumericsError: the weight holds NaN or infinity, or the grid does not fit it.
        """
        matrix = weight.detach().flatten(1)
        codes = quantize(matrix, params)
        scale, zero_point = params.scale, params.zero_point
        if scale.ndim < 2:
            scale = scale.reshape(-1, 1).expand(len(matrix), 1)
            zero_point = zero_point.reshape(-1, 1).expand(len(matrix), 1)
        return cls.from_codes(
            codes, scale, zero_point, dtype=params.dtype, shape=tuple(weight.shape), group_size=group_size
        )

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.dtype.bits

    @property
    def bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def integer_codes(self) -> Tensor:
        """Return the codes in the range of `dtype`, int32 of shape (rows, columns)."""
        columns = self._columns()
        unsigned = unpack(self.codes, self.bits, (self.codes.shape[0], columns))
        return unsigned.to(torch.int32) + self.dtype.qmin

    def _columns(self) -> int:
        return int(torch.Size(self.shape[1:]).numel())

    def dequantize(self) -> Tensor:
        """Return the weight in its own shape, float32: ``(code - zero_point) * scale`` of each group."""
        codes = self.integer_codes()
        scale, zero_point = self._per_column(self.scale), self._per_column(self.zero_point)
        return ((codes - zero_point).to(torch.float32) * scale).view(self.shape)

    def _per_column(self, values: Tensor) -> Tensor:
        if self.group_index is not None:
            return values.index_select(1, self.group_index)
        if self.group_size is None:
            return values
        return values.repeat_interleave(self.group_size, 1)[:, : self._columns()]

    def layout(self) -> dict[str, object]:
        """Return what is needed besides the buffers to make this weight again, as JSON values."""
        return {
            "bits": self.dtype.bits,
            "signed": self.dtype.signed,
            "shape": list(self.shape),
            "group_size": self.group_size,
            "group_index": self.group_index is not None,
        }

    @classmethod
    def restore(cls, layout: Layout, tensors: Mapping[str, Tensor]) -> PackedWeight:
        """Return the weight that `layout` describes and `tensors` hold.

        Raises:
            ArtifactError: they do not fit each other.
        """
        shape = layout.integers("shape")
        group_size = layout.optional_integer("group_size")
        indexed = layout.boolean("group_index")
        try:
            dtype = DType(layout.integer("bits"), layout.boolean("signed"))
            weight = cls(
                tensor_of(tensors, layout, "codes"),
                tensor_of(tensors, layout, "scale"),
                tensor_of(tensors, layout, "zero_point"),
                dtype=dtype,
                shape=shape,
                group_size=group_size,
                group_index=tensor_of(tensors, layout, "group_index") if indexed else None,
            )
            weight._require_consistent(layout)
            AffineParams(scale=weight.scale, zero_point=weight.zero_point, dtype=dtype)
        except ArtifactError:
            raise
        except TicoError as error:
            raise ArtifactError(*error.problems) from None
        return weight

    def _require_consistent(self, layout: Layout) -> None:
        rows, columns = (self.shape[0] if self.shape else 1), self._columns()
        groups = 1 if self.group_size is None else -(-columns // max(self.group_size, 1))
        wanted: dict[str, tuple[Tensor | None, tuple[int, ...], torch.dtype]] = {
            "codes": (self.codes, (rows, packed_width(columns, self.bits)), torch.uint8),
            "scale": (self.scale, (rows, groups), torch.float32),
            "zero_point": (self.zero_point, (rows, groups), torch.int32),
            "group_index": (self.group_index, (columns,), torch.int32),
        }
        for name, (tensor, shape, dtype) in wanted.items():
            if tensor is not None and (tuple(tensor.shape) != shape or tensor.dtype != dtype):
                found = Found(f"{tensor.dtype} of shape {tuple(tensor.shape)}")
                expected = f"{dtype} of shape {shape}"
                raise ArtifactError(Problem(module=layout.where, field=name, value=found, expected=expected))
        index = self.group_index
        if index is not None and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < groups:
            expected = f"from 0 to {groups - 1}"
            raise ArtifactError(
                Problem(module=layout.where, field="group_index", value=Found("others"), expected=expected)
            )

    def extra_repr(self) -> str:
        """Return format, granularity and bytes."""
        unit = "per row" if self.group_size is None else f"group {self.group_size}"
        return f"{self.dtype}, {unit}, shape {tuple(self.shape)}, {self.bytes} bytes"
