"""How a layer is quantized, in the words of compressed-tensors."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from typing_extensions import Self

from tico_config import DType
from tico_export.source import Grid, IntegerWeight, Source


@attrs.frozen(kw_only=True)
class InputScheme:
    """The grid of a layer's input: fixed for the tensor, or made for each token."""

    bits: int
    symmetric: bool
    dynamic: bool

    @classmethod
    def of(cls, grid: Grid) -> Self:
        """Return the scheme of `grid`."""
        return cls(bits=grid.dtype.bits, symmetric=grid.symmetric, dynamic=grid.is_dynamic)

    def to_json(self) -> Mapping[str, object]:
        """Return the library's `QuantizationArgs`."""
        strategy = "token" if self.dynamic else "tensor"
        return _args(self.bits, strategy, symmetric=self.symmetric, dynamic=self.dynamic)


@attrs.frozen(kw_only=True)
class Scheme:
    """The grids of a layer's weight and input, and whether its codes are packed; equal ones make a group."""

    bits: int
    symmetric: bool
    group_size: int | None
    inputs: InputScheme | None
    is_packed: bool

    @classmethod
    def of(cls, weight: IntegerWeight) -> Self:
        """Return the scheme of a layer; codes are packed where inputs are floats, else take a byte each."""
        return cls(
            bits=weight.dtype.bits,
            symmetric=weight.is_symmetric,
            group_size=weight.group_size,
            inputs=None if weight.act_in is None else InputScheme.of(weight.act_in),
            is_packed=weight.act_in is None,
        )

    @property
    def format(self) -> str:
        """The library's name of how codes are stored."""
        return "pack-quantized" if self.is_packed else "int-quantized"

    def to_json(self, targets: list[str]) -> Mapping[str, object]:
        """Return the library's `QuantizationScheme` for `targets`."""
        strategy = "channel" if self.group_size is None else "group"
        weights = _args(self.bits, strategy, symmetric=self.symmetric, dynamic=False)
        return {
            "targets": targets,
            "weights": weights | {"group_size": self.group_size},
            "input_activations": None if self.inputs is None else self.inputs.to_json(),
            "output_activations": None,
            "format": self.format,
        }


def _args(bits: int, strategy: str, *, symmetric: bool, dynamic: bool) -> dict[str, object]:
    grid: dict[str, object] = {"num_bits": bits, "type": "int", "symmetric": symmetric}
    return grid | {"strategy": strategy, "dynamic": dynamic}


def schemes_of(source: Source) -> Mapping[str, Scheme]:
    """Return the scheme of each layer, by path.

    Layers of a kind that differ in nothing but in having zero points have one scheme, with zero points. Where
    there are several schemes, layers of 8 bits that `needs_floats` speaks of are not packed: so transformers
    loads them as they are.
    """
    schemes = {path: Scheme.of(weight) for path, weight in source.weights.items()}
    alike = {
        path: (source.weights[path].kind, attrs.evolve(each, symmetric=True))
        for path, each in schemes.items()
    }
    with_points = {alike[path] for path, each in schemes.items() if not each.symmetric}
    for path, each in schemes.items():
        schemes[path] = attrs.evolve(each, symmetric=alike[path] not in with_points)
    if len(set(schemes.values())) > 1:
        for path, weight in source.weights.items():
            if weight.dtype.bits == 8 and needs_floats(weight, schemes[path]):
                schemes[path] = attrs.evolve(schemes[path], is_packed=False)
    return schemes


def needs_floats(weight: IntegerWeight, scheme: Scheme) -> bool:
    """Tell whether transformers loads a layer only as floats, and only if all have one scheme.

    So it is with packed zero points and embeddings, up to 5.23 with 0.20 of the library.
    """
    return scheme.is_packed and (not scheme.symmetric or weight.kind == "embedding")


def loads_as_floats(source: Source) -> bool:
    """Tell whether transformers has to load an export of `source` as floats."""
    schemes = schemes_of(source)
    return any(needs_floats(each, schemes[path]) for path, each in source.weights.items())


def middle_of(dtype: DType) -> int:
    """Return the code of `dtype` that is 0 in the library, whose codes are all signed."""
    return 0 if dtype.signed else 2 ** (dtype.bits - 1)
