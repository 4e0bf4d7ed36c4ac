"""Whatever a config or a spec is given, by whatever name: it is taken, or refused with a `ConfigError`."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import ClassVar, TypeVar

import attrs
import numpy as np
import pytest
import torch

from tico_config import (
    FP8,
    MXFP6,
    MXFP8,
    AWQConfig,
    BaseConfig,
    BlockTuneConfig,
    CLEConfig,
    ConfigError,
    DType,
    EMASpec,
    EntropySpec,
    GPTQConfig,
    HessianMSESpec,
    HistogramSpec,
    HQQConfig,
    MinMaxSpec,
    ModuleConfig,
    MSESpec,
    NoQuant,
    PercentileSpec,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    PT2EConfig,
    PTQConfig,
    QScheme,
    QuantSpec,
    RotationConfig,
    ScaleTuneConfig,
    SmoothQuantConfig,
    SpecConfig,
    affine,
    from_json,
    to_json,
)

CONFIGS = (
    GPTQConfig,
    PTQConfig,
    PT2EConfig,
    SmoothQuantConfig,
    RotationConfig,
    ScaleTuneConfig,
    AWQConfig,
    HQQConfig,
    CLEConfig,
    BlockTuneConfig,
    BaseConfig,
    ModuleConfig,
    SpecConfig,
)
SPECS = (
    *(QuantSpec, DType, PerTensor, PerChannel, PerGroup, PerToken),
    *(
        MinMaxSpec,
        EMASpec,
        HistogramSpec,
        PercentileSpec,
        MSESpec,
        HessianMSESpec,
        EntropySpec,
        MXFP6,
        MXFP8,
        FP8,
        NoQuant,
    ),
)
FIELDS = [(kind, field.name) for kind in (*CONFIGS, *SPECS) for field in attrs.fields(kind)]


class _NoEquality:
    """A value that cannot be compared, nor hashed."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError


class _NoText:
    """A value that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


class _NoHash:
    """A value whose hash fails with an error of its own."""

    def __hash__(self) -> int:
        raise ValueError


def _nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


def _endless() -> tuple[object, object]:
    items: list[object] = []
    items.append(items)
    table: dict[str, object] = {}
    table["a"] = table
    return items, table


def _values() -> Iterator[object]:
    """Yield what people, files and programs put into fields."""
    yield from (
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        10**5000,
        -(10**400),
        0.0,
        -0.0,
        0.5,
        math.nan,
        math.inf,
        -math.inf,
    )
    yield from ("", "a", "auto", "\ud800", "x" * 10**5, b"", b"a", 1j, Ellipsis, object(), object, int, type)
    yield from ([], [1], (), (1,), (True,), (math.nan,), {}, {"a": 1}, {1: 2}, {None: 1}, {"": 1}, set(), {1})
    yield from (
        np.zeros(3),
        np.zeros(()),
        np.array([1, 2]),
        np.array("auto"),
        np.float32(0.5),
        np.float64(0.5),
    )
    yield from (
        np.float64("nan"),
        np.int64(4),
        np.bool_(True),
        np.str_("auto"),
        torch.zeros(3),
        torch.tensor(4),
    )
    yield from (
        _NoEquality(),
        _NoText(),
        _NoHash(),
        *_endless(),
        _nested(40),
        _nested(5000),
        iter([]),
        range(3),
    )
    yield from ({"a": value} for value in ({}, [], np.zeros(3), _NoEquality(), _nested(5000)))
    yield from ({"a": {"bits": value}} for value in (np.zeros(3), _NoEquality(), True, 10**5000))
    yield from (
        {"re:(": {"bits": 4}},
        {"x": (None,)},
        {"x": ("a b",)},
        {"x": {0: "batch"}},
        {"x": {10**9: "b"}},
    )
    yield from (
        DType.int(8),
        DType,
        affine(DType.int(8)),
        MinMaxSpec(),
        MinMaxSpec,
        PerChannel(0),
        GPTQConfig(),
    )


T = TypeVar("T")


def _attempted(action: Callable[[], T]) -> T | ConfigError:
    """Return what `action` gives, or its refusal; any other error is raised."""
    try:
        return action()
    except ConfigError as error:
        return error


@pytest.mark.parametrize(
    ("kind", "field"), FIELDS, ids=[f"{kind.__name__}.{field}" for kind, field in FIELDS]
)
def test_any_value_of_any_field_is_taken_or_refused(kind: type, field: str) -> None:
    """No error of Python comes out, neither then nor from what is done with the value that was taken."""
    for value in _values():
        given: Mapping[str, object] = {"bits": 8, field: value} if kind is DType else {field: value}
        made = _attempted(partial(kind, **given))
        assert repr(made)
        assert str(made)
        if not isinstance(made, ConfigError):
            assert made == kind(**given)
            assert hash(made) == hash(kind(**given))
        if isinstance(made, BaseConfig):
            text = _attempted(partial(to_json, made))
            assert (
                str(text.field).startswith("$") if isinstance(text, ConfigError) else from_json(text) == made
            )


@pytest.mark.parametrize("kind", [*CONFIGS, *SPECS])
def test_defaults_are_taken(kind: type) -> None:
    """Each field of a value takes the value that it has."""
    made: attrs.AttrsInstance = DType(8) if kind is DType else kind()
    for field in attrs.fields(type(made)):
        assert (
            kind(**({"bits": 8} if kind is DType else {}) | {field.name: getattr(made, field.name)}) == made
        )


FOREIGN: dict[tuple[type, str], str] = {
    (GPTQConfig, "weight_bits"): "bits",
    (GPTQConfig, "groupsize"): "group_size",
    (GPTQConfig, "percdamp"): "damping",
    (GPTQConfig, "dampening_frac"): "damping",
    (GPTQConfig, "actorder"): "act_order",
    (GPTQConfig, "desc_act"): "act_order",
    (GPTQConfig, "sym"): "symmetric",
    (GPTQConfig, "weight_bits_overrides"): "overrides",
    (GPTQConfig, "static_group"): "static_groups",
    (PTQConfig, "default_dtype"): "activation",
    (PTQConfig, "default_qscheme"): "activation",
    (PTQConfig, "wrapper_variant"): "variant",
    (PTQConfig, "weight_bits"): "weight",
    (QuantSpec, "default_dtype"): "dtype",
    (QuantSpec, "sym"): "qscheme",
    (SmoothQuantConfig, "smoothing_strength"): "alpha",
    (SmoothQuantConfig, "ignore"): "overrides",
    (AWQConfig, "q_group_size"): "group_size",
    (AWQConfig, "w_bit"): "bits",
    (BlockTuneConfig, "iters"): "steps",
    (GPTQConfig, "wbits"): "bits",
    (GPTQConfig, "quantize_lm_head"): "overrides",
    (GPTQConfig, "dynamic"): "overrides",
    (GPTQConfig, "gptaq"): "asymmetric",
    (GPTQConfig, "offload_hessians"): "gram_memory",
    (GPTQConfig, "zero_point"): "symmetric",
    (PTQConfig, "weight_dtype"): "weight",
    (PTQConfig, "norm_weight"): "overrides",
    (SmoothQuantConfig, "custom_alpha_map"): "overrides",
    (CLEConfig, "pairs"): "mappings",
    (CLEConfig, "max_iter"): "sweeps",
    (RotationConfig, "init_method"): "matrix",
    (HQQConfig, "lp_nrom"): "lp_norm",
    (PT2EConfig, "operator"): "operators",
    (EMASpec, "momentun"): "momentum",
}


@pytest.mark.parametrize(("kind", "name"), FOREIGN, ids=[f"{kind.__name__}.{name}" for kind, name in FOREIGN])
def test_names_that_are_no_fields_are_answered_with_the_nearest(kind: type, name: str) -> None:
    """A typing error, or the name that another library gives the field."""
    with pytest.raises(ConfigError) as caught:
        kind(**{name: 1})
    owner, meant = kind.__name__, FOREIGN[kind, name]
    assert str(caught.value) == f"{owner} has no field {name!r}; the nearest is {meant!r}."
    assert caught.value.field == name


@pytest.mark.parametrize("bias", [affine(DType.int(8)), affine(DType.int(32), QScheme.PER_CHANNEL_SYMM)])
def test_biases_are_int32_or_float(bias: QuantSpec) -> None:
    """Their scale follows from others, so that a spec has nothing more to say."""
    with pytest.raises(ConfigError, match=r"bias.*affine\(INT32\), or no_quant\(\)"):
        PT2EConfig(bias=bias)


def test_foreign_names_in_overrides_are_answered_too() -> None:
    """A rule has the fields of its config."""
    with pytest.raises(ConfigError, match=r"overrides\['a'\] names 'percdamp'.*the nearest is 'damping'"):
        GPTQConfig(overrides={"a": {"percdamp": 0.1}})


INSTEAD: dict[tuple[type, str], str] = {
    (GPTQConfig, "block_size"): "it changes no result here; leave it out",
    (GPTQConfig, "config_groups"): "set the width, the groups and the symmetry by fields of their own",
    (GPTQConfig, "dataset"): r"pass the data to calibrate\(model, batches\)",
    (GPTQConfig, "pack_dtype"): "choose the format of a file when it is exported",
    (
        HQQConfig,
        "dtype",
    ): "for a format of floating-point elements take GPTQConfig, AWQConfig or BlockTuneConfig",
    (PTQConfig, "model_args"): "leave it out, sizes are read from the model",
    (SmoothQuantConfig, "acts_from"): "leave it out, what the layers read decides",
}


@pytest.mark.parametrize(("kind", "name"), INSTEAD, ids=[f"{kind.__name__}.{name}" for kind, name in INSTEAD])
def test_names_without_a_counterpart_are_answered_with_what_to_do(kind: type, name: str) -> None:
    """Nobody is sent to a field whose name is similar and whose meaning is not."""
    with pytest.raises(ConfigError, match=f"has no field '{name}'; {INSTEAD[kind, name]}"):
        kind(**{name: 1})


@pytest.mark.parametrize("value", [{"dtype": DType.int(16)}, affine(DType.int(16)), {"act_in": {"bits": 8}}])
@pytest.mark.parametrize("kind", [PTQConfig, GPTQConfig])
def test_nested_overrides_are_answered_with_a_path(kind: type, value: object) -> None:
    """The keys of overrides are whole paths; TICO's are nested."""
    with pytest.raises(ConfigError, match=r"'q_proj'.*overrides are not nested, write each path"):
        kind(overrides={"model.layers.0": {"q_proj": value}})


def test_names_like_no_field_are_answered_with_all() -> None:
    """All names that are wrong are reported at once."""
    with pytest.raises(ConfigError) as caught:
        GPTQConfig(foo=1, qqq=2)  # type: ignore[call-arg]
    assert [problem.field for problem in caught.value.problems] == ["foo", "qqq"]
    assert "the fields are overrides, target, bits, group_size" in str(caught.value)
    with pytest.raises(ConfigError, match="it has no fields"):
        NoQuant(foo=1)  # type: ignore[call-arg]


def test_names_are_checked_in_changed_values_too() -> None:
    """`attrs.evolve` makes a new value, by the same names."""
    with pytest.raises(ConfigError, match="the nearest is 'bits'"):
        attrs.evolve(GPTQConfig(), weight_bits=8)  # type: ignore[call-arg]


def test_values_without_a_name_are_refused_where_fields_have_names() -> None:
    """A config takes its fields by name; a spec takes as many values as it has fields."""
    with pytest.raises(
        ConfigError, match=r"GPTQConfig: expected every field by its name, got 1; .*overrides="
    ):
        GPTQConfig(4)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="DType: expected at most 2 values without a name, got 3"):
        DType(8, True, 3)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="DType needs bits"):
        DType(signed=True)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "value", [GPTQConfig(bits=3), PTQConfig(), affine(DType.int(8)), DType.int(4), NoQuant()]
)
def test_checked_values_are_copied_and_pickled(value: object) -> None:
    """Copies are made without names, and are equal."""
    for again in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):  # noqa: S301
        assert again == value


def test_class_that_attrs_has_not_made_is_told() -> None:
    """Its fields are declared, and yet no fields."""

    class PlainConfig(ModuleConfig):
        name: ClassVar[str] = "plain"
        bits: int = 4

    with pytest.raises(ConfigError, match=r"declares bits, but .*; write @attrs.frozen\(kw_only=True\)"):
        PlainConfig(bits=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("config", [GPTQConfig(overrides={"*": {"bits": 3}}), PTQConfig(), PT2EConfig()])
@pytest.mark.parametrize("path", [None, 3, b"a", np.zeros(2)], ids=str)
def test_paths_are_text(config: BaseConfig, path: str) -> None:
    """Anything else is refused by `resolve`."""
    with pytest.raises(ConfigError) as caught:
        config.resolve(path)
    assert caught.value.field == "path"
