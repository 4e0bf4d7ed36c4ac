"""Formats of floating-point elements as data: codes, values, and what JSON and specs make of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import attrs
import pytest

from tico_config import (
    FLOAT_FORMATS,
    FP8,
    MXFP4,
    MXFP6,
    MXFP8,
    MXINT8,
    NVFP4,
    ConfigError,
    DType,
    Element,
    FloatFormat,
    GridFormat,
    PerChannel,
    PerGroup,
    PTQConfig,
    UnsupportedError,
    affine,
    from_json,
    integer_format,
    to_json,
)

every_format = pytest.mark.parametrize("dtype", FLOAT_FORMATS, ids=str)


def finite_codes(element: Element) -> list[int]:
    """Return the codes of numbers that others are rounded to, but for that of -0."""
    return [
        code
        for code, value in enumerate(element.values)
        if abs(value) <= element.largest and not (value == 0 and code)
    ]


@pytest.mark.parametrize(
    ("dtype", "largest", "smallest", "bits", "stored"),
    [
        (FP8("e4m3"), 448.0, 2.0**-9, 8, 8),
        (FP8("e5m2"), 57344.0, 2.0**-16, 8, 8),
        (MXFP8("e4m3"), 448.0, 2.0**-9, 8, 8.25),
        (MXFP8("e5m2"), 57344.0, 2.0**-16, 8, 8.25),
        (MXFP6("e2m3"), 7.5, 0.125, 6, 6.25),
        (MXFP6("e3m2"), 28.0, 0.0625, 6, 6.25),
        (MXFP4(), 6.0, 0.5, 4, 4.25),
        (MXINT8(), 127 / 64, 1 / 64, 8, 8.25),
        (NVFP4(), 6.0, 0.5, 4, 4.5),
    ],
    ids=str,
)
def test_formats_are_those_of_their_standards(
    dtype: FloatFormat, largest: float, smallest: float, bits: int, stored: float
) -> None:
    """Largest and smallest number and bits, as OCP FP8, OCP MX 1.0 (table 1 to 5) and NVFP4 give them."""
    element = dtype.encoding
    assert (element.largest, element.smallest) == (largest, smallest)
    assert (dtype.bits, dtype.bits_per_value, dtype.qmin, dtype.qmax) == (bits, stored, 0, 2**bits - 1)


@every_format
def test_each_code_is_that_of_its_value(dtype: FloatFormat) -> None:
    """From codes to values and back, for every number of the format."""
    element = dtype.encoding
    assert [element.code_of(element.values[code]) for code in finite_codes(element)] == finite_codes(element)


@every_format
def test_a_tie_goes_to_the_even_code(dtype: FloatFormat) -> None:
    """Of every two neighbours, the middle has the one whose last bit is 0; beside it, the nearer one."""
    element = dtype.encoding
    ordered = sorted((element.values[code], code) for code in finite_codes(element))
    for (low, below), (high, above) in itertools.pairwise(ordered):
        middle = float((Fraction(low) + Fraction(high)) / 2)
        assert element.code_of(middle) == (below if below % 2 == 0 else above)
        assert element.code_of(math.nextafter(middle, low)) == below
        assert element.code_of(math.nextafter(middle, high)) == above


@every_format
def test_numbers_beyond_the_largest_saturate(dtype: FloatFormat) -> None:
    """Infinity too; NaN is refused, and a zero has the code 0."""
    element = dtype.encoding
    for value in (element.largest * 1.5, 1e300, math.inf):
        assert element.value_of(element.code_of(value)) == element.largest
        assert element.value_of(element.code_of(-value)) == -element.largest
    assert element.code_of(-0.0) == element.code_of(-1e-300) == 0
    with pytest.raises(ConfigError):
        element.code_of(math.nan)
    with pytest.raises(ConfigError):
        element.value_of(2**element.bits)


def test_infinity_and_nan_are_where_the_standards_have_them() -> None:
    """Two infinities and six NaN in e5m2, two NaN in e4m3, and none elsewhere."""
    e5m2, e4m3 = FP8("e5m2").encoding, FP8("e4m3").encoding
    assert [code for code, value in enumerate(e5m2.values) if math.isinf(value)] == [0x7C, 0xFC]
    assert [code for code, value in enumerate(e5m2.values) if math.isnan(value)] == [
        *(0x7D, 0x7E, 0x7F),
        *(0xFD, 0xFE, 0xFF),
    ]
    assert [code for code, value in enumerate(e4m3.values) if not math.isfinite(value)] == [0x7F, 0xFF]
    for dtype in (MXFP6("e2m3"), MXFP6("e3m2"), MXFP4(), MXINT8()):
        assert all(map(math.isfinite, dtype.encoding.values))


@every_format
def test_formats_go_through_json(dtype: FloatFormat) -> None:
    """In specs, in overrides, and in the fields of a spec."""
    config = PTQConfig(
        weight=affine(dtype),
        overrides={"fc": affine(dtype), "head.weight": {"dtype": dtype, "qscheme": None}},
    )
    assert from_json(to_json(config)) == config
    assert config.resolve("head.weight").spec.dtype == dtype


@pytest.mark.parametrize("kind", [FP8, MXFP4, MXFP6, MXFP8, MXINT8, NVFP4])
def test_the_class_stands_for_its_default(kind: type[FloatFormat]) -> None:
    """In `affine` and in the field of a spec, so that `MXFP4` without parentheses is no trap."""
    assert affine(kind) == affine(kind())
    assert attrs.evolve(affine(DType.int(8)), dtype=kind) == affine(kind())


@every_format
def test_blocks_run_along_the_last_axis(dtype: FloatFormat) -> None:
    """The granularity of a block format is its own; FP8 has that of the point."""
    spec = affine(dtype)
    expected = PerChannel(0) if dtype.block_size is None else PerGroup(-1, dtype.block_size)
    assert spec.granularity_or(PerChannel(0)) == expected
    assert spec.is_symmetric
    assert GridFormat.of(spec, PerChannel(0)) == GridFormat(dtype=dtype, granularity=expected, symmetric=True)


def test_names_are_unique() -> None:
    """Files know formats by their names."""
    assert len({str(dtype) for dtype in FLOAT_FORMATS}) == len(FLOAT_FORMATS)


def test_integers_are_told_apart() -> None:
    """What needs integers refuses other formats by one sentence."""
    assert integer_format(DType.int(4)) == DType.int(4)
    with pytest.raises(UnsupportedError, match="mxfp4 has no integer codes"):
        integer_format(MXFP4())


WRONG: list[Callable[[], object]] = [
    lambda: MXFP4("e2m1"),  # type: ignore[call-arg]
    lambda: FP8(variant="e4m3"),  # type: ignore[call-arg]
]


@pytest.mark.parametrize("make", WRONG)
def test_wrong_calls_are_refused(make: Callable[[], object]) -> None:
    """A name or a value too many is a `ConfigError`."""
    with pytest.raises(ConfigError):
        make()
