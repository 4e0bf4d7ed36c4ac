"""A weight as packed integer codes with the grid of every group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.overrides import handle_torch_function
from typing_extensions import Self

from tico_config import (
    DType,
    FloatFormat,
    GridFormat,
    NumberFormat,
    PerChannel,
    PerGroup,
    Problem,
    SuperBlock,
    TicoError,
    integer_format,
)
from tico_modules._storage.code_mark import CopiedCodes, mark_of
from tico_modules._storage.dequantization import dequantize_rows, spread_groups
from tico_modules._storage.exact_module import ExactModule
from tico_modules._storage.exported import dequantize_weight
from tico_modules._storage.float_dtypes import name_of, parse_float_dtype
from tico_modules._storage.foreign_saves import refuse_save_pretrained
from tico_modules._storage.layout import Layout, require_tensor
from tico_modules._storage.one_function import is_watched
from tico_modules._storage.weight_checks import (
    require_arguments,
    require_buffers,
    require_codes,
    require_offset,
    require_values_of,
)
from tico_modules._storage.weight_format import WeightFormat
from tico_modules._storage.weight_rounding import choose_params, round_to_params
from tico_observers import AffineParams

if TYPE_CHECKING:
    from tico_modules._storage.float_weight import FloatWeight


class PackedWeight(ExactModule):
    """Codes of a weight seen as a matrix of output rows by input columns.

    The buffers are the format on disk:

    - ``codes``: uint8 (rows, bytes), ``code - qmin`` packed as `tico_observers.pack` says; codes of int8 are
      stored as they are, int8 (rows, columns), so that kernels multiply by them without a copy;
    - ``scale``: float32 (rows, groups);
    - ``zero_point``: int32 (rows, groups), in codes of `dtype`;
    - ``group_index``: int32 (columns,), the group of each column; None where the groups are runs of
      `group_size` columns;
    - ``offset``: float32 (rows, groups), with a `super_block` that has `offset_bits`; None without.

    `shape` is the shape of the float weight; `group_size` None means one group a row. The constructor takes
    the buffers as they are; `from_codes` checks and packs.

    `float_dtype` is the dtype of the float weight, which changes when the model is cast.

    Raises:
        NumericsError: `shape` has no axis, `group_size` is below 1, or `dtype` has more than 16 bits.
    """

    _version: int = 2

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    group_index: Tensor | None
    offset: Tensor | None
    _copied: CopiedCodes | None = None  # in a copy: what the codes were
    _kept: list[Tensor] | None = None  # its values while `keep_dequantized` or `read_as` lasts

    def __init__(  # noqa: PLR0913  # the fields of a weight, by their names
        self,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        *,
        dtype: DType,
        shape: tuple[int, ...],
        group_size: int | None = None,
        group_index: Tensor | None = None,
        offset: Tensor | None = None,
        super_block: SuperBlock | None = None,
        float_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.format = WeightFormat(
            dtype=dtype, shape=tuple(shape), group_size=group_size, super_block=super_block
        )
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("group_index", group_index)
        self.register_buffer("offset", offset)
        self.float_dtype = float_dtype

    @classmethod
    def from_codes(  # noqa: PLR0913  # the fields of a weight, by their names
        cls,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        *,
        dtype: NumberFormat,
        shape: tuple[int, ...],
        group_size: int | None = None,
        group_index: Tensor | None = None,
        offset: Tensor | None = None,
        super_block: SuperBlock | None = None,
        tensor_scale: Tensor | None = None,
        float_dtype: torch.dtype = torch.float32,
    ) -> PackedWeight:
        """Return the weight of integer `codes` (rows, columns) in the range of `dtype`.

        `scale`, `zero_point` and `offset` have shape (rows, groups), `group_index` has shape (columns,);
        `super_block` says what the scales share, and whether there are offsets; `float_dtype` is the dtype of
        the float weight. Codes of floating-point elements make a `FloatWeight`; `tensor_scale` is what its
        scales in e4m3 are multiples of.

        Raises:
            NumericsError: a code is out of range or no integer, or the shapes do not fit each other.

        >>> codes = torch.tensor([[0, 15]])
        >>> scale, zero_point = torch.tensor([[0.5]]), torch.tensor([[7]])
        >>> weight = PackedWeight.from_codes(codes, scale, zero_point, dtype=DType.uint(4), shape=(1, 2))
        >>> weight.dequantize().tolist(), weight.codes.tolist()
        ([[-3.5, 4.0]], [[240]])
        """
        form = WeightFormat(dtype=dtype, shape=tuple(shape), group_size=group_size, super_block=super_block)
        if isinstance(dtype, FloatFormat):
            return _float_weights().of(
                codes,
                scale,
                form,
                tensor_scale=tensor_scale,
                group_index=group_index,
                float_dtype=float_dtype,
            )
        require_codes(codes, form)
        AffineParams(scale=scale, zero_point=zero_point, dtype=dtype)
        require_offset(form, offset)
        weight = cls(
            form.pack(codes),
            scale.to(torch.float32).contiguous(),
            zero_point.to(torch.int32).contiguous(),
            dtype=dtype,
            shape=shape,
            group_size=group_size,
            group_index=None if group_index is None else group_index.to(torch.int32),
            offset=None if offset is None else offset.to(torch.float32).contiguous(),
            super_block=super_block,
            float_dtype=float_dtype,
        )
        require_buffers(form, dict(weight.named_buffers()))
        return weight

    @classmethod
    def round_to_nearest(
        cls, weight: Tensor, dtype: NumberFormat, *, symmetric: bool, group_size: int | None
    ) -> PackedWeight:
        """Return `weight` rounded to the min/max grid of each row, or of each group of a row's columns.

        Raises:
            NumericsError: the weight holds NaN or infinity.
        """
        require_arguments(weight, symmetric)
        form = WeightFormat(dtype=dtype, shape=tuple(weight.shape), group_size=group_size)
        params = choose_params(weight, form, symmetric=symmetric)
        return cls.on_grid(weight, params, group_size=form.group_size)

    @classmethod
    def on_grid(cls, weight: Tensor, params: AffineParams, *, group_size: int | None = None) -> PackedWeight:
        """Return `weight` rounded to nearest on the grid `params`, which is one of its matrix.

        Raises:
            NumericsError: the weight holds NaN or infinity, or the grid does not fit it.
        """
        codes, scale, zero_point = round_to_params(weight, params)
        return cls.from_codes(
            codes,
            scale,
            zero_point,
            dtype=params.dtype,
            tensor_scale=params.tensor_scale,
            shape=tuple(weight.shape),
            group_size=group_size,
            float_dtype=weight.dtype,
        )

    @classmethod
    def restore(cls, layout: Layout, tensors: Mapping[str, Tensor]) -> PackedWeight:
        """Return the weight that `layout` describes and whose buffers are in `tensors`, by name.

        Raises:
            ArtifactError: a value or a tensor is missing, or they do not fit each other.
        """
        with layout.locate_errors():
            form = WeightFormat.from_layout(layout)
            if isinstance(form.dtype, FloatFormat):
                return _float_weights().restored(form, layout, tensors)
            indexed = ("group_index",) if layout.boolean("group_index") else ()
            lowered = ("offset",) if form.has_offset else ()
            buffers = {
                name: require_tensor(tensors, layout, name)
                for name in ("codes", "scale", "zero_point", *indexed, *lowered)
            }
            require_buffers(form, buffers)
            require_values_of(form, buffers)
        return cls(
            **buffers,
            dtype=integer_format(form.dtype),
            shape=form.shape,
            group_size=form.group_size,
            super_block=form.super_block,
            float_dtype=parse_float_dtype(layout, "float_dtype"),
        )

    def layout(self) -> dict[str, object]:
        """Return the values that `restore` needs besides the buffers, for JSON."""
        return {**self.meaning(), "float_dtype": name_of(self.float_dtype)}

    def meaning(self) -> Mapping[str, object]:
        """Return the format of the codes, as JSON values."""
        return self.format.to_layout() | {"group_index": self.group_index is not None}

    def tensor_problems(self, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
        """Yield what is wrong with `tensors`, by name, as buffers of a weight of this format."""
        try:
            require_buffers(self.format, dict(tensors))
            if tensors.keys() >= {"codes", "scale", "zero_point"}:
                require_values_of(self.format, tensors)
        except TicoError as error:
            yield from error.problems

    def mark(self, tensors: Mapping[str, Tensor | None]) -> str | None:
        """Return a checksum of some of the codes."""
        codes = tensors["codes"]
        return None if codes is None else mark_of(codes)

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._copied = CopiedCodes.of(self._buffers["codes"])

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, object],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        load = super()._load_from_state_dict
        load(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if self._copied is not None:
            self._copied = CopiedCodes.of(self._buffers["codes"])

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        refuse_save_pretrained(prefix)
        if self._copied is not None:
            self._copied.require_same(self.codes)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.float_dtype = fn(torch.empty(0, dtype=self.float_dtype)).dtype
        return super()._apply(fn, recurse)

    @property
    def dtype(self) -> NumberFormat:
        """The number format of a code."""
        return self.format.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the float weight."""
        return self.format.shape

    @property
    def group_size(self) -> int | None:
        """The number of columns in a group, whose codes share a scale; None where whole rows do."""
        return self.format.group_size

    @property
    def bits(self) -> int:
        """The number of bits of a code."""
        return self.dtype.bits

    @property
    def columns(self) -> int:
        """The number of columns of the matrix: the product of all axes but the first."""
        return self.format.columns

    @property
    def unit(self) -> str:
        """The codes that share a scale, for people: ``per row`` or ``group 64``."""
        return self.format.unit

    @property
    def _has_even_groups(self) -> bool:
        """Whether groups are runs of columns, all of one length."""
        return self.group_index is None and self.columns % (self.group_size or 1) == 0

    @property
    def _has_middle_zeros(self) -> bool:
        middle = 0 if self.dtype.signed else 2 ** (self.bits - 1)
        return bool((self.zero_point == middle).all())

    def grid_format(self) -> GridFormat:
        """Return the format of the codes, as profiles of runtimes compare it."""
        size = self.group_size
        return GridFormat(
            dtype=self.dtype,
            granularity=PerChannel(0) if size is None else PerGroup(axis=1, size=size),
            symmetric=not self.format.has_offset and self._has_middle_zeros,
            even=self._has_even_groups,
            super_block=self.format.super_block,
        )

    @property
    def bytes(self) -> int:
        """The number of bytes of all buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def integer_codes(self) -> Tensor:
        """Return the codes in the range of `dtype`, int32 (rows, columns)."""
        return self.format.unpack(self.codes).to(torch.int32) + self.format.origin

    def spread_groups(self, values: Tensor) -> Tensor:
        """Return for each column the one of `values` (rows, groups) that its group has, (rows, columns).

        Where a row is one group, `values` come back as they are, (rows, 1), for torch to broadcast.
        """
        return spread_groups(self.format, values, self.group_index)

    def dequantize(self) -> Tensor:
        """Return the weight in its own shape, float32: ``(code - zero_point) * scale`` of each group.

        Where there are offsets, each is subtracted, a step that is rounded by itself. A value beyond the
        finite numbers of float32 becomes the largest of them.
        """
        if self._kept:
            return self._kept[0].to(torch.float32)
        if torch.compiler.is_exporting() and self._has_even_groups:
            return dequantize_weight(self.format, self.codes, self.scale, self.zero_point, self.offset)
        values: Tensor = self()
        if self._kept is not None:
            self._kept.append(values)
        return values

    def rows(self, index: Tensor) -> Tensor:
        """Return the rows of the weight at the integers `index`, without computing the others.

        The result is float32 of shape ``(*index.shape, *shape[1:])``.

        >>> weight = PackedWeight.round_to_nearest(
        ...     torch.eye(3), DType.uint(4), symmetric=False, group_size=None
        ... )
        >>> weight.rows(torch.tensor([[2], [0]])).tolist()
        [[[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]]]
        """
        if self._kept:
            found = self._kept[0].index_select(0, index.reshape(-1)).to(torch.float32)
            return found.view(*index.shape, *self.shape[1:])
        values: Tensor = self(index)
        return values

    def forward(self, index: Tensor | None = None) -> Tensor:
        """Return what `dequantize` returns, or `rows` for an `index`.

        Both call the module, so that its hooks run: those of accelerate bring the codes from where they are.
        """
        form = self.format
        # By attribute, each buffer takes half a microsecond.
        held: dict[str, Tensor] = self._buffers  # type: ignore[assignment]  # the others may be None
        codes, scale, zero_point = held["codes"], held["scale"], held["zero_point"]
        group_index, offset = self._buffers["group_index"], self._buffers["offset"]
        if self._copied is not None and not torch.compiler.is_compiling():
            self._copied.require_same(codes)
        if is_watched(codes):
            seen: Tensor = handle_torch_function(packed_weight, (codes,), self, index)
            return seen
        if index is None:
            values = dequantize_rows(form, codes, scale, zero_point, group_index=group_index, offset=offset)
            return values.view(form.shape)
        flat = index.reshape(-1)
        codes, scale, zero_point = (x.index_select(0, flat) for x in (codes, scale, zero_point))
        offset = None if offset is None else offset.index_select(0, flat)
        rows = dequantize_rows(form, codes, scale, zero_point, group_index=group_index, offset=offset)
        return rows.view(*index.shape, *form.shape[1:])

    def extra_repr(self) -> str:
        """Return format, granularity and bytes."""
        return f"{self.dtype}, {self.unit}, shape {self.shape}, {self.bytes} bytes"


def _float_weights() -> type[FloatWeight]:
    # Imported here, since these are weights too.
    from tico_modules._storage.float_weight import FloatWeight

    return FloatWeight


def packed_weight(weight: PackedWeight, index: Tensor | None) -> Tensor:
    """Return the values of `weight`, or of its rows at `index`: the function that modes of torch see."""
    return weight.forward(index)
