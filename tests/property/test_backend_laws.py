"""Native kernels compute what the reference does, within the bounds that their module derives."""

from __future__ import annotations

from unittest import mock

import attrs
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from references import same_bits
from tico_config import DType
from tico_modules._kernels import native_operators as operators
from tico_modules._kernels.native_kernels import INT4_TOKENS
from tico_observers import AffineParams, params_per_token
from tico_quantizers import ActivationGrid, PackedWeight, Parts, QuantizedLinear, set_backend

U, V = 2.0**-24, 2.0**-8


@attrs.frozen(kw_only=True)
class Case:
    """A linear layer with random codes, and what it is called with."""

    rows: int
    columns: int
    tokens: int
    dtype: DType
    groups: str  # "row", "run" or "index"
    size: int
    centred: bool
    grid: str  # "none", "static" or "token"
    grid_dtype: DType
    bias: bool
    bfloat: bool
    instructions: bool  # whether the processor is taken to have instructions for bfloat16
    seed: int

    @property
    def rounds_to_bfloat(self) -> bool:
        """Whether a kernel for float activations multiplies in bfloat16."""
        return self.instructions or self.tokens <= INT4_TOKENS

    def layer(self) -> QuantizedLinear:
        """Return the layer."""
        random = torch.Generator().manual_seed(self.seed)
        groups = 1 if self.groups == "row" else -(-self.columns // self.size)
        low, high = self.dtype.qmin, self.dtype.qmax + 1
        zero_point = torch.full((self.rows, groups), (low + high) // 2)
        if not self.centred:
            zero_point = torch.randint(low, high, (self.rows, groups), generator=random)
        index = torch.randint(0, groups, (self.columns,), generator=random)
        packed = PackedWeight.from_codes(
            torch.randint(low, high, (self.rows, self.columns), generator=random),
            torch.rand((self.rows, groups), generator=random) + 0.1,
            zero_point,
            dtype=self.dtype,
            shape=(self.rows, self.columns),
            group_size=None if self.groups == "row" else self.size,
            group_index=index if self.groups == "index" else None,
        )
        bias = torch.randn(self.rows, generator=random) if self.bias else None
        return QuantizedLinear(Parts(packed=packed, bias=bias, act_in=self._grid(random)))

    def _grid(self, random: torch.Generator) -> ActivationGrid | None:
        if self.grid == "none":
            return None
        dtype = self.grid_dtype
        if self.grid == "token":
            return ActivationGrid.per_token(dtype, symmetric=dtype.signed)
        zero_point = torch.randint(dtype.qmin, dtype.qmax + 1, (), generator=random)
        return ActivationGrid.static(
            AffineParams(scale=torch.tensor(0.03), zero_point=zero_point, dtype=dtype)
        )

    def x(self) -> Tensor:
        """Return activations, some beyond the range of a static grid."""
        random = torch.Generator().manual_seed(self.seed + 1)
        x = torch.randn((self.tokens, self.columns), generator=random) * 3
        return x.to(torch.bfloat16) if self.bfloat else x


def bound(case: Case, layer: QuantizedLinear, x: Tensor) -> Tensor:
    """Return how far `tico_modules._kernels.native_kernels` says that native is from the reference."""
    packed = layer.packed
    integers = case.grid != "none" and case.groups == "row"
    rounding = 4 * V if case.rounds_to_bfloat else 4 * U
    factor = (0 if integers else rounding) + (4 * V if case.bfloat else 0) + (case.columns + 16) * U
    size, weight, bias = magnitudes(layer, x)
    rounded = factor * (size @ weight.T + bias)
    if case.groups == "run":
        step = packed.spread_groups(packed.scale.double()).expand_as(weight) * 2**packed.bits
        rounded = rounded + (U if packed.bits > 4 else V / 8) * (size @ step.T)
    # Second-order terms of the roundings are below 2⁻⁶ of the first-order ones.
    return rounded * (1 + 2.0**-6)


def magnitudes(layer: QuantizedLinear, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``|x|``, ``|W|`` and ``|bias|`` of `tico_modules._kernels.native_kernels`, in float64."""
    packed, grid = layer.packed, layer.act_in
    middle = packed.dtype.qmin + 2 ** (packed.bits - 1)
    offset = packed.spread_groups((packed.zero_point - middle).abs().double())
    scale = packed.spread_groups(packed.scale.double())
    weight = ((packed.integer_codes() - middle).abs() + offset) * scale
    size = x.double().abs() if grid is None else grid(x).double().abs()
    if grid is not None and not grid.scale.numel():
        token = params_per_token(x, grid.dtype, symmetric=grid.symmetric)
        middle_code = grid.dtype.qmin + 2 ** (grid.dtype.bits - 1)
        reach = (token.zero_point - middle_code).abs() * token.scale.double()
        # |code - m| + |m - zero_point| <= |code - zero_point| + 2 |m - zero_point|
        size = size + 2 * reach.unsqueeze(-1)
    bias = torch.zeros(()) if layer.bias is None else layer.bias.double().abs()
    return size, weight, bias


def outputs(case: Case, layer: QuantizedLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the reference and the native kernel give."""
    reference: Tensor = layer(x)
    product = torch.bfloat16 if case.instructions else torch.float32
    with mock.patch.object(operators, "product_dtype", return_value=product):
        set_backend(layer, "native")
        native: Tensor = layer(x)
        set_backend(layer, "reference")
    assert same_bits(layer(x), reference)
    return reference, native


dtypes = st.builds(DType, st.integers(2, 8), st.booleans())
cases = st.builds(
    Case,
    rows=st.one_of(st.integers(1, 40), st.sampled_from([16, 32, 64])),
    columns=st.one_of(st.integers(1, 80), st.sampled_from([32, 64, 128, 256])),
    tokens=st.integers(1, 60),
    dtype=dtypes,
    groups=st.sampled_from(["row", "row", "run", "index"]),
    size=st.one_of(st.integers(1, 40), st.sampled_from([32, 64, 128])),
    centred=st.booleans(),
    grid=st.sampled_from(["none", "none", "static", "token"]),
    grid_dtype=dtypes,
    bias=st.booleans(),
    bfloat=st.booleans(),
    instructions=st.booleans(),
    seed=st.integers(0, 2**20),
)
W8A8 = Case(
    rows=33,
    columns=65,
    tokens=60,
    dtype=DType.uint(8),
    groups="row",
    size=1,
    centred=False,
    grid="static",
    grid_dtype=DType.uint(8),
    bias=True,
    bfloat=False,
    instructions=True,
    seed=0,
)
W4 = attrs.evolve(W8A8, rows=32, columns=256, dtype=DType.uint(4), groups="run", size=64, grid="none")


@given(cases)
@example(W8A8)
@example(attrs.evolve(W8A8, grid="token"))
@example(attrs.evolve(W8A8, grid="token", grid_dtype=DType.int(8), bfloat=True))
@example(attrs.evolve(W8A8, grid="none", columns=64))
@example(attrs.evolve(W8A8, grid="none", columns=64, tokens=3))
@example(attrs.evolve(W8A8, grid="none", columns=17, tokens=3))
@example(W4)
@example(attrs.evolve(W4, tokens=3))
@example(attrs.evolve(W4, tokens=3, dtype=DType.int(3), bfloat=True))
@example(attrs.evolve(W4, groups="index"))
@example(attrs.evolve(W4, dtype=DType.uint(2), size=8))
@example(attrs.evolve(W4, dtype=DType.int(8), size=3, columns=27))
@example(attrs.evolve(W4, tokens=300, rows=5, columns=40, size=8))
@example(attrs.evolve(W4, tokens=300, instructions=False))
@example(attrs.evolve(W4, tokens=60, instructions=False, groups="index"))
@example(attrs.evolve(W8A8, grid="none", columns=64, instructions=False))
def test_native_is_the_reference_within_its_bound(case: Case) -> None:
    """|native - reference| is at most the bound of the kernel, for every shape, grid and format."""
    layer, x = case.layer(), case.x()
    reference, native = outputs(case, layer, x)
    assert native.dtype == reference.dtype
    assert native.shape == reference.shape
    assert bool(((native.double() - reference.double()).abs() <= bound(case, layer, x)).all())


@given(cases, st.sampled_from([2.0**-30, 2.0**30]))
@example(attrs.evolve(W4, size=8), 2.0**-30)
@example(attrs.evolve(W4, size=8), 2.0**30)
def test_scales_that_float16_has_not_are_as_good_as_others(case: Case, factor: float) -> None:
    """The operator for four-bit codes holds scales in float16; such scales go another way."""
    case = attrs.evolve(case, bias=False)
    layer, x = case.layer(), case.x()
    layer.packed.scale.mul_(factor)
    reference, native = outputs(case, layer, x)
    assert bool(((native.double() - reference.double()).abs() <= bound(case, layer, x)).all())


@given(cases)
def test_integer_sums_are_exact(case: Case) -> None:
    """With scales that are powers of two, and codes whose sums float32 holds, not one bit differs."""
    layer = attrs.evolve(case, grid="static", groups="row", bias=False, bfloat=False).layer()
    layer.packed.scale.fill_(0.25)
    assert layer.act_in is not None
    layer.act_in.scale.fill_(2.0**-5)
    reference, native = outputs(case, layer, attrs.evolve(case, bfloat=False).x())
    assert torch.equal(native, reference)


@given(cases, st.integers(1, 9), st.sampled_from(["static", "token"]))
def test_integer_products_of_a_token_do_not_depend_on_the_others(case: Case, size: int, grid: str) -> None:
    """However the tokens are split into batches, every bit is the same."""
    case = attrs.evolve(case, grid=grid, groups="row")
    layer, x = case.layer(), case.x()
    set_backend(layer, "native")
    parts = [layer(x[start : start + size]) for start in range(0, len(x), size)]
    assert same_bits(torch.cat(parts), layer(x))
