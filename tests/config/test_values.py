"""Number formats, grids and specs: what they accept, and how they refuse the rest."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import pytest

from tico_config import (
    FP8,
    INT32,
    MXFP4,
    MXFP6,
    MXINT8,
    NVFP4,
    ConfigError,
    DType,
    EMASpec,
    EntropySpec,
    GPTQConfig,
    MSESpec,
    NoQuant,
    PercentileSpec,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    PTQConfig,
    QScheme,
    QuantSpec,
    RotationConfig,
    SmoothQuantConfig,
    affine,
    no_quant,
)

ANYTHING_ELSE: list[tuple[Callable[[], object], str]] = [
    (lambda: DType.int(0), "bits"),
    (lambda: DType.int(1), "bits"),
    (lambda: DType.int(-3), "bits"),
    (lambda: DType.int(33), "bits"),
    (lambda: DType.uint(17), "bits"),
    (lambda: DType.uint(32), "bits"),
    (lambda: DType(True), "bits"),
    (lambda: DType(8, 1), "signed"),  # type: ignore[arg-type]
    (lambda: PerChannel(1.0), "axis"),  # type: ignore[arg-type]
    (lambda: PerChannel(8), "axis"),
    (lambda: PerGroup(0, 0), "size"),
    (lambda: PerGroup(-9, 4), "axis"),
    (lambda: EMASpec(1.0), "momentum"),
    (lambda: EMASpec(math.nan), "momentum"),
    (lambda: PercentileSpec(50.0, 40.0), "lower"),
    (lambda: PercentileSpec(0.0, 100.1), "upper"),
    (lambda: PercentileSpec(math.nan, 99.0), "lower"),
    (lambda: MSESpec(0), "steps"),
    (lambda: EntropySpec(10_001), "steps"),
    (lambda: FP8("e3m4"), "element"),  # type: ignore[arg-type]
    (lambda: MXFP6(4), "element"),  # type: ignore[arg-type]
    (lambda: affine(DType.uint(8), QScheme.PER_TENSOR_SYMM), "qscheme"),
    (lambda: affine(DType.int(8), QScheme.PER_TENSOR_SYMM, granularity=PerChannel(0)), "granularity"),
    (lambda: affine(DType.int(8), on_nonfinite="drop"), "on_nonfinite"),  # type: ignore[arg-type]
    (lambda: QuantSpec(observer=NoQuant(), on_nonfinite="ignore"), "on_nonfinite"),
    (lambda: affine("int8"), "dtype"),  # type: ignore[arg-type]
    (lambda: QuantSpec(dtype=DType.int(8), observer=NoQuant()), "dtype"),
    (lambda: affine(FP8(), QScheme.PER_TENSOR_ASYMM), "qscheme"),
    (lambda: affine(FP8(), QScheme.PER_TENSOR_SYMM, granularity=PerChannel(0)), "granularity"),
    (lambda: affine(FP8(), observer=EntropySpec()), "observer"),
    (lambda: affine(MXFP4(), QScheme.PER_TENSOR_SYMM), "qscheme"),
    (lambda: affine(MXFP4(), granularity=PerGroup(-1, 16)), "granularity"),
    (lambda: affine(NVFP4(), granularity=PerToken()), "granularity"),
    (lambda: affine(MXINT8(), observer=EMASpec()), "observer"),
    (lambda: GPTQConfig(bits=64), "bits"),
    (lambda: GPTQConfig(group_size=0), "group_size"),
    (lambda: GPTQConfig(group_size=-1), "group_size"),
    (lambda: GPTQConfig(damping=0), "damping"),
    (lambda: GPTQConfig(damping=1.5), "damping"),
    (lambda: GPTQConfig(damping=math.inf), "damping"),
    (lambda: GPTQConfig(symmetric=1), "symmetric"),  # type: ignore[arg-type]
    (lambda: GPTQConfig(token_weights="attention"), "token_weights"),
    (lambda: GPTQConfig(token_weights=()), "token_weights"),
    (lambda: GPTQConfig(token_weights=(200, math.nan)), "token_weights"),
    (lambda: GPTQConfig(token_weights=(-1,)), "token_weights"),
    (lambda: SmoothQuantConfig(alpha=7), "alpha"),
    (lambda: RotationConfig(seed=-1), "seed"),
    (lambda: RotationConfig(matrix="haar"), "matrix"),  # type: ignore[arg-type]
    (lambda: RotationConfig(tied_embeddings=False), "tied_embeddings"),  # type: ignore[arg-type]
    (lambda: SmoothQuantConfig(alpha=-0.1), "alpha"),
    (lambda: SmoothQuantConfig(alpha=math.nan), "alpha"),
    (lambda: SmoothQuantConfig(alpha="maybe"), "alpha"),
    (lambda: PTQConfig(weight=DType.int(8)), "weight"),  # type: ignore[arg-type]
    (lambda: PTQConfig(strict_wrap=None), "strict_wrap"),  # type: ignore[arg-type]
    (lambda: PTQConfig(variant=None), "variant"),  # type: ignore[arg-type]
    (lambda: PTQConfig(overrides=[1]), "overrides"),
]


@pytest.mark.parametrize(("make", "field"), ANYTHING_ELSE)
def test_wrong_values_are_refused_when_they_are_made(make: Callable[[], object], field: str) -> None:
    """The error names the field and says what was expected, before any model is seen."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.field == field
    assert caught.value.expected
    assert field in str(caught.value)


def test_every_problem_is_reported_at_once() -> None:
    """Three wrong fields are three problems of one error."""
    with pytest.raises(ConfigError) as caught:
        GPTQConfig(bits=1, group_size=0, damping=-1.0)
    assert [problem.field for problem in caught.value.problems] == ["bits", "group_size", "damping"]


@pytest.mark.parametrize(("alpha", "kept"), [(0, 0.0), (1, 1.0), (0.0, 0.0), ("auto", "auto")])
def test_limits_of_alpha_are_accepted(alpha: float, kept: object) -> None:
    """Both ends of the interval are in it, and whole numbers are the floats they stand for."""
    assert SmoothQuantConfig(alpha=alpha).alpha == kept
    assert SmoothQuantConfig(alpha=alpha) == SmoothQuantConfig(alpha=alpha)


@pytest.mark.parametrize(
    ("dtype", "qmin", "qmax", "text"),
    [
        (DType.int(2), -2, 1, "int2"),
        (DType.uint(2), 0, 3, "uint2"),
        (DType.int(16), -32768, 32767, "int16"),
        (DType.uint(16), 0, 65535, "uint16"),
        (INT32, -(2**31), 2**31 - 1, "int32"),
    ],
)
def test_formats_know_their_codes(dtype: DType, qmin: int, qmax: int, text: str) -> None:
    """The smallest and the largest code, and the usual name."""
    assert (dtype.qmin, dtype.qmax, str(dtype)) == (qmin, qmax, text)


def test_signed_formats_are_symmetric_unless_told_otherwise() -> None:
    """A spec without a scheme takes it from the format."""
    assert affine(DType.int(8)).is_symmetric
    assert not affine(DType.uint(8)).is_symmetric
    assert not affine(DType.int(8), QScheme.PER_TENSOR_ASYMM).is_symmetric


@pytest.mark.parametrize(
    ("spec", "granularity"),
    [
        (affine(DType.int(8)), PerChannel(1)),
        (affine(DType.int(8), QScheme.PER_TENSOR_SYMM), PerTensor()),
        (affine(DType.int(8), QScheme.PER_CHANNEL_SYMM), PerChannel(1)),
        (affine(DType.int(8), granularity=PerGroup(-1, 32)), PerGroup(-1, 32)),
        (affine(DType.int(8), granularity=PerToken()), PerToken()),
        (affine(FP8()), PerChannel(1)),
        (affine(MXFP4()), PerGroup(-1, 32)),
        (affine(NVFP4(), granularity=PerGroup(0, 16)), PerGroup(0, 16)),
    ],
)
def test_granularity_comes_from_the_most_explicit_source(spec: QuantSpec, granularity: object) -> None:
    """The spec's own, else its scheme's, else the point's."""
    assert spec.granularity_or(PerChannel(1)) == granularity


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (no_quant(), "float"),
        (affine(MXFP4()), "mxfp4"),
        (affine(MXFP6("e3m2"), granularity=PerGroup(0, 32)), "mxfp6_e3m2"),
        (affine(FP8(), granularity=PerToken()), "fp8_e4m3 per token"),
        (affine(DType.int(4), granularity=PerGroup(-1, 32)), "int4 symmetric group 32"),
        (affine(DType.int(8), granularity=PerChannel(1)), "int8 symmetric per channel 1"),
        (affine(DType.uint(8), granularity=PerToken()), "uint8 asymmetric per token"),
        (affine(DType.uint(8), granularity=PerTensor()), "uint8 asymmetric per tensor"),
    ],
)
def test_specs_have_short_names(spec: QuantSpec, text: str) -> None:
    """A report can print a spec in a few words."""
    assert str(spec) == text


def test_configs_are_frozen_to_the_bottom() -> None:
    """Neither fields nor overrides can be set after construction, and what was passed in is not kept."""
    rules = {"a": {"bits": 8}}
    config = GPTQConfig(overrides=rules)
    rules["a"]["bits"] = 2
    rules["b"] = {"bits": 3}
    assert config == GPTQConfig(overrides={"a": {"bits": 8}})
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.bits = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.overrides["a"] = {}  # type: ignore[index]


def test_configs_that_differ_deep_inside_are_different() -> None:
    """Equality and hash look at every nested field."""
    one = PTQConfig(overrides={"a": affine(DType.int(8), observer=PercentileSpec(0.0, 99.0))})
    other = PTQConfig(overrides={"a": affine(DType.int(8), observer=PercentileSpec(0.0, 99.5))})
    assert one != other
    assert len({one, other, attrs.evolve(one)}) == 2


def test_long_findings_are_shortened_in_messages() -> None:
    """A name of a million characters does not make a message of a million characters."""
    with pytest.raises(ConfigError) as caught:
        GPTQConfig(overrides={"a": {"b" * 10**6: 1}})
    assert len(str(caught.value)) < 20_000
