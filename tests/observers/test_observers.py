"""Observers: from the first tensor to the grid, and every wrong turn on the way."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import TypeAlias

import attrs
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from tico_config import (
    FP8,
    MXFP4,
    CalibrationError,
    ConfigError,
    DType,
    EMASpec,
    EntropySpec,
    HistogramSpec,
    LifecycleError,
    MinMaxSpec,
    MSESpec,
    NumericsError,
    ObserverSpec,
    PercentileSpec,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QScheme,
    UnsupportedError,
    affine,
    no_quant,
)
from tico_observers import (
    EMAObserver,
    EntropyObserver,
    HistogramObserver,
    IdentityObserver,
    MinMaxObserver,
    MSEObserver,
    MXObserver,
    PercentileObserver,
    fake_quantize,
    observer_for,
)

KINDS = [MinMaxObserver, EMAObserver, HistogramObserver, PercentileObserver, MSEObserver, EntropyObserver]
SPECS = [MinMaxSpec(), EMASpec(), HistogramSpec(), PercentileSpec(), MSESpec(10), EntropySpec(10)]

# Every kind is made and used like this one; its own statistic matters to no test here.
AnyKind: TypeAlias = type[MinMaxObserver]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)


@every_kind
def test_the_usual_verbs(kind: AnyKind) -> None:
    """Collect, compute, fake-quantize, reset: the names of the field, with its results."""
    x = torch.linspace(-1.0, 3.0, 65)
    observer = kind(name="act_in", dtype=DType.uint(8), qscheme=QScheme.PER_TENSOR_ASYMM, channel_axis=None)
    observer.collect(x)
    scale, zero_point = observer.compute_qparams()
    assert (scale.dtype, zero_point.dtype) == (torch.float32, torch.int32)
    # Even values leave nothing to cut off: every kind spans them all, up to the rounding of a float32 scale.
    assert scale.item() == pytest.approx(4 / 255, rel=2**-23)
    assert torch.equal(observer.fake_quant(x), fake_quantize(x, observer.params))
    observer.reset()
    observer.collect(2 * x)
    assert observer.compute_qparams()[0].item() == pytest.approx(8 / 255, rel=2**-23)


@every_spec
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(-1), PerGroup(-1, 3)])
def test_every_spec_has_its_observer(spec: ObserverSpec, granularity: PerTensor) -> None:
    """A spec, as data, is all that is needed to watch a tensor and quantize it."""
    x = torch.linspace(-1.0, 1.0, 40).view(5, 8)
    asked = affine(DType.int(8), granularity=granularity, observer=spec)
    observer = observer_for(asked, "act_in", PerTensor())
    observer.collect(x)
    assert (observer.fake_quant(x) - x).abs().max() <= 0.1
    tolerant = observer_for(attrs.evolve(asked, on_nonfinite="ignore"), "act_in", PerTensor())
    tolerant.collect(torch.cat([x[:4], torch.full((1, 8), torch.nan)]))
    assert getattr(tolerant.statistics, "dropped", None) == 8


@every_kind
def test_without_data_there_is_no_grid(kind: AnyKind) -> None:
    """An observer that saw nothing, or only empty tensors, says so instead of guessing."""
    observer = kind("layers.0.act_in")
    observer.collect(torch.empty(0, 8))
    with pytest.raises(CalibrationError) as caught:
        observer.compute_qparams()
    assert caught.value.module == "layers.0.act_in"
    with pytest.raises(CalibrationError):
        observer.fake_quant(torch.zeros(1))


@every_kind
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_is_not_finite_is_refused(kind: AnyKind, bad: float, dtype: torch.dtype) -> None:
    """The error names observer, batch, number and place, and the batch leaves no trace."""
    observer = kind("act_in")
    observer.collect(torch.ones(2, 3))
    before = observer.statistics
    x = torch.zeros(2, 3, dtype=dtype)
    x[1, 2] = bad
    with pytest.raises(NumericsError, match=r"1 times, first at \(1, 2\).*batch 1") as caught:
        observer.collect(x)
    assert (caught.value.module, caught.value.field) == ("act_in", "x")
    assert observer.statistics is before


@every_kind
def test_what_is_not_finite_can_be_ignored(kind: AnyKind) -> None:
    """Ignoring is a choice, and it counts what it dropped."""
    observer, plain = kind("x", on_nonfinite="ignore"), kind("x")
    x = torch.linspace(-1.0, 1.0, 9)
    observer.collect(torch.cat([x, torch.tensor([torch.nan, torch.inf])]))
    plain.collect(x)
    assert observer.params == plain.params
    assert getattr(observer.statistics, "dropped", None) == 2


@every_kind
def test_ignoring_everything_is_having_no_data(kind: AnyKind) -> None:
    """A tensor of NaN alone is no data, and a channel of NaN alone is none for that channel."""
    observer = kind("x", on_nonfinite="ignore")
    observer.collect(torch.full((3,), torch.nan))
    with pytest.raises(CalibrationError):
        observer.compute_qparams()
    channels = kind("x", channel_axis=0, on_nonfinite="ignore")
    channels.collect(torch.tensor([[1.0, 2.0], [torch.nan, torch.inf]]))
    with pytest.raises(CalibrationError, match="1 of 2"):
        channels.compute_qparams()


def test_an_unknown_choice_is_refused() -> None:
    """There are two ways to treat what is not finite."""
    with pytest.raises(CalibrationError) as caught:
        MinMaxObserver(on_nonfinite="drop")  # type: ignore[arg-type]
    assert caught.value.field == "on_nonfinite"


def _unsupported() -> list[tuple[str, object]]:
    with FakeTensorMode():
        fake = torch.zeros(2)
    return [
        ("integer", torch.zeros(2, dtype=torch.int32)),
        ("bool", torch.zeros(2, dtype=torch.bool)),
        ("complex", torch.zeros(2, dtype=torch.complex64)),
        ("sparse", torch.eye(2).to_sparse()),
        ("meta", torch.zeros(2, device="meta")),
        ("fake", fake),
        ("list", [1.0, 2.0]),
    ]


@every_kind
@pytest.mark.parametrize(
    ("name", "x"), _unsupported(), ids=lambda each: each if isinstance(each, str) else "x"
)
def test_other_tensors_are_refused(kind: AnyKind, name: str, x: Tensor) -> None:
    """Integers, sparse and meta tensors, and tensors of a trace have no range to observe."""
    with pytest.raises(UnsupportedError) as caught:
        kind("act_in").collect(x)
    assert caught.value.module == "act_in"
    assert caught.value.field == ("dtype" if name in ("integer", "bool", "complex") else "x")


@every_kind
def test_the_grid_is_fixed_by_its_first_use(kind: AnyKind) -> None:
    """Collecting afterwards is an error with the way out; computing again gives the same."""
    observer = kind("act_in")
    observer.collect(torch.ones(4))
    first = observer.params
    assert observer.params is first
    with pytest.raises(LifecycleError, match=r"reset\(\)") as caught:
        observer.collect(torch.ones(4))
    assert caught.value.module == "act_in"


@every_kind
def test_channels_must_not_change_in_number(kind: AnyKind) -> None:
    """The error says how many there were and are, and the batch leaves no trace."""
    observer = kind("x", channel_axis=1)
    observer.collect(torch.ones(2, 4))
    with pytest.raises(CalibrationError, match=r"\(4,\).*\(1,\)") as caught:
        observer.collect(torch.ones(2, 1))
    assert (caught.value.module, caught.value.field) == ("x", "x")
    observer.collect(torch.ones(3, 4))


@pytest.mark.parametrize("granularity", [PerChannel(2), PerGroup(2, 4), PerToken()])
def test_tensors_without_the_units_are_refused(granularity: PerChannel) -> None:
    """A missing axis is an error, not a modulo; tokens have no units that stay."""
    observer = MinMaxObserver("x", DType.int(8), granularity=granularity)
    with pytest.raises(CalibrationError) as caught:
        observer.collect(torch.ones(2, 2))
    assert caught.value.field == "x"


@every_kind
def test_scalars_and_empty_tensors_are_defined(kind: AnyKind) -> None:
    """A 0-dimensional tensor is one element, an empty one none."""
    observer = kind("x", DType.int(8))
    observer.collect(torch.tensor(1.27))
    observer.collect(torch.empty(0))
    observer.collect(torch.empty(3, 0))
    assert observer.compute_qparams()[0].item() == pytest.approx(0.01)


@every_kind
def test_observing_keeps_no_graph(kind: AnyKind) -> None:
    """A tensor that was observed can be freed, with the graph that made it."""
    observer = kind("x")
    leaf = torch.ones(4, requires_grad=True)
    hidden = leaf * 2
    alive = weakref.ref(hidden)
    observer.collect(hidden.square())
    del hidden
    gc.collect()
    assert alive() is None
    assert not observer.params.scale.requires_grad


@every_kind
def test_inference_tensors_give_usable_grids(kind: AnyKind) -> None:
    """What was calibrated in inference mode works under autograd."""
    observer = kind("x", DType.int(8), channel_axis=0)
    with torch.inference_mode():
        observer.collect(torch.ones(2, 3))
        observer.compute_qparams()
    assert not observer.params.scale.is_inference()
    x = torch.ones(2, 3, requires_grad=True)
    values = observer.fake_quant(x) * observer.params.scale[:, None]
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert bool((gradient > 0).all())


def pickled(observer: MinMaxObserver) -> MinMaxObserver:
    """Return `observer` pickled and unpickled."""
    again: MinMaxObserver = pickle.loads(pickle.dumps(observer))  # noqa: S301  # its own pickle
    return again


@every_kind
@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
def test_copies_go_on_alone(kind: AnyKind, again: Callable[[MinMaxObserver], MinMaxObserver]) -> None:
    """A copy made in the middle of calibration ends where the original does, and does not touch it."""
    observer = kind("x")
    observer.collect(torch.tensor([1.0, 2.0]))
    other = again(observer)
    other.collect(torch.tensor([100.0]))
    observer.collect(torch.tensor([3.0]))
    twin = kind("x")
    for batch in ([1.0, 2.0], [3.0]):
        twin.collect(torch.tensor(batch))
    assert observer.params == twin.params
    assert other.params != twin.params


@pytest.mark.parametrize("kind", [each for each in KINDS if each is not EMAObserver])
def test_merged_observers_have_seen_what_both_saw(kind: AnyKind) -> None:
    """Merging equals observing everything in one place, and leaves both alone."""
    a, b = torch.linspace(-1.0, 1.0, 30), torch.linspace(0.5, 4.0, 20)
    one, other, whole = kind("x"), kind("x"), kind("x")
    one.collect(a)
    other.collect(b)
    whole.collect(torch.cat([a, b]))
    merged = one.merge(other)
    assert merged.params == whole.params == one.merge_statistics(other.statistics).params
    assert one.params != whole.params


def test_moving_averages_are_not_merged() -> None:
    """The order of the data matters to them and is lost."""
    one, other = EMAObserver("x"), EMAObserver("x")
    for each in (one, other):
        each.collect(torch.ones(1))
    with pytest.raises(UnsupportedError) as caught:
        one.merge(other)
    assert caught.value.module == "x"


@pytest.mark.parametrize(
    "other",
    [
        HistogramObserver("x"),
        MinMaxObserver("x", DType.int(4)),
        MinMaxObserver("x", channel_axis=0),
        MinMaxObserver("x", on_nonfinite="ignore"),
    ],
    ids=repr,
)
def test_different_observers_are_not_merged(other: MinMaxObserver) -> None:
    """Kind and settings have to agree; the error shows both."""
    with pytest.raises(CalibrationError) as caught:
        MinMaxObserver("x").merge(other)
    assert "observers of the same kind" in str(caught.value.expected)
    with pytest.raises(CalibrationError):
        MinMaxObserver("x", channel_axis=1).merge_statistics(other.statistics)


@every_kind
def test_loaded_grids_are_checked(kind: AnyKind) -> None:
    """A grid can be set without data; one that is none is refused."""
    observer = kind("x", DType.int(8))
    observer.load_qparams(torch.tensor(0.5), torch.tensor(3))
    assert [each.item() for each in observer.compute_qparams()] == [0.5, 3]
    for scale, zero_point, field in ((0.0, 0, "scale"), (torch.nan, 0, "scale"), (1.0, 300, "zero_point")):
        with pytest.raises(NumericsError) as caught:
            observer.load_qparams(torch.tensor(scale), torch.tensor(zero_point))
        assert (caught.value.module, caught.value.field) == ("x", field)


def test_settings_are_checked_when_they_are_made() -> None:
    """A wrong percentile, momentum or scheme never reaches calibration."""
    for make, field in (
        (lambda: PercentileObserver(lower=50.0, upper=50.0), "lower"),
        (lambda: EMAObserver(momentum=1.0), "momentum"),
        (lambda: MSEObserver(steps=0), "steps"),
        (lambda: EntropyObserver(steps=0), "steps"),
        (lambda: MinMaxObserver(qscheme=QScheme.PER_TENSOR_SYMM), "qscheme"),
        (lambda: MXObserver(axis=9), "axis"),
        (lambda: MXObserver(dtype=DType.int(8)), "dtype"),
        (lambda: MXObserver(dtype=FP8), "dtype"),
        (lambda: EntropyObserver(dtype=FP8()), "dtype"),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        assert caught.value.field == field


def test_identity_observer_changes_nothing() -> None:
    """The tensor itself comes back, whatever it is, and has no grid."""
    observer = observer_for(no_quant(), "x", PerTensor())
    assert isinstance(observer, IdentityObserver)
    x = torch.tensor([torch.nan, torch.inf, 1.0])
    observer.collect(x)
    observer.collect(torch.ones(2, dtype=torch.int64))
    assert observer.statistics.elements == 5
    assert observer.fake_quant(x) is x
    assert [each.item() for each in observer.compute_qparams()] == [1.0, 0]
    with pytest.raises(UnsupportedError) as caught:
        observer.load_qparams(torch.tensor(1.0), torch.tensor(0))
    assert caught.value.module == "x"


def test_mx_observer_needs_no_data() -> None:
    """Each block brings its own scale; there is no scale and zero point to compute."""
    observer = MXObserver("x", MXFP4())
    x = torch.tensor([7.0, 1.2, -0.3])
    assert observer.fake_quant(x).tolist() == [6.0, 1.0, -0.5]
    observer.collect(x)
    for refused in (observer.compute_qparams, lambda: observer.params):
        with pytest.raises(UnsupportedError, match=r"fake_quant\(x\)") as caught:
            refused()
        assert caught.value.module == "x"
    with pytest.raises(CalibrationError):
        observer.fake_quant(torch.tensor(1.0))


def test_a_block_that_is_not_finite_becomes_nan() -> None:
    """Microscaling has no scale for such a block; its neighbours keep theirs."""
    x = torch.ones(2, 32)
    x[0, 3] = torch.inf
    values = MXObserver("x").fake_quant(x)
    assert bool(values[0].isnan().all())
    assert torch.equal(values[1], x[1])


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0)], ids=str)
@pytest.mark.parametrize("peak", [7.0, -7.0])
def test_percentiles_of_nearly_nothing_but_zeros_keep_the_peak(
    granularity: PerTensor | PerChannel, peak: float
) -> None:
    """Whether all is zero is decided by the data: a map with one peak has a grid that holds it."""
    x = torch.zeros(2, 100_000)
    x[0, 3] = peak
    observer = PercentileObserver("act_in", DType.int(8), granularity=granularity)
    observer.collect(x)
    assert observer.fake_quant(x)[0, 3].item() == pytest.approx(peak, rel=1 / 127)
    if granularity == PerChannel(0):
        assert observer.params.scale[1].item() == 1.0
