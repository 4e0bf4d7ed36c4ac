"""Integer linear layers and embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from tico_config import NumberFormat
from tico_modules._kernels.native_linear import Backend, NativeLinear
from tico_modules._layers.quantized_module import Parts, QuantizedModule, copy_bias
from tico_modules._storage.float_dtypes import name_of, parse_float_dtype
from tico_modules._storage.layout import Layout
from tico_modules._storage.meta_tensors import require_values
from tico_modules._storage.packed_weight import PackedWeight
from tico_modules._tree.answers import answer_for
from tico_modules._tree.requirements import float_weight


@final
class QuantizedLinear(QuantizedModule):
    """``y = x Wᵀ + bias`` with integer W of shape (out_features, in_features).

    >>> from tico_config import DType
    >>> layer = QuantizedLinear.from_float(nn.Linear(8, 4), DType.uint(4), group_size=4)
    >>> layer(torch.ones(2, 8)).shape, layer.bits, layer.group_size
    (torch.Size([2, 4]), 4, 4)
    """

    kind: ClassVar[str] = "linear"
    backend: Backend = "reference"
    _native: NativeLinear | None = None

    @property
    def in_features(self) -> int:
        """The size of the last axis of the input."""
        return self.packed.shape[1]

    @property
    def out_features(self) -> int:
        """The size of the last axis of the output."""
        return self.packed.shape[0]

    @classmethod
    def from_float(
        cls, linear: nn.Linear, dtype: NumberFormat, *, symmetric: bool = False, group_size: int | None = None
    ) -> QuantizedLinear:
        """Return `linear` with its weight rounded to nearest, a grid for each row or group of columns.

        Raises:
            NumericsError: the weight holds NaN or infinity.
            UnsupportedError: it is no linear layer, or its weight has no values.
        """
        weight = float_weight(linear, nn.Linear)
        packed = PackedWeight.round_to_nearest(weight, dtype, symmetric=symmetric, group_size=group_size)
        return answer_for(linear, cls(Parts(packed=packed, bias=copy_bias(linear))))

    def use(self, backend: Backend, native: NativeLinear | None = None) -> None:
        """Compute by `backend` from now on, as `set_backend` describes; `native` holds the kernel."""
        self.backend = backend
        self._native = native

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name, which callers may use
        """Return the layer's output for `input`."""
        if self.backend == "reference" or torch.compiler.is_compiling():
            return super().forward(input)
        # Children and buffers are read from their dictionaries: by attribute each takes a microsecond.
        native, modules = self._native, self._modules
        if native is None or not native.is_made_of(modules):
            native = self._native = NativeLinear.of(self.packed, self.act_in)
        output = native.compute(input, self._buffers["bias"], self.backend)
        if output is None:
            return super().forward(input)
        return output if modules["act_out"] is None else self._round_to_grid(self.act_out, output)

    def __getstate__(self) -> dict[str, object]:
        """Return the state for copies and pickles, without the kernel, which each copy makes anew."""
        return {name: value for name, value in vars(self).items() if name != "_native"}

    def _compute(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self._cast_bias(x))

    def with_parts(self, parts: Parts) -> QuantizedLinear:
        """Return a linear layer made of other parts."""
        return QuantizedLinear(parts)

    def settings(self) -> Mapping[str, object]:
        """Return no settings: the shape of the weight determines the layer."""
        return {}

    @classmethod
    def from_settings(cls, parts: Parts, settings: Layout) -> Self:
        """Return the layer made of `parts`."""
        return cls(parts)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {super().extra_repr()}"


@final
class QuantizedEmbedding(QuantizedModule):
    """Rows of an integer table of shape (num_embeddings, embedding_dim), looked up by index.

    Indices of shape (...) give rows of shape (..., embedding_dim) in `dtype`, by default that of the float
    weight, which changes when the model is cast. Each row is multiplied by `factor`, as those of Gemma are.

    >>> from tico_config import DType
    >>> table = PackedWeight.round_to_nearest(torch.eye(3), DType.uint(4), symmetric=False, group_size=None)
    >>> QuantizedEmbedding(Parts(packed=table))(torch.tensor([2])).tolist()
    [[0.0, 0.0, 1.0]]
    """

    kind: ClassVar[str] = "embedding"

    def __init__(self, parts: Parts, dtype: torch.dtype | None = None, factor: float = 1.0) -> None:
        super().__init__(parts)
        if dtype is not None and dtype != self.packed.float_dtype:
            self.take_dtype(dtype)
        self.factor = factor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the rows."""
        return self.packed.float_dtype

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name, which callers may use
        """Return the rows at the integers `input`, fake-quantized on `act_out` where there is such a grid."""
        output = require_values(self.packed.rows(input), input, type(self).__name__).to(self.dtype)
        output = output if self.factor == 1 else output * output.new_full((), self.factor)
        return self._round_to_grid(self.act_out, output)

    def _compute(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(x, weight)

    def with_parts(self, parts: Parts) -> QuantizedEmbedding:
        """Return an embedding made of other parts."""
        return QuantizedEmbedding(parts, self.dtype, self.factor)

    def settings(self) -> Mapping[str, object]:
        """Return the dtype of the rows and their factor."""
        return {"dtype": name_of(self.dtype), "factor": self.factor}

    @classmethod
    def from_settings(cls, parts: Parts, settings: Layout) -> Self:
        """Return the embedding made of `parts`.

        Raises:
            ArtifactError: the dtype is no dtype of floats, or the factor is no number.
        """
        factor = settings.values.get("factor")
        if not (isinstance(factor, float) and math.isfinite(factor)):
            raise settings.make_error("factor", "a finite number")
        return cls(parts, parse_float_dtype(settings, "dtype"), factor)
