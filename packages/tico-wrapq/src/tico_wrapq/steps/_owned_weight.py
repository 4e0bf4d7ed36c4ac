"""A weight that a module without a wrapper multiplies itself, as integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tico_config import PerChannel, PerTensor, QuantSpec
from tico_modules import Layout, PackedWeight, children, read_only, select_below
from tico_wrapq.base import pack_weight


@final
class OwnedWeight(nn.Module):
    """A parameter of `shape` as packed codes, one grid for what is not summed over.

    The parameter is treated as a matrix: the axes in `summed` are the columns, all others the rows. If it has
    three axes and the first is not summed over, as with experts, each part along the first axis is a matrix
    of its own, and only the parts that are asked for are dequantized.
    """

    def __init__(
        self, parts: tuple[PackedWeight, ...], shape: tuple[int, ...], summed: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.shape = shape
        self.summed = summed

    @classmethod
    def pack(
        cls, weight: Tensor, spec: QuantSpec, path: str, name: str, summed: tuple[int, ...]
    ) -> OwnedWeight:
        """Return `weight` rounded to nearest on the grid that `spec` asks for; `path` is its module's.

        Raises:
            UnsupportedError: the format or granularity is none that integer weights have.
            NumericsError: the weight holds NaN or infinity.
        """
        default = PerTensor() if weight.ndim < 2 else PerChannel(0)
        values = weight.detach()
        stacked = _is_stacked(tuple(weight.shape), summed)
        inner = tuple(axis - 1 for axis in summed) if stacked else summed
        packed = (
            pack_weight(_as_matrix(each, inner), spec, path, default, name)
            for each in (values if stacked else (values,))
        )
        return cls(tuple(packed), tuple(weight.shape), summed)

    @property
    def packed(self) -> tuple[PackedWeight, ...]:
        """The codes of each part."""
        found: Iterator[nn.Module] = self.parts.children()
        return tuple(each for each in found if isinstance(each, PackedWeight))

    @property
    def label(self) -> str:
        """A short name of the format, for example ``uint8 per row``."""
        return f"{self.packed[0].dtype} {self.packed[0].unit}"

    def dequantize(self) -> Tensor:
        """Return the weight in its own shape, float32."""
        if not self._stacked:
            return self._part(0)
        return torch.stack([self._part(number) for number in range(len(self.packed))])

    def rows_of(self, weight: Tensor) -> Mapping[PackedWeight, Tensor]:
        """Return the matrix of the float `weight`, of the same shape, that each part stands for."""
        if not self._stacked:
            return {self.packed[0]: _as_matrix(weight, self.summed)}
        inner = tuple(axis - 1 for axis in self.summed)
        pairs = zip(self.packed, weight, strict=True)
        return {packed: _as_matrix(part, inner) for packed, part in pairs}

    def read(self) -> Tensor:
        """Return the weight in the dtype of the float one, dequantized where it is used, and read-only."""
        first = self.packed[0]
        dtype, device = first.float_dtype, first.codes.device
        part: Callable[[int], Tensor] | None = None
        if self._stacked:
            part = lambda number: self._part(number).to(dtype)  # noqa: E731
        return read_only(lambda: self.dequantize().to(dtype), self.shape, dtype, device, part)

    @property
    def _stacked(self) -> bool:
        return _is_stacked(self.shape, self.summed)

    def _part(self, number: int) -> Tensor:
        matrix = self.packed[number].dequantize()
        shape, summed = self.shape, self.summed
        if self._stacked:
            shape, summed = shape[1:], tuple(axis - 1 for axis in summed)
        return _from_matrix(matrix, shape, summed)

    def layout(self) -> Mapping[str, object]:
        """Return the values that `restore` needs besides the tensors, for JSON."""
        return {
            "shape": list(self.shape),
            "summed": list(self.summed),
            "parts": [{"packed": each.layout()} for each in self.packed],
        }

    @classmethod
    def restore(cls, layout: Layout, tensors: Mapping[str, Tensor]) -> Self:
        """Return the weight that `layout` describes, with `tensors` by name.

        Raises:
            ArtifactError: a value or a tensor is missing, or they do not fit each other.
        """
        parts = tuple(
            PackedWeight.restore(entry.child("packed"), select_below(tensors, f"parts.{number}"))
            for number, entry in enumerate(layout.objects("parts"))
        )
        shape, summed = layout.integers("shape"), layout.integers("summed")
        fits = shape and set(summed) <= set(range(len(shape))) and summed and parts
        rows = math.prod(shape) if fits else -1
        if sum(math.prod(each.shape) for each in parts) != rows:
            raise layout.make_error("shape", "that of the codes")
        return cls(parts, tuple(shape), tuple(summed))

    def extra_repr(self) -> str:
        """Return the shape."""
        return f"shape {self.shape}, summed over {self.summed}"


@final
class OwnedWeights(nn.Module):
    """The weights of one module, each a child under the name of the parameter that it stands for.

    `like` is empty, and of the dtype and the device of the float weights: a module has to have a parameter to
    be asked for either.
    """

    def __init__(self, weights: Mapping[str, OwnedWeight]) -> None:
        super().__init__()
        self._modules.update(weights)  # a name may be one that a module has, such as "type"
        first = next(iter(weights.values())).packed[0]
        empty = torch.empty(0, dtype=first.float_dtype, device=first.codes.device)
        self.like = nn.Parameter(empty, requires_grad=False)

    def by_name(self) -> dict[str, OwnedWeight]:
        """Return the weights by the names of the parameters."""
        return {name: each for name, each in children(self).items() if isinstance(each, OwnedWeight)}


def _is_stacked(shape: tuple[int, ...], summed: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] > 1 and 0 not in summed


def _as_matrix(weight: Tensor, summed: tuple[int, ...]) -> Tensor:
    """Return `weight` as (rows, columns), the axes in `summed` being the columns."""
    kept = tuple(axis for axis in range(weight.ndim) if axis not in summed)
    columns = math.prod(weight.shape[axis] for axis in summed)
    return weight.permute(*kept, *summed).reshape(-1, columns)


def _from_matrix(matrix: Tensor, shape: tuple[int, ...], summed: tuple[int, ...]) -> Tensor:
    kept = tuple(axis for axis in range(len(shape)) if axis not in summed)
    order = (*kept, *summed)
    wide = matrix.reshape([shape[axis] for axis in order])
    return wide.permute([order.index(axis) for axis in range(len(shape))])
