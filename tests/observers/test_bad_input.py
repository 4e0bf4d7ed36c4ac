"""What observers and grids refuse, in words of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tico_config import (
    ConfigError,
    DType,
    NumericsError,
    PerChannel,
    PerTensor,
    QScheme,
    TicoError,
    UnsupportedError,
)
from tico_observers import (
    AffineParams,
    EMAObserver,
    EntropyObserver,
    HistogramObserver,
    IdentityObserver,
    MinMaxObserver,
    MSEObserver,
    MXObserver,
    Observer,
    PercentileObserver,
    Statistic,
    dequantize,
    pack,
)

GRIDS = (MinMaxObserver, EMAObserver, HistogramObserver, PercentileObserver, MSEObserver, EntropyObserver)
OBSERVERS = (*GRIDS, IdentityObserver, MXObserver)
INT8 = DType.int(8)


@pytest.mark.parametrize("kind", OBSERVERS)
@pytest.mark.parametrize(("given", "near"), [("channel_axes", "channel_axis"), ("qschema", "qscheme")])
def test_unknown_keywords_are_named_with_the_nearest(
    kind: type[Observer[Statistic]], given: str, near: str
) -> None:
    """A misspelt argument of any observer is our error, and says which was meant."""
    with pytest.raises(ConfigError, match=f"no argument '{given}'.*{near}") as caught:
        kind(**{given: 1})  # type: ignore[arg-type]
    assert caught.value.field == given


@pytest.mark.parametrize("kind", OBSERVERS)
@pytest.mark.parametrize("axis", [False, True, "", 0.0, 1.0, 8, torch.tensor(1)], ids=str)
def test_channel_axis_is_an_integer(kind: type[Observer[Statistic]], axis: object) -> None:
    """What is only equal to one, or false, is not taken for an axis."""
    with pytest.raises(ConfigError) as caught:
        kind("x", INT8, QScheme.PER_CHANNEL_SYMM, axis)  # type: ignore[arg-type]
    assert caught.value.field == "channel_axis"


SCALE, ZERO = torch.tensor(0.5), torch.tensor(0)


@pytest.mark.parametrize(
    ("scale", "zero_point", "field"),
    [
        (SCALE, torch.zeros(3), "zero_point"),
        (torch.ones(3), ZERO, "zero_point"),
        (torch.ones(3, 1), torch.zeros(3), "zero_point"),
        (torch.empty(0), ZERO, "zero_point"),
        (SCALE.to(torch.complex64), ZERO, "scale"),
        (SCALE.to("meta"), ZERO, "scale"),
        ("half", ZERO, "scale"),
        (None, ZERO, "scale"),
        (SCALE, ZERO.to(torch.complex64), "zero_point"),
        (SCALE, ZERO.to("meta"), "zero_point"),
        (SCALE, "none", "zero_point"),
    ],
    ids=str,
)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0)], ids=str)
def test_grids_that_are_none_are_refused(
    scale: Tensor, zero_point: Tensor, field: str, granularity: PerTensor | PerChannel
) -> None:
    """Whatever is wrong, the error is ours and names the field, and the observer is as before."""
    observer = MinMaxObserver("act_in", INT8, granularity=granularity)
    with pytest.raises(TicoError) as caught:
        observer.load_qparams(scale, zero_point)
    assert (caught.value.module, caught.value.field) == ("act_in", field)
    observer.collect(torch.ones(2))


@pytest.mark.parametrize("field", ["dtype", "granularity"])
def test_formats_of_grids_are_ours(field: str) -> None:
    """A torch dtype is no format, and a number no granularity."""
    given = {"dtype": INT8, "granularity": PerTensor()} | {field: torch.int8}
    with pytest.raises(ConfigError) as caught:
        AffineParams(scale=SCALE, zero_point=ZERO, **given)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize("code", [-129, 128, 2**40])
def test_codes_beyond_the_format_have_no_value(code: int) -> None:
    """They are refused, with the range that they may have."""
    with pytest.raises(NumericsError, match="-128 to 127") as caught:
        dequantize(torch.tensor([0, code]), AffineParams(scale=SCALE, zero_point=ZERO, dtype=INT8))
    assert caught.value.field == "codes"


def _dequantized(codes: Tensor) -> Tensor:
    return dequantize(codes, AffineParams(scale=SCALE, zero_point=ZERO, dtype=INT8))


def _packed(codes: Tensor) -> Tensor:
    return pack(codes, 4)


@pytest.mark.parametrize("operation", [_dequantized, _packed])
@pytest.mark.parametrize(
    "codes",
    [torch.ones(3), torch.ones(3, dtype=torch.complex64), torch.ones(3, dtype=torch.bool), [1, 2, 3]],
    ids=str,
)
def test_codes_are_integers(operation: Callable[[Tensor], Tensor], codes: Tensor) -> None:
    """Floats are not rounded on the way."""
    with pytest.raises(UnsupportedError) as caught:
        operation(codes)
    assert caught.value.field == "codes"


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, None], ids=str)
def test_values_are_floats(dtype: torch.dtype) -> None:
    """Dequantizing to integers is no dequantizing."""
    params = AffineParams(scale=SCALE, zero_point=ZERO, dtype=INT8)
    with pytest.raises(UnsupportedError) as caught:
        dequantize(torch.tensor([1]), params, dtype)
    assert caught.value.field == "dtype"


@pytest.mark.parametrize("kind", GRIDS)
def test_the_grid_cannot_be_written_to_through_what_is_returned(kind: type[Observer[Statistic]]) -> None:
    """What `compute_qparams` returns is the caller's."""
    observer = kind("act_in", INT8)
    observer.collect(torch.linspace(-1, 1, 99))
    before = observer.params
    scale, zero_point = observer.compute_qparams()
    expected = scale.clone()
    scale.zero_()
    zero_point.fill_(99)
    assert torch.equal(observer.compute_qparams()[0], expected)
    assert observer.params == before


STAND_INS = [torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min, -1e30, 1e30]


@pytest.mark.parametrize("stand_in", STAND_INS)
@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(-1)], ids=str)
def test_ranges_that_no_network_means_are_refused(
    kind: type[Observer[Statistic]], granularity: PerTensor | PerChannel, stand_in: float
) -> None:
    """A mask's stand-in for minus infinity in the data never becomes a grid; the error says what to do."""
    observer = kind("layers.0.masked", INT8, granularity=granularity)
    observer.collect(torch.tensor([[0.5, stand_in], [1.0, stand_in]]))
    with pytest.raises(NumericsError, match=r"stand-in for minus infinity.*override") as caught:
        observer.compute_qparams()
    assert (caught.value.module, caught.value.field) == ("layers.0.masked", "range")


def test_ranges_below_the_limit_are_none_of_our_business() -> None:
    """Large activations have grids."""
    observer = MinMaxObserver("act_in", INT8)
    observer.collect(torch.tensor([127e27]))
    assert observer.compute_qparams()[0].item() == torch.tensor(1e27).item()


def test_a_range_that_leaves_the_stand_ins_out_is_fine() -> None:
    """What counts is the range that the grid spans, not everything seen."""
    observer = PercentileObserver("act_in", INT8, lower=10.0, upper=100.0)
    observer.collect(torch.cat([torch.linspace(-1, 1, 99), torch.tensor([-3e38])]))
    assert observer.compute_qparams()[0].item() <= 1 / 127
