"""Integer modules compute what the float layer computes with the weight they hold."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from references import same_bits
from tico_config import ArtifactError, DType
from tico_observers import params_per_token
from tico_quantizers import (
    ActivationGrid,
    ConvSettings,
    ConvTransposeSettings,
    Layout,
    PackedWeight,
    Parts,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedModule,
    carry_over,
)
from tiny_models import values

UINT4 = DType.uint(4)
TRANSPOSED = (QuantizedConvTranspose1d, QuantizedConvTranspose2d, QuantizedConvTranspose3d)


def whole(seed: int, *shape: int) -> Tensor:
    """Return small integers: sums of their products are exact in float32 in whatever order."""
    return torch.randint(-7, 8, shape, generator=torch.Generator().manual_seed(seed)).to(torch.float32)


def on_grid(module: nn.Module) -> None:
    """Give a layer integers from -7 to 8, so that four bits with scale 1 hold its weight.

    The ends stand in every row, for a transposed convolution in every column of each output channel.
    """
    assert isinstance(module.weight, Tensor)
    weight = whole(1, *module.weight.shape)
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        weight[..., 0], weight[..., 1] = -7.0, 8.0
    else:
        weight.flatten(1)[:, 0], weight.flatten(1)[:, 1] = -7.0, 8.0
    with torch.no_grad():
        module.weight.copy_(weight)
        if isinstance(module.bias, Tensor):
            module.bias.copy_(whole(2, *module.bias.shape))


def linear(dtype: torch.dtype = torch.float32, *, grids: bool = False) -> QuantizedLinear:
    """Return an integer linear layer of 12 inputs and 5 outputs, in groups of 4."""
    layer = QuantizedLinear.from_float(_float_linear(dtype), UINT4, group_size=4)
    per_token = ActivationGrid.per_token(DType.int(8), symmetric=True)
    parts = Parts(packed=layer.packed, bias=layer.bias, act_in=per_token, act_out=copy.deepcopy(per_token))
    return layer.with_parts(parts) if grids else layer


def _float_linear(dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(12, 5)
    with torch.no_grad():
        layer.weight.copy_(values(3, 5, 12))
        layer.bias.copy_(values(4, 5))
    return layer.to(dtype)


def embedding() -> QuantizedEmbedding:
    """Return an integer table of 6 rows."""
    packed = PackedWeight.round_to_nearest(values(5, 6, 4), UINT4, symmetric=False, group_size=None)
    return QuantizedEmbedding(Parts(packed=packed))


MAKERS: list[tuple[Callable[[], QuantizedModule], Tensor]] = [
    (linear, values(6, 2, 3, 12)),
    (lambda: linear(grids=True), values(6, 2, 3, 12)),
    (embedding, torch.tensor([[0, 5], [2, 2]])),
    (lambda: QuantizedConv1d.from_float(nn.Conv1d(3, 4, 3, padding=1), UINT4), values(7, 2, 3, 9)),
    (lambda: QuantizedConv2d.from_float(nn.Conv2d(2, 4, 3, stride=2), UINT4), values(8, 2, 2, 7, 7)),
    (lambda: QuantizedConv3d.from_float(nn.Conv3d(2, 2, 2), UINT4), values(9, 1, 2, 3, 3, 3)),
    (
        lambda: QuantizedConvTranspose2d.from_float(
            nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), UINT4, group_size=6
        ),
        values(9, 2, 4, 3, 3),
    ),
]
every_module = pytest.mark.parametrize(
    ("make", "x"),
    MAKERS,
    ids=["linear", "linear with grids", "embedding", "conv1d", "conv2d", "conv3d", "conv_transpose2d"],
)


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_multiplies_by_its_weight(bias: bool) -> None:
    """With a weight that four bits hold exactly, it is the float layer."""
    layer = nn.Linear(12, 5, bias=bias)
    on_grid(layer)
    quantized = QuantizedLinear.from_float(layer, UINT4)
    assert torch.equal(quantized.dequantize(), layer.weight)
    assert torch.equal(quantized(whole(3, 4, 12)), layer(whole(3, 4, 12)))
    assert (quantized.in_features, quantized.out_features, quantized.bits) == (12, 5, 4)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"dilation": 2}, {"groups": 2}])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_convolution_is_the_float_one(axes: int, settings: dict[str, int], mode: str) -> None:
    """Padding of every mode, stride, dilation and groups are those of the float layer, bit for bit."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    layer = kind(4, 6, 3, padding=2, padding_mode=mode, **settings)  # type: ignore[arg-type]
    on_grid(layer)
    quantized = (QuantizedConv1d, QuantizedConv2d, QuantizedConv3d)[axes - 1].from_float(layer, UINT4)
    x = whole(4, 2, 4, *[7, 6, 5][:axes])
    assert torch.equal(quantized(x), layer(x))
    assert torch.equal(quantized(x[0]), layer(x[0]))


@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 2, "output_padding": 1}, {"dilation": 2, "padding": 1}, {"groups": 2, "stride": 3}],
)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_transposed_convolution_is_the_float_one(axes: int, settings: dict[str, int]) -> None:
    """Padding on both sides, stride, dilation and groups are those of the float layer, bit for bit."""
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
    layer = kind(4, 6, 3, **settings)  # type: ignore[arg-type]
    on_grid(layer)
    quantized = TRANSPOSED[axes - 1].from_float(layer, UINT4)
    assert torch.equal(quantized.dequantize(), layer.weight)
    x = whole(4, 2, 4, *[5, 4, 3][:axes])
    assert torch.equal(quantized(x), layer(x))
    assert torch.equal(quantized(x[0]), layer(x[0]))


def test_a_transposed_convolution_gives_the_size_asked_for() -> None:
    """With a stride several sizes are possible; the call may choose, as it may for the float layer."""
    layer = nn.ConvTranspose2d(4, 2, 3, stride=3)
    on_grid(layer)
    quantized, x = QuantizedConvTranspose2d.from_float(layer, UINT4), whole(4, 1, 4, 5, 4)
    for size in ([15, 12], [17, 14]):
        assert torch.equal(quantized(x, output_size=size), layer(x, output_size=size))
    with pytest.raises(RuntimeError):
        quantized(x, output_size=[18, 14])


@pytest.mark.parametrize("groups", [1, 2])
def test_an_output_channel_of_a_transposed_convolution_has_its_own_grid(groups: int) -> None:
    """A row of codes makes one output channel: scaling a channel of the weight scales its scale alone."""
    layer = nn.ConvTranspose1d(4, 6, 3, groups=groups)
    before = QuantizedConvTranspose1d.from_float(layer, UINT4).packed
    with torch.no_grad():
        layer.weight[: 4 // groups, 1] *= 4.0
    after = QuantizedConvTranspose1d.from_float(layer, UINT4).packed
    factors = torch.ones(6, 1)
    factors[1] = 4.0
    assert torch.equal(after.scale, before.scale * factors)
    assert torch.equal(after.codes, before.codes)


def test_groups_of_a_grouped_convolution_stay_inside_an_output_channel() -> None:
    """Groups of columns divide the inputs that one channel reads, and no others."""
    layer = nn.Conv2d(8, 6, 2, groups=2)
    packed = QuantizedConv2d.from_float(layer, UINT4, group_size=4).packed
    assert packed.scale.shape == (6, 4)
    assert packed.shape == (6, 4, 2, 2)
    each = PackedWeight.round_to_nearest(
        layer.weight.detach().reshape(24, 4), UINT4, symmetric=False, group_size=None
    )
    assert torch.equal(packed.dequantize(), each.dequantize().view(6, 4, 2, 2))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name_is_spelled_out(padding: str) -> None:
    """``same`` and ``valid`` are numbers by the time that a file is written."""
    layer = nn.Conv2d(2, 3, (3, 5), dilation=(2, 1), padding=padding)
    on_grid(layer)
    x = whole(5, 1, 2, 6, 7)
    assert torch.equal(QuantizedConv2d.from_float(layer, UINT4)(x), layer(x))


def test_an_embedding_looks_up_rows() -> None:
    """The rows are those of the dequantized table."""
    table, index = embedding(), torch.tensor([[5, 0], [3, 3]])
    assert same_bits(table(index), table.dequantize()[index])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_embedding_gives_the_format_of_the_model(dtype: torch.dtype) -> None:
    """It is made for a format, and follows when the model is cast."""
    table = QuantizedEmbedding(embedding().parts, dtype)
    index = torch.tensor([1, 2])
    assert same_bits(table(index), table.dequantize()[index].to(dtype))
    assert table.with_parts(table.parts)(index).dtype == dtype
    assert table.to(torch.float64)(index).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_layer_computes_in_the_format_of_its_input(dtype: torch.dtype) -> None:
    """The grid stays float32 and the weight is cast once it is computed."""
    layer = linear(dtype)
    x = values(10, 3, 12).to(dtype)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    assert same_bits(layer(x), F.linear(x, layer.dequantize().to(dtype), bias))
    before = layer.dequantize()
    assert same_bits(layer.to(torch.bfloat16).dequantize(), before)


def test_activations_are_moved_to_their_grids() -> None:
    """The input first, then the output."""
    layer, x = linear(grids=True), values(11, 3, 12)
    moved = _moved(x)
    assert same_bits(layer(x), _moved(F.linear(moved, layer.dequantize(), layer.bias)))


def _moved(x: Tensor) -> Tensor:
    params = params_per_token(x, DType.int(8), symmetric=True)
    steps = (x / params.scale.unsqueeze(-1)).round().clamp(-128, 127)
    return steps * params.scale.unsqueeze(-1) + 0.0


@every_module
def test_copies_and_files_keep_every_bit(make: Callable[[], QuantizedModule], x: Tensor) -> None:
    """Deep copies, pickles and state dicts loaded without pickle give the same outputs."""
    module = make()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(module)
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    pickled = pickle.loads(pickle.dumps(module))  # noqa: S301  # our own bytes
    for each in (copy.deepcopy(module), pickled, other):
        assert same_bits(each(x), module(x))


@every_module
def test_a_module_is_made_real_from_the_meta_device(make: Callable[[], QuantizedModule], x: Tensor) -> None:
    """Without data it keeps its shapes; a state dict that is assigned gives it the tensors themselves."""
    module, names = make(), dict(make().named_buffers())
    expected = module(x)
    empty = copy.deepcopy(module).to("meta")
    assert all(buffer.is_meta for buffer in empty.buffers())
    empty.load_state_dict(module.state_dict(), strict=True, assign=True)
    assert all(empty.state_dict()[name].data_ptr() == module.state_dict()[name].data_ptr() for name in names)
    assert same_bits(empty(x), expected)


@every_module
def test_safetensors_hold_a_module(make: Callable[[], QuantizedModule], x: Tensor, tmp_path: Path) -> None:
    """Its state dict is tensors by name and no more."""
    from safetensors.torch import load_file, save_file

    module, other = make(), make()
    save_file(module.state_dict(), tmp_path / "state.safetensors")
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(load_file(tmp_path / "state.safetensors"), strict=True)
    assert same_bits(other(x), module(x))


@every_module
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_module_keeps_its_grids(
    make: Callable[[], QuantizedModule], x: Tensor, dtype: torch.dtype
) -> None:
    """Codes, scales and zero points are the same bytes; inputs and outputs have the new format."""
    module = make()
    cast = copy.deepcopy(module).to(dtype)
    state, kept = module.state_dict(), cast.state_dict()
    assert all(same_bits(kept[name], state[name]) for name in state if name not in ("bias", "packed.like"))
    moved = x.to(dtype) if x.is_floating_point() else x
    assert cast(moved).dtype == dtype


@every_module
def test_it_says_what_it_is_made_of(make: Callable[[], QuantizedModule], x: Tensor) -> None:
    """Format, granularity and bytes are in the line of the module itself."""
    module = make()
    text = module.extra_repr()
    assert f"uint{module.bits}" in text
    assert ("per row" if module.group_size is None else f"group {module.group_size}") in text
    assert f"{module.packed.bytes} bytes" in text


@pytest.mark.parametrize("version", [1, 3])
def test_a_state_dict_of_another_layout_is_refused(version: int) -> None:
    """State dicts carry the version of the layout; what this library can't read it doesn't read."""
    layer = linear()
    state = layer.state_dict()
    assert state._metadata["packed"] == {"version": 2}  # type: ignore[attr-defined]
    state._metadata["packed"]["version"] = version  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=f"version {version}"):
        layer.load_state_dict(state)


@pytest.mark.parametrize("missing", ["packed.scale", "bias"])
def test_a_state_dict_fits_strictly(missing: str) -> None:
    """One tensor less, or one of another shape, is an error."""
    layer = linear()
    state = layer.state_dict()
    taken = state.pop(missing)
    with pytest.raises(RuntimeError, match=missing):
        layer.load_state_dict(state)
    with pytest.raises(RuntimeError, match=missing):
        layer.load_state_dict(state | {missing: taken[:1]})


def test_a_tied_embedding_and_head_stay_one() -> None:
    """One packed weight serves both: after copying, casting and loading too."""
    table = embedding()
    tied = nn.ModuleDict({"table": table, "head": QuantizedLinear(Parts(packed=table.packed))})
    for other in (copy.deepcopy(tied), copy.deepcopy(tied).to(torch.bfloat16)):
        other.load_state_dict(tied.state_dict(), strict=True)
        head, rows = other["head"], other["table"]
        assert isinstance(head, QuantizedLinear)
        assert head.packed is rows.packed
        assert same_bits(head.dequantize(), table.dequantize())


def test_a_replica_computes_the_same() -> None:
    """What data parallelism copies is enough."""
    layer = linear(grids=True)
    replica: QuantizedLinear = layer._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
    assert same_bits(replica(values(6, 2, 12)), layer(values(6, 2, 12)))


@every_module
def test_modules_are_traced_whole(make: Callable[[], QuantizedModule], x: Tensor) -> None:
    """Export and compilation see no branch on values, and change no bit."""
    module = make().eval()
    exported = torch.export.export(module, (x,)).module()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert same_bits(exported(x), module(x))
    assert same_bits(compiled(x), module(x))


def test_export_keeps_a_dynamic_batch() -> None:
    """A model exported with any batch size runs with any."""
    layer = linear(grids=True)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(layer, (values(12, 4, 12),), dynamic_shapes=({0: batch},)).module()
    assert same_bits(exported(values(13, 7, 12)), layer(values(13, 7, 12)))


@every_module
def test_a_layout_makes_the_module_again(make: Callable[[], QuantizedModule], x: Tensor) -> None:
    """What a file keeps is enough, besides a float module of the same shape."""
    module = make()
    original = nn.Module()
    original.weight = nn.Parameter(module.dequantize())
    again = type(module).restore(original, Layout("m", module.layout()), dict(module.named_buffers()))
    assert same_bits(again(x), module(x))
    assert again.layout() == module.layout()


def test_a_module_of_another_shape_is_not_replaced() -> None:
    """A file of another architecture fits by names at most."""
    layer = linear()
    with pytest.raises(ArtifactError) as caught:
        QuantizedLinear.restore(nn.Linear(12, 6), Layout("m", layer.layout()), dict(layer.named_buffers()))
    assert (caught.value.module, caught.value.field) == ("m", "weight")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stride", [0, 1]),
        ("stride", []),
        ("dilation", [1]),
        ("groups", 0),
        ("pads", [1, 1]),
        ("pad_mode", "mirror"),
    ],
)
def test_settings_that_no_convolution_has_are_refused(field: str, value: object) -> None:
    """They would fail in the first forward pass otherwise."""
    settings = {"stride": [1, 1], "dilation": [1, 1], "groups": 1, "pads": [0] * 4, "pad_mode": "constant"}
    with pytest.raises(ArtifactError) as caught:
        ConvSettings.read(Layout("m.settings", settings | {field: value}))
    assert (caught.value.module, caught.value.field) == ("m.settings", field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stride", [0, 1]),
        ("stride", [1] * 4),
        ("padding", [1]),
        ("padding", [-1, 0]),
        ("output_padding", []),
        ("dilation", [1, 0]),
        ("groups", 0),
    ],
)
def test_settings_that_no_transposed_convolution_has_are_refused(field: str, value: object) -> None:
    """They would fail in the first forward pass otherwise."""
    pairs = {"stride": [1, 1], "padding": [0, 0], "output_padding": [0, 0], "dilation": [1, 1]}
    with pytest.raises(ArtifactError) as caught:
        ConvTransposeSettings.read(Layout("m.settings", pairs | {"groups": 1} | {field: value}))
    assert (caught.value.module, caught.value.field) == ("m.settings", field)


def test_a_replacement_takes_over_hooks_and_mode() -> None:
    """A handle of the float layer removes the hook of its replacement; full backward hooks stay full."""
    old, calls = nn.Linear(12, 5).eval(), []
    handle = old.register_forward_hook(lambda *_: calls.append("forward"))
    old.register_full_backward_hook(lambda *_: calls.append("backward"))
    new = linear()
    carry_over(old, new)
    new(values(14, 2, 12).requires_grad_()).sum().backward()
    handle.remove()
    new(values(14, 2, 12))
    assert calls == ["forward", "backward"]
    assert not new.training
