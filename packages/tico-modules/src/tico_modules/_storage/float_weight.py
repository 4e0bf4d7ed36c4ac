"""A weight as packed codes of floating-point elements, with the scales as their format stores them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from tico_config import Problem, TicoError
from tico_modules._storage.dequantization import dequantize_elements
from tico_modules._storage.exact_module import ExactModule, has_values
from tico_modules._storage.float_dtypes import parse_float_dtype
from tico_modules._storage.layout import Layout, require_tensor
from tico_modules._storage.one_function import is_watched
from tico_modules._storage.packed_weight import PackedWeight, packed_weight
from tico_modules._storage.weight_checks import require_buffers, require_codes
from tico_modules._storage.weight_format import WeightFormat
from tico_observers import AffineParams
from tico_observers.float_formats import decode_scales, encode_scales, require_numbers


@final
class FloatWeight(PackedWeight):
    """Codes of a `FloatFormat`, for a weight seen as a matrix: ``value = element(code) * scale``.

    The buffers are the format on disk:

    - ``codes``: uint8 (rows, bytes), packed as `tico_observers.pack` says;
    - ``stored_scale``: float32 (rows, groups), or uint8 codes of it, e8m0 or e4m3;
    - ``tensor_scale``: float32 (), of which e4m3 scales are multiples; None for other formats;
    - ``group_index``: int32 (columns,), as in `PackedWeight`.

    `scale` and `zero_point` are computed from these when they are asked for. The constructor takes the
    buffers as they are; `PackedWeight.on_grid` and `PackedWeight.from_codes` check and pack.

    >>> from tico_config import MXFP4
    >>> weight = PackedWeight.round_to_nearest(
    ...     torch.full((2, 64), 5.0), MXFP4(), symmetric=True, group_size=None
    ... )
    >>> type(weight).__name__, weight.bytes, weight.dequantize()[0, 0].item()
    ('FloatWeight', 68, 4.0)
    """

    stored_scale: Tensor
    tensor_scale: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        stored_scale: Tensor,
        tensor_scale: Tensor | None,
        form: WeightFormat,
        *,
        group_index: Tensor | None = None,
        float_dtype: torch.dtype = torch.float32,
    ) -> None:
        ExactModule.__init__(self)  # not that of integers, which have other buffers
        self.format = form
        self.register_buffer("codes", codes)
        self.register_buffer("stored_scale", stored_scale)
        self.register_buffer("tensor_scale", tensor_scale)
        self.register_buffer("group_index", group_index)
        self.register_buffer("offset", None)
        self.float_dtype = float_dtype

    @classmethod
    def of(  # the fields of a weight, by their names
        cls,
        codes: Tensor,
        scale: Tensor,
        form: WeightFormat,
        *,
        tensor_scale: Tensor | None,
        group_index: Tensor | None = None,
        float_dtype: torch.dtype = torch.float32,
    ) -> FloatWeight:
        """Return the weight of `codes` (rows, columns) under float32 scales (rows, groups).

        Raises:
            NumericsError: a code is none of a finite number, a scale is none that the format stores, or the
                shapes do not fit each other.
        """
        dtype = form.float_format
        require_codes(codes, form)
        require_numbers(codes, dtype)
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        params = AffineParams(scale=scale, zero_point=zero_point, dtype=dtype, tensor_scale=tensor_scale)
        stored = encode_scales(params.scale, dtype, params.tensor_scale).contiguous()
        index = None if group_index is None else group_index.to(torch.int32)
        weight = cls(
            form.pack(codes), stored, params.tensor_scale, form, group_index=index, float_dtype=float_dtype
        )
        require_buffers(form, dict(weight.named_buffers()))
        return weight

    @classmethod
    def planned(cls, form: WeightFormat) -> FloatWeight:
        """Return a weight of the format `form` whose buffers are on the meta device."""
        codes = torch.empty((form.rows, form.stored_columns), dtype=torch.uint8, device="meta")
        scale = torch.empty((form.rows, form.groups), dtype=form.scale_dtype, device="meta")
        unit = torch.empty((), device="meta") if form.has_tensor_scale else None
        return cls(codes, scale, unit, form)

    @classmethod
    def restored(cls, form: WeightFormat, layout: Layout, tensors: Mapping[str, Tensor]) -> FloatWeight:
        """Return the weight of the format `form` whose buffers are in `tensors`, by name.

        Raises:
            ArtifactError: a tensor is missing.
            NumericsError: the tensors do not fit each other.
        """
        names = ["codes", "stored_scale"]
        names += ["tensor_scale"] if form.has_tensor_scale else []
        names += ["group_index"] if layout.boolean("group_index") else []
        buffers = {name: require_tensor(tensors, layout, name) for name in names}
        require_buffers(form, buffers)
        _require_values(form, buffers)
        return cls(
            buffers["codes"],
            buffers["stored_scale"],
            buffers.get("tensor_scale"),
            form,
            group_index=buffers.get("group_index"),
            float_dtype=parse_float_dtype(layout, "float_dtype"),
        )

    @property
    def scale(self) -> Tensor:  # type: ignore[override]  # computed, where integers have a buffer
        """The scale of each group, float32 (rows, groups)."""
        return decode_scales(self.stored_scale, self.format.float_format, self.tensor_scale)

    @property
    def zero_point(self) -> Tensor:  # type: ignore[override]  # as `scale`
        """Zeros, int32 (rows, groups)."""
        return torch.zeros_like(self.stored_scale, dtype=torch.int32)

    @property
    def _has_middle_zeros(self) -> bool:
        return True

    def tensor_problems(self, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
        """Yield what is wrong with `tensors`, by name, as buffers of a weight of this format."""
        try:
            require_buffers(self.format, dict(tensors))
            if tensors.keys() >= {name for name, held in self._buffers.items() if held is not None}:
                _require_values(self.format, tensors)
        except TicoError as error:
            yield from error.problems

    def dequantize(self) -> Tensor:
        """Return the weight in its own shape, float32: ``element(code) * scale`` of each group.

        A value beyond the finite numbers of float32 becomes the largest of them.
        """
        if self._kept:
            return self._kept[0].to(torch.float32)
        values: Tensor = self()
        if self._kept is not None:
            self._kept.append(values)
        return values

    def forward(self, index: Tensor | None = None) -> Tensor:
        """Return what `dequantize` returns, or `rows` for an `index`."""
        form, codes, stored = self.format, self.codes, self.stored_scale
        if self._copied is not None and not torch.compiler.is_compiling():
            self._copied.require_same(codes)
        if is_watched(codes):
            seen: Tensor = handle_torch_function(packed_weight, (codes,), self, index)
            return seen
        if index is not None:
            flat = index.reshape(-1)
            codes, stored = codes.index_select(0, flat), stored.index_select(0, flat)
        scale = decode_scales(stored, form.float_format, self.tensor_scale)
        values = dequantize_elements(form, codes, scale, self.group_index)
        return values.view(form.shape if index is None else (*index.shape, *form.shape[1:]))


def _require_values(form: WeightFormat, buffers: Mapping[str, Tensor]) -> None:
    """Refuse codes of NaN and infinity, and scales that are no positive normal numbers.

    Raises:
        NumericsError: with what was found.
    """
    if not has_values(*buffers.values()):
        return
    dtype, unit = form.float_format, buffers.get("tensor_scale")
    require_numbers(form.unpack(buffers["codes"]), dtype)
    scale = decode_scales(buffers["stored_scale"], dtype, unit)
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    AffineParams(scale=scale, zero_point=zero_point, dtype=dtype, tensor_scale=unit)
