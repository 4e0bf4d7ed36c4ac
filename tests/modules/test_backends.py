"""Which back end computes a layer is a choice that changes no buffer and can be taken back."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from references import same_bits
from tico.quantization import PTQConfig, convert, prepare
from tico.quantization.config import affine
from tico_config import ConfigError, DType, UnsupportedError
from tico_modules._kernels import native_operators as operators
from tico_modules._kernels.native_kernels import RowScaledProduct
from tico_observers import AffineParams
from tico_quantizers import (
    ActivationGrid,
    PackedWeight,
    Parts,
    QuantizedConv1d,
    QuantizedEmbedding,
    QuantizedLinear,
    set_backend,
)
from tico_quantizers.testing import refused, same_tensors, tensors_of
from tiny_models import values

UINT4, UINT8 = DType.uint(4), DType.uint(8)


def linear(
    dtype: DType = UINT8, *, grid: DType | None = UINT8, group_size: int | None = None
) -> QuantizedLinear:
    """Return an integer layer of 64 inputs and 32 outputs, its activations on a static grid or on none."""
    float_layer = nn.Linear(64, 32)
    with torch.no_grad():
        float_layer.weight.copy_(values(1, 32, 64))
        float_layer.bias.copy_(values(2, 32))
    layer = QuantizedLinear.from_float(float_layer, dtype, group_size=group_size)
    if grid is None:
        return layer
    params = AffineParams(scale=torch.tensor(0.04), zero_point=torch.tensor(grid.qmin + 9), dtype=grid)
    return layer.with_parts(Parts(packed=layer.packed, bias=layer.bias, act_in=ActivationGrid.static(params)))


def x(tokens: int = 5) -> Tensor:
    """Return activations of some tokens."""
    return values(3, tokens, 64)


def native(layer: QuantizedLinear) -> QuantizedLinear:
    """Return `layer` with the native back end."""
    set_backend(layer, "native")
    return layer


def is_native(layer: nn.Module, inputs: Tensor) -> bool:
    """Tell whether a call with `inputs` differs from the reference, which rounds its sums differently."""
    assert isinstance(layer, QuantizedLinear)
    reference = layer.with_parts(layer.parts)
    return not same_bits(layer(inputs), reference(inputs))


MANY = "bfloat16 product" if operators.product_dtype() == torch.bfloat16 else "float32 product"
LAYERS: list[tuple[Callable[[], QuantizedLinear], str]] = [
    (linear, "8-bit integer product"),
    (lambda: linear(UINT4), "8-bit integer product"),
    (lambda: linear(grid=None), f"int8 codes up to 12 tokens, {MANY}"),
    (lambda: linear(UINT4, grid=None, group_size=32), f"int4 codes up to 40 tokens, {MANY}"),
    (lambda: linear(DType.int(3), grid=None), f"int4 codes up to 40 tokens, {MANY}"),
    (lambda: linear(UINT4, grid=DType.int(16)), f"int4 codes up to 40 tokens, {MANY}"),
    (lambda: linear(UINT4, grid=None, group_size=9), MANY),
    (lambda: linear(UINT8, group_size=32), MANY),
    (lambda: linear(DType.uint(12)), "reference: codes of 12 bits have no kernel"),
]
every_layer = pytest.mark.parametrize(
    ("make", "name"), LAYERS, ids=[f"{i} {name}" for i, (_, name) in enumerate(LAYERS)]
)


@every_layer
def test_it_says_what_computes_each_layer(make: Callable[[], QuantizedLinear], name: str) -> None:
    """By path; and what it says is what happens."""
    model = nn.Sequential(make(), nn.ReLU())
    assert set_backend(model, "native") == {"0": name}
    assert is_native(model[0], x()) == (not name.startswith("reference"))
    assert set_backend(model, "reference") == {"0": "reference"}
    assert not is_native(model[0], x())


@every_layer
def test_nothing_that_is_saved_changes(make: Callable[[], QuantizedLinear], name: str) -> None:
    """State dict, buffers, layout and weight are the same bytes before, during and after."""
    layer = make()
    before, layout, outputs = tensors_of(copy.deepcopy(layer)), layer.layout(), layer(x())
    for backend in ("native", "auto", "reference"):
        set_backend(layer, backend)
        layer(x())
        assert same_tensors(tensors_of(layer), before)
        assert layer.layout() == layout
    assert same_bits(layer(x()), outputs)


def test_auto_rounds_no_more_coarsely_than_its_input() -> None:
    """Integer sums always; other products only for bfloat16 activations."""
    model = nn.Sequential(linear(), linear(UINT4, grid=None))
    assert set_backend(model, "auto") == {
        "0": "8-bit integer product",
        "1": f"int4 codes up to 40 tokens, {MANY}, for bfloat16 activations",
    }
    assert is_native(model[0], x())
    assert not is_native(model[1], x())
    assert is_native(model[1], x(50).to(torch.bfloat16))


def test_other_modules_stay_with_the_reference() -> None:
    """Embeddings and convolutions are named, with the reason."""
    conv = QuantizedConv1d.from_float(nn.Conv1d(2, 2, 1), UINT8)
    model = nn.ModuleDict({"conv": conv, "fc": linear()})
    reason = "reference: only linear layers have kernels"
    assert set_backend(model, "native") == {"conv": reason, "fc": "8-bit integer product"}


def test_a_head_that_is_tied_to_an_embedding_runs_natively() -> None:
    """Both read one packed weight, before and after; the rows that are looked up do not change."""
    packed = PackedWeight.round_to_nearest(values(4, 48, 64), UINT8, symmetric=False, group_size=None)
    table, head = QuantizedEmbedding(Parts(packed=packed)), QuantizedLinear(Parts(packed=packed))
    model = nn.ModuleDict({"table": table, "head": head})
    rows = table(torch.arange(48))
    set_backend(model, "native")
    assert head.packed is table.packed
    assert same_bits(table(torch.arange(48)), rows)
    assert is_native(head, x())


def test_codes_of_int8_are_read_where_they_are() -> None:
    """The kernel for few tokens has no copy of them, so that an 8-bit head costs no memory twice."""
    layer = native(linear(DType.int(8), grid=None))
    assert layer._native is not None
    kernel = layer._native.kernel
    assert isinstance(kernel, RowScaledProduct)
    assert kernel.codes.data_ptr() == layer.packed.codes.data_ptr()


@pytest.mark.parametrize(
    "inputs",
    [
        x().double(),
        x().half(),
        x().requires_grad_(),
        x()[:0],
        torch.cat([x(), torch.full((1, 64), torch.nan)]),
    ],
    ids=["float64", "float16", "gradient", "no tokens", "NaN"],
)
@pytest.mark.parametrize("per_token", [False, True])
def test_calls_that_no_kernel_takes_go_to_the_reference(inputs: Tensor, per_token: bool) -> None:
    """Bit for bit, gradients and NaN included."""
    layer = native(linear())
    if per_token:
        grid = ActivationGrid.per_token(DType.int(8), symmetric=True)
        layer = native(layer.with_parts(Parts(packed=layer.packed, bias=layer.bias, act_in=grid)))
    expected, output = layer.with_parts(layer.parts)(inputs), layer(inputs)
    assert output.dtype == expected.dtype
    assert torch.equal(output.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert output.requires_grad == inputs.requires_grad


def test_infinity_saturates() -> None:
    """As it does on the reference's grid."""
    inputs = x()
    inputs[0, 0], inputs[1, 1] = torch.inf, -torch.inf
    assert bool(native(linear())(inputs).isfinite().all())
    assert torch.allclose(native(linear())(inputs), linear()(inputs), rtol=1e-5, atol=1e-4)


def test_any_leading_axes_and_strides_are_taken() -> None:
    """As a linear layer takes them: none, several, and not side by side in memory."""
    layer = native(linear())
    wide = values(5, 2, 64, 3).transpose(1, 2)
    assert same_bits(layer(wide), layer(wide.contiguous()))
    assert same_bits(layer(wide)[1, 2], layer(wide[1, 2]))


def test_the_output_grid_is_the_reference_s() -> None:
    """What a kernel gives is moved to `act_out`'s grid."""
    layer = linear()
    grid = ActivationGrid.per_token(DType.int(8), symmetric=True)
    both = layer.with_parts(parts_with(layer, grid))
    assert same_bits(native(both)(x()), grid(native(layer)(x())))


def parts_with(layer: QuantizedLinear, act_out: ActivationGrid) -> Parts:
    """Return the parts of `layer` with an output grid."""
    return Parts(packed=layer.packed, bias=layer.bias, act_in=layer.act_in, act_out=act_out)


@every_layer
def test_tracing_sees_the_reference(make: Callable[[], QuantizedLinear], name: str) -> None:
    """Compilation in one graph, and export, whatever the back end."""
    layer = make().eval()
    expected = layer(x())
    native(layer)(x())
    torch.compiler.reset()
    assert same_bits(torch.compile(layer, backend="eager", fullgraph=True)(x()), expected)
    assert same_bits(torch.export.export(layer, (x(),)).module()(x()), expected)


def test_copies_keep_the_back_end_and_make_their_own_kernel() -> None:
    """Deep copies and pickles hold the buffers only, and compute the same bits."""
    layer = native(linear())
    pickled = pickle.dumps(layer)
    assert len(pickled) < 3 * layer.packed.bytes
    for other in (copy.deepcopy(layer), pickle.loads(pickled)):  # noqa: S301  # our own bytes
        assert other.backend == "native"
        assert same_bits(other(x()), layer(x()))
        other.packed.scale.mul_(2.0)
        assert not same_bits(other(x()), layer(x()))


def test_other_parts_start_with_the_reference() -> None:
    """A layer that an algorithm makes of this one is not native by surprise."""
    assert native(linear()).with_parts(linear().parts).backend == "reference"


@pytest.mark.parametrize("assign", [False, True])
def test_a_kernel_follows_its_buffers(assign: bool) -> None:
    """Loading a state dict, in place or by assignment, makes it anew."""
    layer, other = native(linear()), linear(UINT8)
    other.packed.codes.bitwise_xor_(3)
    layer(x())
    layer.load_state_dict(other.state_dict(), assign=assign)
    assert same_bits(layer(x()), native(other)(x()))


def test_a_cast_model_computes_in_its_format() -> None:
    """The bias is cast, the grids are not."""
    layer = native(linear()).to(torch.bfloat16)
    output = layer(x().to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    # One rounding of the output and one of the bias, which is below 4, to 8 bits.
    difference = (output.float() - native(linear())(x().to(torch.bfloat16).float())).abs()
    assert bool((difference <= 2.0**-8 * output.float().abs() + 2.0**-7).all())


def test_kernels_work_in_inference_mode() -> None:
    """Whose tensors do not count how often they are written to."""
    with torch.inference_mode():
        layer = native(linear())
        assert same_bits(layer(x()), native(linear())(x()))


def test_a_replica_computes_the_same() -> None:
    """What data parallelism does to modules leaves the kernel in place."""
    layer = native(linear())
    expected = layer(x())
    replica: QuantizedLinear = layer._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
    assert same_bits(replica(x()), expected)


def test_a_converted_model_can_be_native() -> None:
    """From prepare to a native model, and back to the same bits."""
    model = prepare(
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)).eval(),
        PTQConfig(activation=affine(UINT8)),
    )
    model(x(64))
    model = convert(model)
    before = model(x())
    assert set(set_backend(model, "native").values()) == {"8-bit integer product"}
    assert model(x()).isfinite().all()
    set_backend(model, "reference")
    assert same_bits(model(x()), before)


def test_a_back_end_that_does_not_exist_is_refused() -> None:
    """The error names those that do."""
    layer = native(linear())
    with refused(layer, ConfigError, field="backend"):
        set_backend(layer, "cuda")  # type: ignore[arg-type]
    assert layer.backend == "native"


def test_a_model_without_integers_is_refused() -> None:
    """There is nothing to choose for."""
    model = nn.Sequential(nn.Linear(2, 2))
    with refused(model, UnsupportedError, field="model"):
        set_backend(model, "native")


@pytest.fixture
def _untested() -> Iterator[None]:
    """Let every operator be tested anew, before and after."""
    tests = (
        operators.int8_works,
        operators.by_int8_works,
        operators.by_int4_works,
        operators.rowwise_works,
    )
    for each in tests:
        each.cache_clear()
    yield
    for each in tests:
        each.cache_clear()


@pytest.mark.usefixtures("_untested")
@pytest.mark.parametrize(
    ("operator", "make"),
    [
        ("sum_int8_products", linear),
        ("multiply_by_int8", lambda: linear(grid=None)),
        ("multiply_by_int4", lambda: linear(UINT4, grid=None)),
        ("unpack_rowwise", lambda: linear(UINT4, grid=None, group_size=4)),
    ],
)
@pytest.mark.parametrize("fault", ["wrong", "missing"])
def test_an_operator_that_fails_its_test_is_not_used(
    operator: str, make: Callable[[], QuantizedLinear], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning, and the next best kernel computes; no layer is left without."""

    def broken(*args: Tensor) -> Tensor:
        if fault == "missing":
            msg = "there is no such operator"
            raise AttributeError(msg)
        return torch.zeros(len(args[0]), 16)

    monkeypatch.setattr(operators, operator, broken)
    with pytest.warns(RuntimeWarning, match="is not used"):
        (name,) = set_backend(make(), "native").values()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = native(make())
    assert name == MANY or operator == "sum_int8_products"
    assert "integer" not in name
    assert is_native(layer, x())


def test_a_native_model_is_saved_as_ever() -> None:
    """`torch.save` of its state dict holds the same tensors, loaded without pickle."""
    layer, file = native(linear()), io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    again = linear()
    again.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert same_bits(native(again)(x()), layer(x()))
