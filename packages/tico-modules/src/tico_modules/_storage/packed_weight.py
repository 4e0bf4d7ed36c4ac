"""A weight as packed integer codes with the grid of every group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor, nn

from tico_config import ArtifactError, DType, Found, NumericsError, PerGroup, Problem, TicoError
from tico_modules._storage.exact_module import ExactModule
from tico_modules._storage.layout import Layout, tensor_of
from tico_observers import (
    AffineParams,
    RangeStatistic,
    pack,
    packed_width,
    params_from_range,
    quantize,
    unpack,
)

_INT8 = DType.int(8)
_LARGEST = torch.finfo(torch.float32).max


class PackedWeight(ExactModule):
    """Codes of a weight seen as a matrix of output rows by input columns.

    Buffers, which are the format on disk:

    - ``codes``: uint8 (rows, bytes), ``code - qmin`` packed as `tico_observers.pack` says; codes of int8 are
      themselves, int8 (rows, columns), which kernels multiply by without a copy;
    - ``scale``: float32 (rows, groups);
    - ``zero_point``: int32 (rows, groups), in codes of `dtype`;
    - ``group_index``: int32 (columns,), the group of each column; absent where the groups are runs of
      `group_size` columns.

    `shape` is that of the weight itself; `group_size` None means one group a row.
    """

    _version: int = 2

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    group_index: Tensor | None
    _expanded: list[Tensor] | None = None

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
            NumericsError: a code is out of range or no integer, or the shapes do not fit each other.

        >>> codes = torch.tensor([[0, 15]])
        >>> scale, zero_point = torch.tensor([[0.5]]), torch.tensor([[7]])
        >>> weight = PackedWeight.from_codes(codes, scale, zero_point, dtype=DType.uint(4), shape=(1, 2))
        >>> weight.dequantize().tolist(), weight.codes.tolist()
        ([[-3.5, 4.0]], [[240]])
        """
        _require_codes(codes, dtype)
        AffineParams(scale=scale, zero_point=zero_point, dtype=dtype)
        weight = cls(
            codes.to(torch.int8) if dtype == _INT8 else pack(_from_zero(codes, dtype), dtype.bits),
            scale.to(torch.float32).contiguous(),
            zero_point.to(torch.int32).contiguous(),
            dtype=dtype,
            shape=shape,
            group_size=group_size,
            group_index=None if group_index is None else group_index.to(torch.int32),
        )
        problems = [*weight._problems()]
        if not problems and tuple(codes.shape) != (shape[0], weight.columns):
            found = Found(f"of shape {tuple(codes.shape)}")
            expected = f"a matrix of the {shape[0]} rows and {weight.columns} columns of {tuple(shape)}"
            problems = [Problem(field="codes", value=found, expected=expected)]
        if problems:
            raise NumericsError(*problems)
        return weight

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
        if seen is None:
            scale = matrix.new_ones(len(matrix), _groups(matrix.shape[1], group_size), dtype=torch.float32)
            codes, shape = torch.zeros_like(matrix, dtype=torch.int32), tuple(weight.shape)
            zero_point = torch.zeros_like(scale, dtype=torch.int32)
            return cls.from_codes(codes, scale, zero_point, dtype=dtype, shape=shape, group_size=group_size)
        params = params_from_range(seen.minimum, seen.maximum, dtype, symmetric=symmetric, granularity=unit)
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
        return self.unpacked(self.codes).to(torch.int32) + self.origin

    def unpacked(self, codes: Tensor) -> Tensor:
        """Return the integers of some rows of the buffer `codes`, counted from `origin`."""
        if self.dtype == _INT8:
            return codes
        return unpack(codes, self.bits, (codes.shape[0], self.columns))

    @property
    def origin(self) -> int:
        """The code that is stored as 0."""
        return 0 if self.dtype == _INT8 else self.dtype.qmin

    @property
    def columns(self) -> int:
        """Columns of the matrix: all axes but the first."""
        return int(torch.Size(self.shape[1:]).numel())

    def dequantize(self) -> Tensor:
        """Return the weight in its own shape, float32: ``(code - zero_point) * scale`` of each group.

        A value beyond the finite numbers of float32 becomes the largest of them.
        """
        if self._expanded is None:
            return self._values(self.codes, self.scale, self.zero_point).view(self.shape)
        if not self._expanded:
            self._expanded.append(self._values(self.codes, self.scale, self.zero_point).view(self.shape))
        return self._expanded[0]

    def rows(self, index: Tensor) -> Tensor:
        """Return the rows of the weight at the integers `index`, without computing the others.

        >>> weight = PackedWeight.round_to_nearest(
        ...     torch.eye(3), DType.uint(4), symmetric=False, group_size=None
        ... )
        >>> weight.rows(torch.tensor([[2], [0]])).tolist()
        [[[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]]]
        """
        flat = index.reshape(-1)
        parts = (part.index_select(0, flat) for part in (self.codes, self.scale, self.zero_point))
        return self._values(*parts).view(*index.shape, *self.shape[1:])

    def _values(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        # Codes of up to 16 bits, zero points and their differences are exact in float32.
        steps = self.unpacked(codes).to(torch.float32)
        start = (zero_point - self.origin).to(torch.float32)
        if self.group_index is not None or self.columns % (self.group_size or 1):
            start, scale = self.per_column(start), self.per_column(scale)
        else:
            steps = steps.reshape(*start.shape, self.group_size or self.columns)
            start, scale = start.unsqueeze(-1), scale.unsqueeze(-1)
        values = steps.sub_(start).mul_(scale)
        if not self._fits_float32():
            values = values.clamp_(-_LARGEST, _LARGEST)
        return values.reshape(codes.shape[0], self.columns)

    def _fits_float32(self) -> bool:
        """Tell whether no value is beyond the finite numbers, where that can be told here and now."""
        scale = self.scale
        scripted: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # torch's lists
        traced = torch.compiler.is_compiling() or scripted or type(scale) is not Tensor
        if traced or not scale.is_cpu or not scale.numel():
            return False
        largest: float = scale.amax().item() * 2**self.bits
        return largest <= _LARGEST

    def per_column(self, values: Tensor) -> Tensor:
        """Return what each column has of `values` (rows, groups); one group is left to broadcast."""
        if self.group_index is not None:
            return values.index_select(1, self.group_index)
        if self.group_size is None:
            return values
        return values.repeat_interleave(self.group_size, 1)[:, : self.columns]

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
        try:
            dtype = DType(layout.integer("bits"), layout.boolean("signed"))
            weight = cls(
                tensor_of(tensors, layout, "codes"),
                tensor_of(tensors, layout, "scale"),
                tensor_of(tensors, layout, "zero_point"),
                dtype=dtype,
                shape=layout.integers("shape"),
                group_size=layout.optional_integer("group_size"),
                group_index=tensor_of(tensors, layout, "group_index")
                if layout.boolean("group_index")
                else None,
            )
            problems = [*weight._problems()]
            if problems:
                raise ArtifactError(*problems)
            if dtype.bits > 8:  # up to 8 bits, every byte holds codes in range
                _require_codes(weight.integer_codes(), dtype)
            AffineParams(scale=weight.scale, zero_point=weight.zero_point, dtype=dtype)
        except TicoError as error:
            first, *others = (attrs.evolve(problem, module=layout.where) for problem in error.problems)
            raise ArtifactError(first, *others) from None
        return weight

    def _problems(self) -> Iterator[Problem]:
        """Yield what does not fit together."""
        size = self.group_size
        if not self.shape or (size is not None and size < 1):
            found = Found(f"shape {self.shape} with groups of {size}")
            yield Problem(
                field="shape", value=found, expected="of at least one axis, in groups of at least 1"
            )
            return
        rows, columns = self.shape[0], self.columns
        groups = _groups(columns, size)
        stored = (
            (rows, packed_width(columns, self.bits)),
            torch.int8 if self.dtype == _INT8 else torch.uint8,
        )
        wanted: dict[str, tuple[Tensor | None, tuple[int, ...], torch.dtype]] = {
            "codes": (self.codes, *stored),
            "scale": (self.scale, (rows, groups), torch.float32),
            "zero_point": (self.zero_point, (rows, groups), torch.int32),
            "group_index": (self.group_index, (columns,), torch.int32),
        }
        for name, (tensor, shape, dtype) in wanted.items():
            if tensor is not None and (tuple(tensor.shape) != shape or tensor.dtype != dtype):
                found = Found(f"{tensor.dtype} of shape {tuple(tensor.shape)}")
                yield Problem(field=name, value=found, expected=f"{dtype} of shape {shape}")
        index = self.group_index
        if index is not None and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < groups:
            found = Found(f"{int(index.min())} to {int(index.max())}")
            yield Problem(field="group_index", value=found, expected=f"from 0 to {groups - 1}")

    @property
    def unit(self) -> str:
        """What shares a scale, for people: ``per row`` or ``group 64``."""
        return "per row" if self.group_size is None else f"group {self.group_size}"

    def extra_repr(self) -> str:
        """Return format, granularity and bytes."""
        return f"{self.dtype}, {self.unit}, shape {tuple(self.shape)}, {self.bytes} bytes"


@contextmanager
def expanded(root: nn.Module) -> Iterator[None]:
    """Dequantize each weight in `root` once for all of its uses while the context lasts; none may change."""
    weights = [module for module in root.modules() if isinstance(module, PackedWeight)]
    try:
        for weight in weights:
            weight._expanded = []
        yield
    finally:
        for weight in weights:
            vars(weight).pop("_expanded", None)


def _groups(columns: int, size: int | None) -> int:
    return 1 if size is None else -(-columns // size)


def _from_zero(codes: Tensor, dtype: DType) -> Tensor:
    """Return the codes counted from the smallest one."""
    return codes.to(torch.int32) - dtype.qmin if dtype.qmin else codes


def _require_codes(codes: Tensor, dtype: DType) -> None:
    """Refuse what is no matrix of codes of `dtype`.

    Raises:
        NumericsError: the matrix is none, or holds other numbers.
    """
    expected = f"a matrix of integers from {dtype.qmin} to {dtype.qmax}"
    integers = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
    if codes.ndim != 2 or not integers or dtype.bits > 16:
        found = Found(f"{codes.dtype} of shape {tuple(codes.shape)} for {dtype}")
        raise NumericsError(Problem(field="codes", value=found, expected=expected))
    if codes.numel() and not (codes.dtype == torch.uint8 and dtype == DType.uint(8)):
        low, high = int(codes.min()), int(codes.max())
        if low < dtype.qmin or high > dtype.qmax:
            raise NumericsError(Problem(field="codes", value=Found(f"{low} to {high}"), expected=expected))
