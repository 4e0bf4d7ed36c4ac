"""What the numbers in a state dict mean is part of it, and a load of another meaning is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from references import same_bits
from tico_config import DType, LifecycleError, PerChannel, PerTensor
from tico_modules import ActivationGrid, ExactModule, PackedWeight, Parts, QuantizedLinear
from tico_observers import AffineParams

INT8, UINT8 = DType.int(8), DType.uint(8)


def _weight(dtype: DType, *, group_size: int | None = None, columns: int = 12) -> PackedWeight:
    weight = torch.randn(4, columns)
    return PackedWeight.round_to_nearest(weight, dtype, symmetric=dtype.signed, group_size=group_size)


def _fixed(dtype: DType, scale: Tensor | float = 0.1, axis: int | None = None) -> ActivationGrid:
    scale = torch.as_tensor(scale)
    granularity = PerTensor() if axis is None else PerChannel(axis)
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    params = AffineParams(scale=scale, zero_point=zero_point, dtype=dtype, granularity=granularity)
    return ActivationGrid.static(params)


def _per_token(dtype: DType, *, symmetric: bool) -> ActivationGrid:
    return ActivationGrid.per_token(dtype, symmetric=symmetric)


# Each pair has tensors of the same names, shapes and dtypes, and numbers that mean something else.
PAIRS: dict[str, tuple[Callable[[], ExactModule], Callable[[], ExactModule], str]] = {
    "sign of 4 bits": (lambda: _weight(DType.uint(4)), lambda: _weight(DType.int(4)), "signed"),
    "sign of 16 bits": (lambda: _weight(DType.uint(16)), lambda: _weight(DType.int(16)), "signed"),
    "3 and 4 bits of few columns": (
        lambda: _weight(DType.uint(3), columns=2),
        lambda: _weight(DType.uint(4), columns=2),
        "bits",
    ),
    "groups of 8 and of 11": (
        lambda: _weight(UINT8, group_size=8),
        lambda: _weight(UINT8, group_size=11),
        "group_size",
    ),
    "grid of the other sign": (lambda: _fixed(UINT8), lambda: _fixed(INT8), "signed"),
    "grid of other bits": (lambda: _fixed(UINT8), lambda: _fixed(DType.uint(4)), "bits"),
    "grid along another axis": (
        lambda: _fixed(UINT8, torch.ones(3), axis=1),
        lambda: _fixed(UINT8, torch.ones(3), axis=2),
        "axis",
    ),
    "token grids around zero": (
        lambda: _per_token(INT8, symmetric=True),
        lambda: _per_token(INT8, symmetric=False),
        "symmetric",
    ),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("pair", PAIRS)
def test_another_format_is_refused(pair: str, strict: bool, assign: bool) -> None:
    """With the path, the field and both values; the module keeps its numbers."""
    make, make_other, field = PAIRS[pair]
    module, other = nn.Sequential(make()), nn.Sequential(make_other())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(RuntimeError, match=rf"0: {field} must be .* as in the format of this module, got "):
        module.load_state_dict(other.state_dict(), strict=strict, assign=assign)
    assert all(same_bits(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("pair", PAIRS)
def test_the_same_format_is_loaded(pair: str, tmp_path: Path) -> None:
    """Also by way of safetensors, which knows nothing but tensors, and from a release without formats."""
    make, _, _ = PAIRS[pair]
    module, other = make(), make()
    save_file(other.state_dict(), tmp_path / "state")
    module.load_state_dict(load_file(tmp_path / "state"))
    older = {
        name: tensor for name, tensor in other.state_dict().items() if name in dict(other.named_buffers())
    }
    make().load_state_dict(older)
    assert all(same_bits(tensor, older[name]) for name, tensor in module.named_buffers())


def _bent(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def bend(state: dict[str, Tensor]) -> None:
        state[name] = change(state[name])

    return bend


BENT: dict[str, Callable[[dict[str, Tensor]], None]] = {
    "codes": _bent("packed.codes", lambda x: x.to(torch.float32)),
    "codes of another sign": lambda state: state.update(
        {"packed.codes": state["packed.codes"].to(torch.int8)}
    ),
    "scale": _bent("packed.scale", lambda x: x.to(torch.bfloat16)),
    "scale is NaN": _bent("packed.scale", lambda x: x * torch.nan),
    "scale is negative": _bent("packed.scale", lambda x: -x),
    "zero_point": _bent("packed.zero_point", lambda x: x + 300),
    "zero_point of floats": _bent("packed.zero_point", lambda x: x + 0.5),
    "act_in": _bent("act_in.scale", lambda x: x * 0),
    "act_in zero_point": _bent("act_in.zero_point", lambda x: x - 1),
    "average of all": lambda state: state.update({k: v.double() for k, v in state.items()}),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", BENT)
def test_numbers_that_no_layer_has_are_refused(name: str, assign: bool) -> None:
    """Codes are no numbers to average; scales are positive, zero points are codes."""
    parts = Parts(packed=_weight(UINT8), act_in=_fixed(UINT8))
    layer = QuantizedLinear(parts)
    state = dict(layer.state_dict())
    BENT[name](state)
    with pytest.raises(RuntimeError, match="must be"):
        layer.load_state_dict(state, assign=assign)


def _averages(one: Tensor, other: Tensor) -> dict[str, Tensor]:
    return {
        "rounded": (one.double() / 2 + other.double() / 2).to(one.dtype),
        "of integers": (one / 2).to(one.dtype) + (other / 2).to(one.dtype),
        "exponential": (one * 0.9 + other * 0.1).to(one.dtype),
    }


@pytest.mark.parametrize("way", _averages(torch.ones(1), torch.ones(1)))
@pytest.mark.parametrize("dtype", [UINT8, INT8, DType.uint(4), DType.int(16)], ids=str)
def test_an_average_of_state_dicts_is_refused(dtype: DType, way: str) -> None:
    """Also one that keeps every dtype: its codes are not those that a state dict was made with."""
    one, other, third = (_weight(dtype, group_size=4) for _ in range(3))
    state, others = one.state_dict(), other.state_dict()
    mean = {name: _averages(tensor, others[name])[way] for name, tensor in state.items()}
    mean["_extra_state"] = state["_extra_state"]
    with pytest.raises(RuntimeError, match="codes are no values to average"):
        third.load_state_dict(mean)
    third.load_state_dict(state)
    assert same_bits(third.dequantize(), one.dequantize())


_OFTEN = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _ema(model: nn.Module) -> nn.Module:
    averaged = AveragedModel(model, multi_avg_fn=_OFTEN, use_buffers=True)
    for _ in range(3):
        averaged.update_parameters(model)
    return averaged.module


def _mean_with_another(model: nn.Module) -> nn.Module:
    copied, other = copy.deepcopy(model), nn.Sequential(_layer())
    for mine, its in zip(copied.state_dict().values(), other.state_dict().values(), strict=True):
        mine.copy_(mine / 2 + its / 2)
    return copied


def _layer() -> QuantizedLinear:
    return QuantizedLinear.from_float(nn.Linear(32, 32), UINT8)


@pytest.mark.parametrize("average", [_ema, _mean_with_another])
def test_an_average_over_buffers_is_refused(average: Callable[[nn.Module], nn.Module]) -> None:
    """At the next call, and before anything is saved of it. The model itself goes on."""
    model, x = nn.Sequential(_layer()), torch.randn(2, 32)
    expected = model(x)
    averaged = average(model)
    with pytest.raises(LifecycleError, match="codes are no values to average"):
        averaged(x)
    with pytest.raises(LifecycleError, match="codes are no values to average"):
        averaged.state_dict()
    assert same_bits(model(x), expected)


def test_a_copy_takes_what_is_no_average() -> None:
    """An average of parameters alone, the same codes written again, and the codes of a state dict."""
    model, other, x = nn.Sequential(_layer()), nn.Sequential(_layer()), torch.randn(2, 32)
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    assert same_bits(averaged(x), model(x))
    copied = copy.deepcopy(model)
    for mine, its in zip(copied.buffers(), model.buffers(), strict=True):
        mine.copy_(its)
    assert same_bits(copied(x), model(x))
    copied.load_state_dict(other.state_dict())
    assert same_bits(copied(x), other(x))
    assert same_bits(copy.deepcopy(copied).to(torch.float64)(x), other(x))


def test_codes_beyond_their_format_are_refused() -> None:
    """Bytes of more than 8 bits a code can hold some."""
    weight = _weight(DType.uint(9))
    state = weight.state_dict()
    state["codes"] = torch.full_like(state["codes"], 255)
    with pytest.raises(RuntimeError, match=r"codes must be .* from 0 to 511"):
        weight.load_state_dict(state)
