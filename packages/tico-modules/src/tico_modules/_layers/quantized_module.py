"""What every integer module shares: packed weight, bias, and the grids of its activations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import attrs
from torch import Tensor, nn
from typing_extensions import Self

from tico_config import ArtifactError, Found, Problem
from tico_modules._layers.restorable import RestorableModule
from tico_modules._layers.transposed_linear import TransposedLinear
from tico_modules._storage.activation_grid import ActivationGrid
from tico_modules._storage.layout import Layout, require_tensor, select_below
from tico_modules._storage.packed_weight import PackedWeight
from tico_modules._tree.module_tree import parameter


@attrs.frozen(kw_only=True)
class Parts:
    """What an integer module is made of besides its settings."""

    __hash__ = None  # type: ignore[assignment]

    packed: PackedWeight
    bias: Tensor | None = attrs.field(default=None, eq=False)
    act_in: ActivationGrid | None = None
    act_out: ActivationGrid | None = None


class QuantizedModule(RestorableModule):
    """A layer whose weight is integer codes.

    The reference semantics: dequantize the weight, move the input to `act_in`'s grid where there is one,
    compute in the dtype of the input, move the output to `act_out`'s grid where there is one.
    """

    packed: PackedWeight
    bias: Tensor | None
    act_in: ActivationGrid | None
    act_out: ActivationGrid | None

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.packed = parts.packed
        self.register_buffer("bias", parts.bias)
        self.register_module("act_in", parts.act_in)
        self.register_module("act_out", parts.act_out)

    @property
    def parts(self) -> Parts:
        """Weight, bias and grids."""
        return Parts(packed=self.packed, bias=self.bias, act_in=self.act_in, act_out=self.act_out)

    @abstractmethod
    def _compute(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the layer's function of `x` and the dequantized `weight`."""

    @abstractmethod
    def with_parts(self, parts: Parts) -> Self:
        """Return a layer of the same settings made of other parts."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name, which callers may use
        """Return the layer's output for `input`."""
        x = self._round_to_grid(self.act_in, input)
        return self._round_to_grid(self.act_out, self._compute(x, self.dequantize().to(x.dtype)))

    @staticmethod
    def _round_to_grid(grid: ActivationGrid | None, x: Tensor) -> Tensor:
        """Return `x` rounded to `grid`, or as it is where there is none."""
        if grid is None:
            return x
        rounded: Tensor = grid(x)
        return rounded

    def _cast_bias(self, x: Tensor) -> Tensor | None:
        """Return the bias in the dtype of `x`."""
        return None if self.bias is None else self.bias.to(x.dtype)

    @property
    def weight(self) -> Tensor:
        """The weight as floats, computed at each use; it is no parameter."""
        return self.dequantize()

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the float weight."""
        return self.packed.shape

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """The shape of the bias."""
        return self.packed.shape[:1]

    def dequantize(self) -> Tensor:
        """Return the weight as float32, in its own shape."""
        return self.packed.dequantize()

    @property
    def bits(self) -> int:
        """Bits of a weight code."""
        return self.packed.bits

    @property
    def group_size(self) -> int | None:
        """Input columns that share a scale; None where a whole row does."""
        return self.packed.group_size

    @abstractmethod
    def settings(self) -> Mapping[str, object]:
        """Return what its constructor needs besides the parts, as JSON values."""

    def layout(self) -> dict[str, object]:
        """Return what is needed besides the tensors to make this module again, as JSON values."""
        return {
            "packed": self.packed.layout(),
            "bias": self.bias is not None,
            "act_in": self.act_in and self.act_in.layout(),
            "act_out": self.act_out and self.act_out.layout(),
            "settings": dict(self.settings()),
        }

    @classmethod
    def restore(cls, original: nn.Module, layout: Layout, tensors: Mapping[str, Tensor]) -> Self:
        """Return the module that `layout` describes and `tensors` hold; of `original` only the shape counts.

        Raises:
            ArtifactError: they do not fit each other.
        """
        parts = Parts(
            packed=PackedWeight.restore(layout.child("packed"), select_below(tensors, "packed")),
            bias=require_tensor(tensors, layout, "bias") if layout.boolean("bias") else None,
            act_in=_restore_grid(layout, "act_in", tensors),
            act_out=_restore_grid(layout, "act_out", tensors),
        )
        module = cls.from_settings(parts, layout.child("settings"))
        _require_fit(original, module, layout)
        return module

    @classmethod
    @abstractmethod
    def from_settings(cls, parts: Parts, settings: Layout) -> Self:
        """Return the module made of `parts` whose `settings()` are the given ones."""

    def extra_repr(self) -> str:
        """Return the settings, and format, granularity and bytes of the weight."""
        settings = [f"{name}={value}" for name, value in self.settings().items()]
        weight = f"{self.packed.dtype} {self.packed.unit}, {self.packed.bytes} bytes"
        return ", ".join([*settings, weight, f"bias={self.bias is not None}"])


def _restore_grid(layout: Layout, name: str, tensors: Mapping[str, Tensor]) -> ActivationGrid | None:
    grid = layout.optional_child(name)
    return None if grid is None else ActivationGrid.restore(grid, select_below(tensors, name))


def _require_fit(original: nn.Module, module: QuantizedModule, layout: Layout) -> None:
    """Refuse a module whose weight or bias has another shape than that of the module that it replaces.

    Raises:
        ArtifactError: naming the tensor.
    """
    shape, rows = module.weight_shape, module.bias_shape
    weight, bias = parameter(original, "weight"), module.bias
    if weight is not None and isinstance(original, TransposedLinear):
        weight = weight.T
    found: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    if weight is None or tuple(weight.shape) != shape:
        found["weight"] = (shape, () if weight is None else tuple(weight.shape))
    if bias is not None and tuple(bias.shape) != rows:
        found["bias"] = (tuple(bias.shape), rows)
    problems = [
        Problem(
            module=layout.where, field=name, value=Found(f"of shape {has}"), expected=f"of shape {wanted}"
        )
        for name, (has, wanted) in found.items()
    ]
    if problems:
        raise ArtifactError(*problems)


def copy_bias(module: nn.Module) -> Tensor | None:
    """Return a copy of the bias that `module` stores, without gradient, or None."""
    bias = parameter(module, "bias")
    return None if bias is None else bias.detach().clone()
