"""The format of a packed weight: everything that describes it but the tensors."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from tico_config import (
    FLOAT_FORMATS,
    DType,
    FloatFormat,
    Found,
    NumberFormat,
    NumericsError,
    Problem,
    SuperBlock,
)
from tico_modules._storage.layout import Layout
from tico_observers import pack, packed_width, unpack

_INT8 = DType.int(8)


def _as_object(value: object) -> object:
    """Return `value` without its declared type, which a caller may not have kept to."""
    return value


@attrs.frozen(kw_only=True)
class WeightFormat:
    """How the codes of a weight are packed, and which of them share a scale.

    The weight is seen as a matrix: its first axis gives the rows, all others together the columns.

    Attributes:
        dtype: the number format of a code, of up to 16 bits; one of blocks sets the `group_size`.
        shape: the shape of the float weight.
        group_size: the number of columns in a group, whose codes share a scale; None means whole rows.
        super_block: what the scales of groups were made to share, and whether there are offsets; None where
            each scale is a number of its own.

    Raises:
        NumericsError: the shape has no axis, a group has no column, or a code has more than 16 bits.
    """

    dtype: NumberFormat
    shape: tuple[int, ...]
    group_size: int | None = None
    super_block: SuperBlock | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse shapes, groups and formats that cannot be packed."""
        size, dtype = self.group_size, _as_object(self.dtype)
        if not isinstance(dtype, NumberFormat):
            raise NumericsError(Problem(field="dtype", value=dtype, expected="a DType of 2 to 16 bits"))
        if isinstance(dtype, FloatFormat):
            self._require_blocks(dtype)
        if not self.shape:
            raise NumericsError(Problem(field="shape", value=self.shape, expected="one or more axes"))
        if size is not None and (type(size) is not int or size < 1):
            expected = "None or an integer of at least 1"
            raise NumericsError(Problem(field="group_size", value=size, expected=expected))
        if self.dtype.bits > 16:
            found = Found(str(self.dtype))
            raise NumericsError(Problem(field="dtype", value=found, expected="a format of 2 to 16 bits"))

    def _require_blocks(self, dtype: FloatFormat) -> None:
        """Take the blocks of `dtype`, unless something else was asked for."""
        size = dtype.block_size
        if self.super_block is not None:
            raise NumericsError(
                Problem(field="super_block", value=self.super_block, expected=f"None with {dtype}")
            )
        if size is not None and self.group_size not in (None, size):
            expected = f"None or {size}, the blocks of {dtype}"
            raise NumericsError(Problem(field="group_size", value=self.group_size, expected=expected))
        if size is not None:
            object.__setattr__(self, "group_size", size)

    @property
    def float_format(self) -> FloatFormat:
        """The `dtype`, where it is one of floating-point elements.

        Raises:
            NumericsError: it is one of integers.
        """
        if not isinstance(self.dtype, FloatFormat):
            expected = "a format of floating-point elements"
            raise NumericsError(Problem(field="dtype", value=Found(str(self.dtype)), expected=expected))
        return self.dtype

    @property
    def scale_dtype(self) -> torch.dtype:
        """The dtype that scales are stored in."""
        stored = self.dtype.scale_format if isinstance(self.dtype, FloatFormat) else "float32"
        return torch.float32 if stored == "float32" else torch.uint8

    @property
    def has_tensor_scale(self) -> bool:
        """Whether scales are multiples of one of the whole tensor."""
        return isinstance(self.dtype, FloatFormat) and self.dtype.scale_format == "e4m3"

    @property
    def rows(self) -> int:
        """The number of rows of the matrix."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """The number of columns of the matrix."""
        return math.prod(self.shape[1:])

    @property
    def groups(self) -> int:
        """The number of groups in a row."""
        return 1 if self.group_size is None else -(-self.columns // self.group_size)

    @property
    def origin(self) -> int:
        """The code that is stored as 0."""
        return 0 if self.dtype == _INT8 else self.dtype.qmin

    @property
    def has_offset(self) -> bool:
        """Whether each group has an offset, which is subtracted from the product of code and scale."""
        return self.super_block is not None and self.super_block.has_offsets

    @property
    def unit(self) -> str:
        """The codes that share a scale, for people: ``per row`` or ``group 64``."""
        shared = "" if self.super_block is None else f", {self.super_block}"
        return "per row" if self.group_size is None else f"group {self.group_size}{shared}"

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of the packed codes."""
        return torch.int8 if self.dtype == _INT8 else torch.uint8

    @property
    def stored_columns(self) -> int:
        """The number of bytes that a row of packed codes takes."""
        return packed_width(self.columns, self.dtype.bits)

    def pack(self, codes: Tensor) -> Tensor:
        """Return integer `codes` (rows, columns), in the range of `dtype`, as stored, (rows, bytes)."""
        if self.dtype == _INT8:
            return codes.to(torch.int8)
        return pack(codes.to(torch.int32) - self.origin if self.origin else codes, self.dtype.bits)

    def unpack(self, packed: Tensor) -> Tensor:
        """Return the codes less `origin`, integers (rows, columns), of some `packed` rows (rows, bytes)."""
        if self.dtype == _INT8:
            return packed
        return unpack(packed, self.dtype.bits, (packed.shape[0], self.columns))

    def to_layout(self) -> dict[str, object]:
        """Return the format as JSON values."""
        shared = self.super_block
        return {
            "bits": self.dtype.bits,
            "signed": self.dtype.signed,
            **({"format": str(self.dtype)} if isinstance(self.dtype, FloatFormat) else {}),
            "shape": list(self.shape),
            "group_size": self.group_size,
            **({} if shared is None else {"super_block": _super_block_layout(shared)}),
        }

    @classmethod
    def from_layout(cls, layout: Layout) -> WeightFormat:
        """Return the format for which `to_layout` gave the values in `layout`.

        Raises:
            ArtifactError: a value is missing or of another type.
            ConfigError: there is no such number format.
            NumericsError: no weight has such a format.
        """
        return cls(
            dtype=read_number_format(layout),
            shape=layout.integers("shape"),
            group_size=layout.optional_integer("group_size"),
            super_block=_super_block(layout),
        )


def read_number_format(layout: Layout) -> NumberFormat:
    """Return the number format that is named as ``format``, else that of ``bits`` and ``signed``.

    Raises:
        ArtifactError: a value is missing or of another type.
        ConfigError: there is no such number format.
    """
    if "format" not in layout.values:
        return DType(layout.integer("bits"), layout.boolean("signed"))
    name = layout.text("format")
    for dtype in FLOAT_FORMATS:
        if str(dtype) == name:
            return dtype
    raise layout.make_error("format", f"one of {', '.join(map(str, FLOAT_FORMATS))}")


def _super_block_layout(shared: SuperBlock) -> dict[str, int]:
    """Return the fields as JSON values; files without offsets stay those of earlier releases."""
    fields = {"columns": shared.columns, "scale_bits": shared.scale_bits}
    return fields if shared.offset_bits is None else {**fields, "offset_bits": shared.offset_bits}


def _super_block(layout: Layout) -> SuperBlock | None:
    if "super_block" not in layout.values:
        return None
    shared = layout.child("super_block")
    offset_bits = shared.integer("offset_bits") if "offset_bits" in shared.values else None
    return SuperBlock(
        columns=shared.integer("columns"), scale_bits=shared.integer("scale_bits"), offset_bits=offset_bits
    )
