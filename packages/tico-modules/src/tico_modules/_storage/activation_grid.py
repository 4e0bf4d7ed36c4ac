"""The grid of an activation as a module: fixed, or computed for each token or block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.overrides import handle_torch_function
from torch.utils._python_dispatch import _disable_current_modes
from typing_extensions import Self

from tico_config import (
    ArtifactError,
    DType,
    FloatFormat,
    Found,
    Granularity,
    GridFormat,
    NumberFormat,
    NumericsError,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    Problem,
    TicoError,
    UnsupportedError,
    integer_format,
)
from tico_modules._storage.exact_module import ExactModule, has_values
from tico_modules._storage.exported import (
    GridNumbers,
    has_dialect_for,
    move_to_channels,
    move_to_grid,
    read_while_tracing,
)
from tico_modules._storage.layout import Layout, require_tensor
from tico_modules._storage.meta_tensors import require_values
from tico_modules._storage.one_function import is_watched
from tico_modules._storage.weight_format import read_number_format
from tico_observers import (
    AffineParams,
    broadcast,
    can_round_tokens,
    fake_quantize_blocks,
    round_to_grid,
    round_tokens,
)

_BUFFERS = ("scale", "zero_point")


class ActivationGrid(ExactModule):
    """Fake-quantizes activations on a fixed grid, or on a grid of its own for each token or block.

    A fixed grid is in the buffers `scale` (float32) and `zero_point` (int32), both of the shape that
    `granularity` asks for. With a grid per token both buffers are empty: each vector along the last axis
    gets the min/max grid of its values, and becomes NaN as a whole if it holds NaN or infinity. So does each
    block of an MX format and of `NVFP4`, whose `scale` is that of the tensor, a fixed number: the scales of
    blocks are multiples of it.

    In a program that `torch.export` makes, a fixed grid is a pair of operators of ``quantized_decomposed``,
    with scale and zero point as plain numbers where there is one for the whole tensor. Grids per token and
    per group, float64 and codes of more than 16 bits, which that dialect computes in another way, are plain
    arithmetic.

    >>> grid = ActivationGrid.per_token(DType.int(8), symmetric=True)
    >>> grid(torch.tensor([[127.0, 0.4], [1.27, 0.504]]))
    tensor([[127.0000,   0.0000],
            [  1.2700,   0.5000]])
    """

    scale: Tensor
    zero_point: Tensor
    dtype: NumberFormat
    granularity: Granularity
    symmetric: bool
    _originals: tuple[Tensor, Tensor]  # the buffers, where no tracer puts stand-ins in their place

    def __init__(
        self,
        scale: Tensor,
        zero_point: Tensor,
        *,
        dtype: NumberFormat,
        granularity: Granularity,
        symmetric: bool,
    ) -> None:
        super().__init__()
        # There are many grids: what is no parameter, buffer or module goes past the checks of `__setattr__`.
        vars(self).update(dtype=dtype, granularity=granularity, symmetric=symmetric)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self._keep_originals()

    @classmethod
    def static(cls, params: AffineParams) -> ActivationGrid:
        """Return the module that fake-quantizes on the fixed grid `params`."""
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
        cls, dtype: NumberFormat, *, symmetric: bool, device: torch.device | None = None
    ) -> ActivationGrid:
        """Return the module that computes a grid for each vector along the last axis; `device` is its own."""
        scale = torch.empty(0, device=device)
        zero_point = torch.empty(0, dtype=torch.int32, device=device)
        return cls(scale, zero_point, dtype=dtype, granularity=PerToken(), symmetric=symmetric)

    @classmethod
    def per_block(
        cls,
        dtype: FloatFormat,
        *,
        axis: int = -1,
        tensor_scale: Tensor | None = None,
        device: torch.device | None = None,
    ) -> ActivationGrid:
        """Return the module that gives each block along `axis` the scale of its values.

        Args:
            dtype: an MX format, or `NVFP4`.
            axis: along which blocks lie.
            tensor_scale: float32 of shape (), for `NVFP4` alone: what the scales of blocks are multiples of.
                A block whose largest magnitude is beyond ``6 * 448`` of it saturates.
            device: that of the module; with `tensor_scale`, its own.

        Raises:
            UnsupportedError: `dtype` has no blocks.
            NumericsError: `tensor_scale` is missing, superfluous, or not a positive normal float.

        >>> from tico_config import MXFP4, NVFP4
        >>> ActivationGrid.per_block(MXFP4())(torch.tensor([5.0, 0.7]))
        tensor([4.0000, 0.5000])
        >>> ActivationGrid.per_block(NVFP4(), tensor_scale=torch.tensor(0.125))(torch.tensor([5.0, 0.7]))
        tensor([4.8750, 0.8125])
        """
        size = dtype.block_size
        if size is None:
            expected = "a format of blocks, such as MXFP8()"
            raise UnsupportedError(Problem(field="dtype", value=dtype, expected=expected))
        _require_tensor_scale(dtype, tensor_scale)
        granularity = PerGroup(axis, size)
        scale, zero_point = torch.empty(0, device=device), torch.empty(0, dtype=torch.int32, device=device)
        if tensor_scale is not None:
            params = _checked(tensor_scale, torch.zeros_like(tensor_scale), dtype, granularity)
            scale, zero_point = params.scale, params.zero_point
        return cls(scale, zero_point, dtype=dtype, granularity=granularity, symmetric=True)

    def grid_format(self) -> GridFormat:
        """Return the format of the codes, as profiles of runtimes compare it."""
        return GridFormat(dtype=self.dtype, granularity=self.granularity, symmetric=self.symmetric)

    def forward(self, x: Tensor) -> Tensor:
        """Return the fake-quantized `x`, in the shape and dtype of `x`.

        Raises:
            UnsupportedError: `x` holds no floats.
        """
        if is_watched(x):
            moved: Tensor = handle_torch_function(activation_grid, (x,), self, x)
            return moved
        if _holds_no_floats(x):
            raise UnsupportedError(_problem_of_format(x.dtype))
        if torch.compiler.is_exporting() and (exported := self._in_program(x)) is not None:
            return exported
        if isinstance(self.dtype, FloatFormat) and not is_fixed(self.dtype, self.granularity):
            return _round_by_own_scales(x, self.dtype, self.granularity, self.scale)
        if isinstance(self.granularity, PerToken):
            if can_round_tokens(x, self.dtype, symmetric=self.symmetric):
                return round_tokens(x, self.dtype, symmetric=self.symmetric)
            integers = integer_format(self.dtype)
            scale, zero_point = compute_token_grids(x, integers, symmetric=self.symmetric)
        else:
            scale, zero_point = require_values(self.scale, x, "ActivationGrid", "scale"), self.zero_point
        return round_to_grid(x, scale, zero_point, dtype=self.dtype, granularity=self.granularity)

    def _in_program(self, x: Tensor) -> Tensor | None:
        """Return `x` moved to the grid by operators of a dialect; None where that has none for the grid."""
        granularity, dtype = self.granularity, self.dtype
        if not (isinstance(granularity, PerTensor | PerChannel) and isinstance(dtype, DType)):
            return None
        if not has_dialect_for(x, dtype):
            return None
        numbers = self._read_numbers()
        if numbers is None:
            return None
        if isinstance(granularity, PerTensor):
            return move_to_grid(x, GridNumbers(*numbers), dtype)
        if x.shape[granularity.axis] != self.scale.shape[0]:
            broadcast(self.scale, granularity, x.shape)  # which refuses it
        grid = (self.scale, self.zero_point, granularity.axis)
        return move_to_channels(x, *grid, GridNumbers(*numbers), dtype)

    @read_while_tracing
    def _read_numbers(self) -> tuple[float, int, float] | None:
        """Return the `GridNumbers` of a fixed grid; None where its tensors have no values."""
        with _disable_current_modes():
            if not has_values(*self._originals):
                return None
            numbers = GridNumbers.of(*self._originals, integer_format(self.dtype))
            return numbers.scale, numbers.zero_point, numbers.largest

    def _keep_originals(self) -> None:
        buffers = self._buffers
        vars(self)["_originals"] = (buffers["scale"], buffers["zero_point"])

    def __setattr__(self, name: str, value: Tensor | torch.nn.Module) -> None:
        """Set an attribute; a buffer set is what exported programs are made of."""
        super().__setattr__(name, value)
        if name in _BUFFERS:
            self._keep_originals()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._keep_originals()
        return self

    @property
    def label(self) -> str:
        """A short name, for example ``uint8 per tensor``."""
        if is_fixed(self.dtype, self.granularity):
            return f"{self.dtype} static"
        return f"{self.dtype} per token" if isinstance(self.granularity, PerToken) else str(self.dtype)

    def extra_repr(self) -> str:
        """Return format and granularity."""
        return f"{self.dtype}, {self.granularity}"

    def layout(self) -> dict[str, object]:
        """Return the values that `restore` needs besides the buffers, for JSON."""
        axis, size = _split_granularity(self.granularity)
        return {
            "bits": self.dtype.bits,
            "signed": self.dtype.signed,
            **({"format": str(self.dtype)} if isinstance(self.dtype, FloatFormat) else {}),
            "symmetric": self.symmetric,
            "unit": type(self.granularity).__name__,
            "axis": axis,
            "size": size,
        }

    def meaning(self) -> Mapping[str, object]:
        """Return the format of the grid, as JSON values."""
        fixed = is_fixed(self.dtype, self.granularity)
        # Whether the zero points of a fixed grid happen to be 0 is a matter of its numbers.
        return {name: value for name, value in self.layout().items() if not (fixed and name == "symmetric")}

    def tensor_problems(self, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
        """Yield what is wrong with `tensors`, by name, as buffers of a grid of this format."""
        yield from super().tensor_problems(tensors)
        needs_data = needs_calibration(self.dtype, self.granularity)
        if needs_data and len(tensors) == 2 and has_values(*tensors.values()):
            try:
                _checked(**tensors, dtype=self.dtype, granularity=self.granularity)
            except TicoError as error:
                yield from error.problems

    @classmethod
    def restore(cls, layout: Layout, tensors: Mapping[str, Tensor]) -> ActivationGrid:
        """Return the grid that `layout` describes, with the buffers in `tensors`, by name.

        Raises:
            ArtifactError: a value or a tensor is missing, or they do not fit each other.
        """
        symmetric = layout.boolean("symmetric")
        with layout.locate_errors():
            granularity = _read_granularity(layout)
            dtype = read_number_format(layout)
            scale, zero_point = (require_tensor(tensors, layout, name) for name in ("scale", "zero_point"))
            if needs_calibration(dtype, granularity):
                params = _checked(scale, zero_point, dtype, granularity)
                scale, zero_point = params.scale, params.zero_point
            _require_dimensions(scale, _of_buffers(dtype, granularity))
        return cls(scale, zero_point, dtype=dtype, granularity=granularity, symmetric=symmetric)


def is_fixed(dtype: NumberFormat, granularity: Granularity) -> bool:
    """Tell whether a grid of activations stays as it is, whatever values come.

    >>> from tico_config import MXFP4
    >>> is_fixed(DType.int(8), PerTensor()), is_fixed(MXFP4(), PerGroup(size=32))
    (True, False)
    """
    has_blocks = isinstance(dtype, FloatFormat) and dtype.block_size is not None
    return not (has_blocks or isinstance(granularity, PerToken))


def needs_calibration(dtype: NumberFormat, granularity: Granularity) -> bool:
    """Tell whether a grid of activations has numbers that calibration determines.

    These are the scales of a fixed grid, or the scale of the tensor in `NVFP4`.

    >>> from tico_config import MXFP4, NVFP4
    >>> [needs_calibration(each, PerGroup(size=each.block_size)) for each in (MXFP4(), NVFP4())]
    [False, True]
    """
    return is_fixed(dtype, granularity) or _has_tensor_scale(dtype)


def _has_tensor_scale(dtype: NumberFormat) -> bool:
    return isinstance(dtype, FloatFormat) and dtype.scale_format == "e4m3"


def _require_tensor_scale(dtype: FloatFormat, tensor_scale: Tensor | None) -> None:
    """Refuse a scale of the tensor that is missing or superfluous.

    Raises:
        NumericsError: it is.
    """
    if _has_tensor_scale(dtype) is (tensor_scale is not None):
        return
    expected = f"a single number for {dtype}" if _has_tensor_scale(dtype) else f"None for {dtype}"
    found = Found("None" if tensor_scale is None else f"a tensor of shape {tuple(tensor_scale.shape)}")
    raise NumericsError(Problem(field="tensor_scale", value=found, expected=expected))


def _of_buffers(dtype: NumberFormat, granularity: Granularity) -> Granularity:
    """Return what the buffers have a number for; nothing where that is `PerToken`."""
    if _has_tensor_scale(dtype):
        return PerTensor()
    return granularity if is_fixed(dtype, granularity) else PerToken()


def _checked(
    scale: Tensor, zero_point: Tensor, dtype: NumberFormat, granularity: Granularity
) -> AffineParams:
    """Return the buffers of a grid as they have to be.

    Raises:
        NumericsError: they are not.
    """
    unit = scale if _has_tensor_scale(dtype) else None
    granularity = _of_buffers(dtype, granularity)
    return AffineParams(
        scale=scale, zero_point=zero_point, dtype=dtype, granularity=granularity, tensor_scale=unit
    )


def _round_by_own_scales(
    x: Tensor, dtype: FloatFormat, granularity: Granularity, tensor_scale: Tensor
) -> Tensor:
    if isinstance(granularity, PerGroup):
        unit = tensor_scale if _has_tensor_scale(dtype) else None
        return fake_quantize_blocks(x, dtype, granularity.axis, tensor_scale=unit)
    return round_tokens(x, dtype, symmetric=True)


# What depends on the numbers of `x` stays one node in a graph of `torch.fx.symbolic_trace`.
torch.fx.wrap("_round_by_own_scales")


def activation_grid(grid: ActivationGrid, x: Tensor) -> Tensor:
    """Return `x` moved to `grid`: the function that modes of torch see."""
    return grid.forward(x)


def _holds_no_floats(x: object) -> bool:
    # In a symbolic trace of `torch.fx` it is no tensor, and nothing is known of it.
    return isinstance(x, Tensor) and not x.is_floating_point()


def _problem_of_format(dtype: torch.dtype) -> Problem:
    sentence = f"the input is {dtype}, and the grid is one of floats"
    remedy = "convert it to the floats that the model was calibrated with"
    return Problem(
        field="input", value=Found(str(dtype)), expected="floats", sentence=sentence, remedy=remedy
    )


def _require_dimensions(scale: Tensor, granularity: Granularity) -> None:
    """Refuse a scale whose number of axes does not suit `granularity`.

    Raises:
        ArtifactError: with the shape of the scale.
    """
    match granularity:
        case PerTensor():
            fits, expected = scale.ndim == 0, "a single number"
        case PerChannel():
            fits, expected = scale.ndim == 1, "a vector"
        case PerGroup():
            fits, expected = scale.ndim > 0, "a tensor with at least one axis"
        case PerToken():
            fits, expected = scale.numel() == 0, "an empty tensor"
    if not fits:
        found = Found(f"a tensor of shape {tuple(scale.shape)}")
        raise ArtifactError(Problem(field="scale", value=found, expected=expected))


def compute_token_grids(x: Tensor, dtype: DType, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return scale (float32) and zero point (int32) of each vector along the last axis of `x`.

    They are those of `tico_observers.params_per_token`, whose checks a program for export cannot hold.
    """
    return _find_token_grids(x, dtype.qmin, dtype.qmax, symmetric)


def _find_token_grids(x: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    smallest = torch.finfo(torch.float32).tiny
    if x.shape[-1] == 0:
        low = high = x.new_zeros(x.shape[:-1], dtype=torch.float64)
    else:
        low = x.detach().amin(-1).to(torch.float64).clamp(max=0.0)
        high = x.detach().amax(-1).to(torch.float64).clamp(min=0.0)
        low, high = low * (low <= -smallest), high * (high >= smallest)
    width = torch.maximum(high / qmax, low / qmin) if symmetric else (high - low) / (qmax - qmin)
    scale = torch.where(width == 0, 1.0, width).clamp(min=smallest).to(torch.float32)
    if symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    offset = torch.round(low / scale.to(torch.float64)).clamp(min=qmin - qmax)
    return scale, (qmin - offset).to(torch.int32)


# What depends on the numbers of `x` stays one node in a graph of `torch.fx.symbolic_trace`.
torch.fx.wrap("_find_token_grids")


def _split_granularity(granularity: Granularity) -> tuple[int, int]:
    """Return axis and group size as non-negative integers; 0 where there is none.

    The axis, which may be negative, is counted from -8.
    """
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
        case _:
            raise layout.make_error("unit", "PerTensor, PerToken, PerChannel or PerGroup")
