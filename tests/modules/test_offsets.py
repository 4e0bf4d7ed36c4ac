"""Weights whose groups have an offset of their own: ``value = code * scale - offset``."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from references import same_bits
from tico_config import ArtifactError, DType, NumericsError, SuperBlock
from tico_modules import (
    PackedWeight,
    Parts,
    QuantizedEmbedding,
    QuantizedLinear,
    load_quantized,
    save_quantized,
    set_backend,
)
from tico_quantizers import Layout
from tico_quantizers.testing import refused
from tiny_models import values

SHARED = SuperBlock(columns=64, offset_bits=6)
ROWS, COLUMNS = 5, 70


def _weight(*, group_size: int = 16, index: Tensor | None = None, seed: int = 0) -> PackedWeight:
    groups = -(-COLUMNS // group_size)
    return PackedWeight.from_codes(
        torch.arange(seed, seed + ROWS * COLUMNS).view(ROWS, COLUMNS) * 7919 % 16,
        values(seed, ROWS, groups).abs() + 0.1,
        torch.zeros(ROWS, groups, dtype=torch.int32),
        dtype=DType.uint(4),
        shape=(ROWS, COLUMNS),
        group_size=group_size,
        group_index=index,
        offset=values(seed + 1, ROWS, groups),
        super_block=SHARED,
    )


def _by_definition(weight: PackedWeight) -> Tensor:
    """Return the values one by one: the product rounded to float32, then the difference."""
    assert weight.offset is not None
    codes, found = weight.integer_codes(), torch.empty(ROWS, COLUMNS)
    for row in range(ROWS):
        for column in range(COLUMNS):
            size = weight.group_size or COLUMNS
            own = column // size if weight.group_index is None else int(weight.group_index[column])
            product = codes[row, column].float() * weight.scale[row, own]
            found[row, column] = product - weight.offset[row, own]
    return found


def _linear(packed: PackedWeight) -> QuantizedLinear:
    return QuantizedLinear(Parts(packed=packed, bias=None, act_in=None, act_out=None)).eval()


@pytest.mark.parametrize("index", [None, torch.arange(COLUMNS) % 5])
@pytest.mark.parametrize("group_size", [14, 16])
def test_values_are_those_of_the_definition(group_size: int, index: Tensor | None) -> None:
    """Also where the last group is a shorter one, and where columns of a group are no neighbours."""
    weight = _weight(group_size=group_size, index=index)
    assert same_bits(weight.dequantize(), _by_definition(weight))
    chosen = torch.tensor([[3, 0], [4, 3]])
    assert same_bits(weight.rows(chosen), _by_definition(weight)[chosen])
    assert weight.grid_format().symmetric is False


def test_values_beyond_float32_saturate() -> None:
    """The largest number stands for what lies beyond it, on both sides."""
    weight = _weight()
    assert weight.offset is not None
    for number in (3e38, -3e38):
        weight.offset.fill_(number)
        weight.scale.fill_(3e38)
        assert bool(weight.dequantize().isfinite().all())


def test_state_dicts_and_files_restore_every_bit(tmp_path: Path) -> None:
    """Offsets are a buffer as scales are, and keep their format when the model is cast."""
    weight, other = _weight(), _weight(seed=3)
    other.load_state_dict(copy.deepcopy(weight.state_dict()), strict=True)
    again = PackedWeight.restore(Layout("w", weight.layout()), dict(weight.named_buffers()))
    save_quantized(nn.Sequential(_linear(weight)), tmp_path / "m")
    model = load_quantized(tmp_path / "m", nn.Sequential(nn.Linear(COLUMNS, ROWS, bias=False)))
    loaded = model.get_submodule("0")
    assert isinstance(loaded, QuantizedLinear)
    for each in (other, again, loaded, weight.to(torch.bfloat16)):
        assert same_bits(each.dequantize(), _by_definition(_weight()))
    assert again.layout() == loaded.packed.layout()
    weight.load_state_dict({"codes": weight.codes}, strict=False)


def test_weights_with_and_without_offsets_are_not_each_other_s() -> None:
    """A load into another kind is refused, whether names have to match or not."""
    lowered = _weight()
    plain = PackedWeight.from_codes(
        lowered.integer_codes(),
        lowered.scale,
        lowered.zero_point,
        dtype=DType.uint(4),
        shape=(ROWS, COLUMNS),
        group_size=16,
        super_block=SuperBlock(columns=64),
    )
    both = nn.Sequential(lowered), nn.Sequential(plain)
    for one, other in (both, both[::-1]):
        with pytest.raises(RuntimeError, match=r"0: super_block must be .* as in the format of this module"):
            one.load_state_dict(other.state_dict(), strict=False)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_offsets_that_are_no_numbers_are_refused(number: float) -> None:
    """In a state dict and in a file, before anything of them is taken."""
    weight, spoilt = _weight(), _weight()
    assert spoilt.offset is not None
    spoilt.offset[1, 2] = number
    with pytest.raises(RuntimeError, match="offset must be finite numbers"):
        weight.load_state_dict(spoilt.state_dict())
    with refused(None, ArtifactError, field="offset", module="w"):
        PackedWeight.restore(Layout("w", weight.layout()), dict(spoilt.named_buffers()))
    assert same_bits(weight.dequantize(), _by_definition(_weight()))


@pytest.mark.parametrize(
    ("offset", "shared"),
    [
        (None, SHARED),
        (torch.zeros(ROWS, 5), SuperBlock(columns=64)),
        (torch.zeros(ROWS, 5), None),
        (torch.zeros(ROWS, 4), SHARED),
        (torch.full((ROWS, 5), torch.nan), SHARED),
    ],
)
def test_offsets_and_their_super_block_go_together(offset: Tensor | None, shared: SuperBlock | None) -> None:
    """The format says whether there are any."""
    weight = _weight()
    with refused(None, NumericsError, field="offset"):
        PackedWeight.from_codes(
            weight.integer_codes(),
            weight.scale,
            weight.zero_point,
            dtype=DType.uint(4),
            shape=(ROWS, COLUMNS),
            group_size=16,
            offset=offset,
            super_block=shared,
        )


def test_a_file_that_lacks_offsets_is_refused() -> None:
    """They are looked for where the layout speaks of them."""
    weight = _weight()
    tensors = {name: each for name, each in weight.named_buffers() if name != "offset"}
    with pytest.raises(ArtifactError, match="offset"):
        PackedWeight.restore(Layout("w", weight.layout()), tensors)


@pytest.mark.parametrize("backend", ["native", "auto"])
def test_the_reference_computes_them(backend: str) -> None:
    """No kernel adds offsets, and the back end says so."""
    layer, x = _linear(_weight()), values(5, 3, COLUMNS)
    before = layer(x)
    assert set_backend(layer, backend) == {"": "reference: weights with offsets have no kernel"}  # type: ignore[arg-type]  # one of them
    assert same_bits(layer(x), before)
    assert torch.equal(before, nn.functional.linear(x, _by_definition(_weight())))


@pytest.mark.parametrize("group_size", [14, 16])
def test_programs_subtract_them(group_size: int) -> None:
    """A program of `torch.export` has the layer's bits, with groups of one size and without."""
    layer, x = _linear(_weight(group_size=group_size)), values(6, 3, COLUMNS)
    program = torch.export.export(layer, (x,)).module()
    assert same_bits(program(x), layer(x))
    targets = {str(node.target) for node in torch.export.export(layer, (x,)).graph.nodes}
    assert any("dequantize_per_channel_group" in each for each in targets) == (COLUMNS % group_size == 0)


def test_embeddings_look_their_rows_up() -> None:
    """Each row is computed where it is asked for."""
    table = QuantizedEmbedding(Parts(packed=_weight(), bias=None, act_in=None, act_out=None))
    index = torch.tensor([[1, 4, 1]])
    assert same_bits(table(index), _by_definition(_weight())[index])
