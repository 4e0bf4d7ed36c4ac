"""The base of integer modules: packed weight, bias, and the grids of the activations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn
from typing_extensions import Self

from tico_config import ArtifactError, Found, Problem, UnsupportedError
from tico_modules._layers.kept_weight import KeepsWeight, refuse_weight
from tico_modules._layers.restorable import RestorableModule
from tico_modules._layers.transposed_linear import TransposedLinear
from tico_modules._storage.activation_grid import ActivationGrid
from tico_modules._storage.layout import Layout, require_tensor, select_below
from tico_modules._storage.meta_tensors import require_values
from tico_modules._storage.packed_weight import PackedWeight
from tico_modules._storage.read_only_weight import read_only
from tico_modules._tree.module_tree import own_tensor


@attrs.frozen(kw_only=True)
class Parts:
    """The parts of an integer module besides its settings.

    `bias` has shape (rows of the weight,). `act_in` is the grid of the input and `act_out` the grid of the
    output; None leaves them in float.

    Raises:
        UnsupportedError: a part is of another kind.
    """

    __hash__ = None  # type: ignore[assignment]

    packed: PackedWeight
    bias: Tensor | None = attrs.field(default=None, eq=False)
    act_in: ActivationGrid | None = None
    act_out: ActivationGrid | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse parts of other kinds."""
        kinds = {"packed": PackedWeight, "bias": Tensor, "act_in": ActivationGrid, "act_out": ActivationGrid}
        problems = [
            Problem(field=name, value=value, expected=f"a {kind.__name__}")
            for name, kind in kinds.items()
            if not isinstance(value := getattr(self, name), kind) and (name == "packed" or value is not None)
        ]
        if problems:
            raise UnsupportedError(*problems)


class QuantizedModule(KeepsWeight, RestorableModule):
    """A layer with an integer weight.

    The reference semantics of a call: fake-quantize the input on `act_in`, dequantize the weight, compute in
    the dtype of the input, fake-quantize the output on `act_out`. A grid that is None leaves values alone.

    The parameter `like` is empty. It has the dtype of the float weight, which changes when the model is cast,
    and the device: so a model of integer layers has parameters to ask for its dtype and device.

    A subclass has a `kind`, and says how it computes in `_compute`, `with_parts`, `settings` and
    `from_settings`.
    """

    unsaved: ClassVar[frozenset[str]] = frozenset({"like"})
    like: nn.Parameter
    packed: PackedWeight
    bias: Tensor | None
    act_in: ActivationGrid | None
    act_out: ActivationGrid | None

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.packed = parts.packed
        self.take_dtype(parts.packed.float_dtype)
        self.register_buffer("bias", parts.bias)
        self.register_module("act_in", parts.act_in)
        self.register_module("act_out", parts.act_out)

    def take_dtype(self, dtype: torch.dtype) -> None:
        """Answer from now on that the float weight has `dtype`; the codes stay as they are."""
        self.packed.float_dtype = dtype
        empty = torch.empty(0, dtype=dtype, device=self.packed.codes.device)
        self.like = nn.Parameter(empty, requires_grad=False)

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
        for name in self.unsaved:  # state dicts of earlier releases have none
            if prefix + name in missing_keys:
                missing_keys.remove(prefix + name)

    @property
    def parts(self) -> Parts:
        """Weight, bias and grids."""
        return Parts(packed=self.packed, bias=self.bias, act_in=self.act_in, act_out=self.act_out)

    @abstractmethod
    def _compute(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the layer's output for `x` and the float `weight`, both in the same dtype."""

    @abstractmethod
    def with_parts(self, parts: Parts) -> Self:
        """Return a layer of the same settings made of other parts."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name, which callers may use
        """Return the layer's output for `input`."""
        x = self._round_to_grid(self.act_in, input)
        return self._round_to_grid(self.act_out, self._compute(x, self._weight_for(x).to(x.dtype)))

    def _weight_for(self, x: Tensor) -> Tensor:
        """Return the weight as float32, for an input `x` that is somewhere else than on the meta device.

        Raises:
            LifecycleError: the weight has no values. Some kernels of torch would take it, and make them up.
        """
        return require_values(self.dequantize(), x, type(self).__name__)

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
        """The weight in the dtype of the float module: dequantized where it is used, and read-only.

        Its dtype, device and shape are known without that. It is no parameter, and what would write to it
        raises `LifecycleError`. In a traced or compiled function it is an ordinary tensor.
        """
        packed = self.packed
        return read_only(self._read_weight, self.weight_shape, packed.float_dtype, packed.codes.device)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        refuse_weight()

    @weight.deleter
    def weight(self) -> None:
        refuse_weight()

    def _read_weight(self) -> Tensor:
        return self.dequantize().to(self.packed.float_dtype).contiguous()

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
        """The number of bits of a weight code."""
        return self.packed.bits

    @property
    def group_size(self) -> int | None:
        """The number of columns that share a scale; None where whole rows do."""
        return self.packed.group_size

    @abstractmethod
    def settings(self) -> Mapping[str, object]:
        """Return the values that `from_settings` needs besides the parts, for JSON."""

    def layout(self) -> dict[str, object]:
        """Return the values that `restore` needs besides the tensors, for JSON."""
        return {
            "packed": self.packed.layout(),
            "bias": self.bias is not None,
            "act_in": self.act_in and self.act_in.layout(),
            "act_out": self.act_out and self.act_out.layout(),
            "settings": dict(self.settings()),
        }

    @classmethod
    def restore(cls, original: nn.Module, layout: Layout, tensors: Mapping[str, Tensor]) -> Self:
        """Return the module that `layout` describes, with `tensors` by name.

        Of the float module `original` only the shapes of its weight and bias are used.

        Raises:
            ArtifactError: a value or a tensor is missing, or they do not fit each other or `original`.
        """
        parts = Parts(
            packed=PackedWeight.restore(layout.child("packed"), select_below(tensors, "packed")),
            bias=require_tensor(tensors, layout, "bias") if layout.boolean("bias") else None,
            act_in=_restore_grid(layout, "act_in", tensors),
            act_out=_restore_grid(layout, "act_out", tensors),
        )
        module = cls.from_settings(parts, layout.child("settings"))
        _require_fit(original, module, layout)
        _require_settings(cls.settings_of(original), module.settings(), layout)
        return module

    @classmethod
    def settings_of(cls, original: nn.Module) -> Mapping[str, object]:
        """Return those of the `settings` of an integer module that the float `original` determines."""
        return {}

    @classmethod
    @abstractmethod
    def from_settings(cls, parts: Parts, settings: Layout) -> Self:
        """Return the module made of `parts` for which `settings()` gave the values in `settings`.

        Raises:
            ArtifactError: a setting is missing or wrong.
        """

    def rounded_from(self, original: nn.Module) -> Mapping[PackedWeight, Tensor]:
        """Return the weight of the float layer `original`, with an output in each row."""
        weight = own_tensor(original, "weight")
        if weight is None:
            return {}
        rows = weight.detach().T if isinstance(original, TransposedLinear) else weight.detach()
        return {self.packed: self._as_rows(rows)}

    def _as_rows(self, weight: Tensor) -> Tensor:
        """Return the float `weight` in the shape of the packed one."""
        return weight

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
    weight, bias = own_tensor(original, "weight"), module.bias
    if weight is not None and isinstance(original, TransposedLinear):
        weight = weight.T
    if bias is not None and not bias.is_floating_point():
        raise layout.make_error("bias", f"a tensor of floats, not of {bias.dtype}")
    problems = [
        *_find_misfit("weight", module.weight_shape, None if weight is None else tuple(weight.shape)),
        *([] if bias is None else _find_misfit("bias", tuple(bias.shape), module.bias_shape)),
    ]
    if problems:
        raise ArtifactError(*(attrs.evolve(problem, module=layout.where) for problem in problems))


def _require_settings(wanted: Mapping[str, object], saved: Mapping[str, object], layout: Layout) -> None:
    """Refuse a module with other settings than the one that it replaces.

    Raises:
        ArtifactError: with every setting that differs.
    """
    problems = [
        Problem(
            module=layout.where,
            field=name,
            value=saved[name],
            expected=f"{value!r}, to fit the float module",
            remedy="pass a float model made as the one that was saved",
        )
        for name, value in wanted.items()
        if saved[name] != value
    ]
    if problems:
        raise ArtifactError(*problems)


def _find_misfit(name: str, saved: tuple[int, ...], wanted: tuple[int, ...] | None) -> Iterator[Problem]:
    if saved != wanted:
        expected = "absent" if wanted is None else f"of shape {wanted}"
        found = Found(f"a tensor of shape {saved}")
        yield Problem(field=name, value=found, expected=f"{expected}, to fit the float module")


def copy_bias(module: nn.Module) -> Tensor | None:
    """Return a copy of the bias of `module`, detached from the graph; None where it has none.

    It may be a parameter, a buffer, as in frozen layers, or an ordinary attribute.
    """
    bias = own_tensor(module, "bias")
    return None if bias is None else bias.detach().clone()
