"""Packed weights hold exactly the codes they were given, and stand for exactly the values of these."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from references import same_bits
from tico_config import ArtifactError, DType, NumericsError
from tico_modules import keep_dequantized
from tico_quantizers import Layout, PackedWeight
from tico_quantizers.testing import refused
from tiny_models import values

FORMATS = [DType(bits, signed) for bits in (2, 3, 4, 5, 6, 7, 8, 12, 16) for signed in (False, True)]
every_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)


def codes_of(dtype: DType, rows: int = 3, columns: int = 11) -> Tensor:
    """Return codes that include both ends of the range."""
    spread: Tensor = torch.arange(rows * columns).view(rows, columns) * 7919 % (2**dtype.bits)
    spread[0, 0], spread[-1, -1] = 0, 2**dtype.bits - 1
    return spread + dtype.qmin


def weight_of(dtype: DType, *, group_size: int | None = None, index: Tensor | None = None) -> PackedWeight:
    """Return a weight of three rows and eleven columns."""
    groups = 1 if group_size is None else -(-11 // group_size)
    return PackedWeight.from_codes(
        codes_of(dtype),
        torch.arange(1.0, 3 * groups + 1).view(3, groups) / 8,
        torch.full((3, groups), dtype.qmin + 1),
        dtype=dtype,
        shape=(3, 11),
        group_size=group_size,
        group_index=index,
    )


@every_format
def test_codes_come_back(dtype: DType) -> None:
    """Packing loses nothing, at either end of the range, and takes the bytes that the width needs."""
    weight = weight_of(dtype)
    assert torch.equal(weight.integer_codes(), codes_of(dtype).to(torch.int32))
    assert weight.codes.shape == (3, 22 if dtype.bits > 8 else -(-11 * dtype.bits // 8))
    assert weight.bytes == weight.codes.numel() + 3 * 4 + 3 * 4


@pytest.mark.parametrize("group_size", [None, 1, 4, 11, 16])
@every_format
def test_values_are_those_of_the_definition(dtype: DType, group_size: int | None) -> None:
    """Each value is (code - zero point) * scale of its group, computed once in float32."""
    weight = weight_of(dtype, group_size=group_size)
    expected = torch.empty(3, 11)
    for row in range(3):
        for column in range(11):
            group = 0 if group_size is None else column // group_size
            step = int(codes_of(dtype)[row, column]) - int(weight.zero_point[row, group])
            expected[row, column] = torch.tensor(float(step)) * weight.scale[row, group]
    assert torch.equal(weight.dequantize(), expected)


def test_an_index_says_which_group_a_column_is_in() -> None:
    """Columns of one group need not stand side by side."""
    index = torch.arange(11) % 3
    weight = weight_of(DType.uint(4), group_size=4, index=index)
    steps = (codes_of(DType.uint(4)) - 1).to(torch.float32)
    assert torch.equal(weight.dequantize(), steps * weight.scale[:, index])


def test_rows_are_those_of_the_whole_weight() -> None:
    """Looking up some rows gives the bits that computing all of them gives."""
    weight = weight_of(DType.uint(3), group_size=4, index=torch.arange(11) % 3)
    index = torch.tensor([[2, 0], [1, 1]])
    assert same_bits(weight.rows(index), weight.dequantize()[index])


def test_values_beyond_float32_saturate() -> None:
    """The outermost code of a range as wide as float32 is the largest number, not infinity."""
    weight = PackedWeight.round_to_nearest(
        torch.tensor([[-3.4e38, 3.4e38]]), DType.uint(4), symmetric=False, group_size=None
    )
    assert bool(weight.dequantize().isfinite().all())


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4,), (4, 0), (0, 3)])
def test_weights_of_every_shape_are_rounded(shape: tuple[int, ...]) -> None:
    """A weight is a matrix of its first axis by all others, and comes back in its own shape."""
    flat = values(1, *shape)
    if len(shape) == 1:
        flat = flat.unsqueeze(1)
    weight = PackedWeight.round_to_nearest(flat, DType.uint(8), symmetric=False, group_size=None)
    assert weight.dequantize().shape == flat.shape
    steps = weight.scale.amax().item() if flat.numel() else 0.0
    # Half a step, and the rounding of the scale to 24 bits over 255 steps.
    assert bool(((weight.dequantize() - flat).abs() <= steps * (0.5 + 255 * 2.0**-24)).all())


def test_a_state_dict_restores_every_bit(tmp_path: Path) -> None:
    """Its tensors are plain enough for a file that is loaded without pickle, and fit strictly."""
    weight = weight_of(DType.uint(3), group_size=4, index=torch.arange(11) % 3)
    torch.save(weight.state_dict(), tmp_path / "state.pt")
    other = weight_of(DType.uint(3), group_size=4, index=torch.zeros(11))
    other.codes.zero_()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    assert same_bits(other.dequantize(), weight.dequantize())


def test_copies_are_independent() -> None:
    """A deep copy and one through pickle have the same bits in memory of their own."""
    weight = weight_of(DType.int(5), group_size=4)
    for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):  # noqa: S301  # our own bytes
        assert same_bits(other.dequantize(), weight.dequantize())
        assert other.codes.data_ptr() != weight.codes.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_a_model_leaves_the_grid_alone(dtype: torch.dtype) -> None:
    """Scales are float32 whatever the model is computed in."""
    weight = weight_of(DType.uint(4), group_size=4)
    before = weight.dequantize()
    weight.to(dtype)
    assert (weight.scale.dtype, weight.zero_point.dtype) == (torch.float32, torch.int32)
    assert same_bits(weight.dequantize(), before)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("codes", {"codes": torch.full((3, 11), 16)}),
        ("codes", {"codes": torch.full((3, 11), -1)}),
        ("codes", {"codes": torch.full((3, 11), 2**32)}),
        ("codes", {"codes": torch.full((3, 11), 1.5)}),
        ("codes", {"codes": torch.zeros(33, dtype=torch.int32)}),
        ("codes", {"codes": torch.zeros(3, 12, dtype=torch.int32)}),
        ("scale", {"scale": torch.ones(3, 2), "zero_point": torch.zeros(3, 2)}),
        ("scale", {"scale": torch.full((3, 3), torch.nan)}),
        ("zero_point", {"zero_point": torch.full((3, 3), 16)}),
        ("zero_point", {"zero_point": torch.zeros(3, 2)}),
        ("group_index", {"group_index": torch.full((11,), 3)}),
        ("group_index", {"group_index": torch.zeros(10)}),
    ],
)
def test_parts_that_do_not_fit_are_refused(field: str, changes: dict[str, Tensor]) -> None:
    """Nothing that could be read back as another weight is packed."""
    parts = {
        "codes": codes_of(DType.uint(4)),
        "scale": torch.ones(3, 3),
        "zero_point": torch.zeros(3, 3),
        "group_index": torch.zeros(11),
    } | changes
    codes, scale, zero_point, index = parts.values()
    with refused(None, NumericsError, field=field) as caught:
        PackedWeight.from_codes(
            codes, scale, zero_point, dtype=DType.uint(4), shape=(3, 11), group_size=4, group_index=index
        )
    assert caught.value.expected


@pytest.mark.parametrize("shape", [(), (3, 12), (4, 11)])
def test_a_shape_of_other_sizes_is_refused(shape: tuple[int, ...]) -> None:
    """The shape of the weight has as many rows and columns as the codes."""
    with pytest.raises(NumericsError):
        PackedWeight.from_codes(
            codes_of(DType.uint(4)),
            torch.ones(3, 1),
            torch.zeros(3, 1),
            dtype=DType.uint(4),
            shape=shape,
        )


@pytest.mark.parametrize("size", [0, -4])
def test_groups_of_no_columns_are_refused(size: int) -> None:
    """A group has at least one column."""
    with refused(None, NumericsError, field="group_size"):
        PackedWeight.from_codes(
            codes_of(DType.uint(4)),
            torch.ones(3, 1),
            torch.zeros(3, 1),
            dtype=DType.uint(4),
            shape=(3, 11),
            group_size=size,
        )


@every_format
def test_layout_and_tensors_make_the_weight_again(dtype: DType) -> None:
    """What a file keeps is enough."""
    weight = weight_of(dtype, group_size=4, index=torch.arange(11) % 3)
    again = PackedWeight.restore(Layout("w", weight.layout()), dict(weight.named_buffers()))
    assert same_bits(again.dequantize(), weight.dequantize())
    assert again.layout() == weight.layout()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bits", 1),
        ("bits", True),
        ("bits", 5),
        ("signed", 1),
        ("shape", [3, 13]),
        ("shape", [-3, 11]),
        ("shape", []),
        ("group_size", 0),
        ("group_size", 6),
        ("group_index", True),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(field: str, value: object) -> None:
    """Each field is checked against the tensors; the error says which file and field."""
    weight = weight_of(DType.uint(4), group_size=4)
    layout = Layout("file.fc.packed", weight.layout() | {field: value})
    with pytest.raises(ArtifactError) as caught:
        PackedWeight.restore(layout, dict(weight.named_buffers()))
    assert caught.value.module == "file.fc.packed"


def test_codes_wider_than_their_format_are_refused() -> None:
    """Two bytes could hold more than twelve bits."""
    weight = weight_of(DType.uint(12))
    weight.codes.fill_(255)
    with refused(None, ArtifactError, field="codes", module="w") as caught:
        PackedWeight.restore(Layout("w", weight.layout()), dict(weight.named_buffers()))
    assert caught.value.value == "integers from 65535 to 65535"


def test_an_expanded_weight_is_computed_once() -> None:
    """Within the context all uses get one tensor; after it each gets its own."""
    weight = weight_of(DType.uint(4))
    expected = weight.dequantize()
    with keep_dequantized(nn.Sequential(weight)):
        first = weight.dequantize()
        assert weight.dequantize() is first
        assert torch.equal(first, expected)
    assert weight.dequantize() is not weight.dequantize()
    assert "_kept" not in vars(weight)
