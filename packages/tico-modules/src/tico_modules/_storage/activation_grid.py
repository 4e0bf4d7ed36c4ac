"""The grid of an activation, static or per token, as a module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tico_config import (
    ArtifactError,
    DType,
    Found,
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    Problem,
)
from tico_modules._storage.exact_module import ExactModule
from tico_modules._storage.layout import Layout, require_tensor
from tico_observers import AffineParams, round_to_grid


class ActivationGrid(ExactModule):
    """Moves activations to a grid: a fixed one (buffers `scale` and `zero_point`) or one per token.

    A grid per token has empty buffers and is computed from each vector along the last axis; one that
    holds NaN or infinity becomes NaN.

    >>> grid = ActivationGrid.per_token(DType.int(8), symmetric=True)
    >>> grid(torch.tensor([[127.0, 0.4], [1.27, 0.504]]))
    tensor([[127.0000,   0.0000],
            [  1.2700,   0.5000]])
    """

    scale: Tensor
    zero_point: Tensor
    dtype: DType
    granularity: Granularity
    symmetric: bool

    def __init__(
        self, scale: Tensor, zero_point: Tensor, *, dtype: DType, granularity: Granularity, symmetric: bool
    ) -> None:
        super().__init__()
        # There are many grids: what is no parameter, buffer or module goes past the checks of `__setattr__`.
        vars(self).update(dtype=dtype, granularity=granularity, symmetric=symmetric)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    @classmethod
    def static(cls, params: AffineParams) -> ActivationGrid:
        """Return the module that moves values to `params`."""
        symmetric = params.dtype.signed and not bool(params.zero_point.any())
        return cls(
            params.scale,
            params.zero_point,
            dtype=params.dtype,
            granularity=params.granularity,
            symmetric=symmetric,
        )

    @classmethod
    def per_token(
        cls, dtype: DType, *, symmetric: bool, device: torch.device | None = None
    ) -> ActivationGrid:
        """Return the module that gives each vector along the last axis a grid of its own."""
        scale = torch.empty(0, device=device)
        zero_point = torch.empty(0, dtype=torch.int32, device=device)
        return cls(scale, zero_point, dtype=dtype, granularity=PerToken(), symmetric=symmetric)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` moved to the grid, in the dtype of `x`."""
        if isinstance(self.granularity, PerToken):
            scale, zero_point = compute_token_grids(x, self.dtype, symmetric=self.symmetric)
        else:
            scale, zero_point = self.scale, self.zero_point
        return round_to_grid(x, scale, zero_point, dtype=self.dtype, granularity=self.granularity)

    @property
    def label(self) -> str:
        """A short name, for example ``uint8 per tensor``."""
        unit = "per token" if isinstance(self.granularity, PerToken) else "static"
        return f"{self.dtype} {unit}"

    def extra_repr(self) -> str:
        """Return format and granularity."""
        return f"{self.dtype}, {self.granularity}"

    def layout(self) -> dict[str, object]:
        """Return what is needed besides the buffers to make this grid again, as JSON values."""
        axis, size = _split_granularity(self.granularity)
        return {
            "bits": self.dtype.bits,
            "signed": self.dtype.signed,
            "symmetric": self.symmetric,
            "unit": type(self.granularity).__name__,
            "axis": axis,
            "size": size,
        }

    @classmethod
    def restore(cls, layout: Layout, tensors: Mapping[str, Tensor]) -> ActivationGrid:
        """Return the grid that `layout` describes and `tensors` hold.

        Raises:
            ArtifactError: they do not fit each other.
        """
        symmetric = layout.boolean("symmetric")
        with layout.locate_errors():
            granularity = _read_granularity(layout)
            dtype = DType(layout.integer("bits"), layout.boolean("signed"))
            scale, zero_point = (require_tensor(tensors, layout, name) for name in ("scale", "zero_point"))
            if not isinstance(granularity, PerToken):
                params = AffineParams(
                    scale=scale, zero_point=zero_point, dtype=dtype, granularity=granularity
                )
                scale, zero_point = params.scale, params.zero_point
            _require_dimensions(scale, granularity)
        return cls(scale, zero_point, dtype=dtype, granularity=granularity, symmetric=symmetric)


def _require_dimensions(scale: Tensor, granularity: Granularity) -> None:
    """Refuse scales that are not as many as `granularity` has units.

    Raises:
        ArtifactError: with the shape.
    """
    match granularity:
        case PerTensor():
            fits, expected = scale.ndim == 0, "one number"
        case PerChannel():
            fits, expected = scale.ndim == 1, "a vector"
        case PerGroup():
            fits, expected = scale.ndim > 0, "of at least one axis"
        case PerToken():
            fits, expected = scale.numel() == 0, "empty"
    if not fits:
        found = Found(f"of shape {tuple(scale.shape)}")
        raise ArtifactError(Problem(field="scale", value=found, expected=expected))


def compute_token_grids(x: Tensor, dtype: DType, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return what `tico_observers.params_per_token` does, without checks, so that it can be exported."""
    if x.shape[-1] == 0:
        low = high = x.new_zeros(x.shape[:-1], dtype=torch.float64)
    else:
        low = x.detach().amin(-1).to(torch.float64).clamp(max=0.0)
        high = x.detach().amax(-1).to(torch.float64).clamp(min=0.0)
    if symmetric:
        width = torch.maximum(high / dtype.qmax, low / dtype.qmin)
    else:
        width = (high - low) / (dtype.qmax - dtype.qmin)
    smallest = torch.finfo(torch.float32).tiny
    scale = torch.where(width == 0, 1.0, width).to(torch.float32).clamp(min=smallest)
    if symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    offset = torch.round(low / scale.to(torch.float64)).clamp(min=dtype.qmin - dtype.qmax)
    return scale, (dtype.qmin - offset).to(torch.int32)


def _split_granularity(granularity: Granularity) -> tuple[int, int]:
    """Return the axis, counted from 8 below, and the group size; what does not apply is 0."""
    match granularity:
        case PerChannel(axis=axis):
            return axis + 8, 0
        case PerGroup(axis=axis, size=size):
            return axis + 8, size
        case _:
            return 0, 0


def _read_granularity(layout: Layout) -> Granularity:
    axis = layout.integer("axis") - 8
    match layout.text("unit"):
        case "PerTensor":
            return PerTensor()
        case "PerToken":
            return PerToken()
        case "PerChannel":
            return PerChannel(axis)
        case "PerGroup":
            return PerGroup(axis, layout.integer("size"))
        case unit:
            problem = Problem(module=layout.where, field="unit", value=Found(unit), expected="a granularity")
            raise ArtifactError(problem)
