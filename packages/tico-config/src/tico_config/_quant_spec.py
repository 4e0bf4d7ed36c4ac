"""What is asked for at one quantization point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import attrs

from tico_config._dtype import UINT8
from tico_config._float_format import FloatFormat, NumberFormat, as_number_format
from tico_config._grid import Granularity, PerChannel, PerGroup, PerTensor, PerToken, QScheme
from tico_config._named_fields import NamedFields
from tico_config._observer_specs import EntropySpec, MinMaxSpec, MSESpec, NoQuant, ObserverSpec
from tico_config._problem import Problem
from tico_config.validation import check_choice, check_instance, refuse

_FORMAT: Final = "a number format such as DType.uint(8) or FP8()"


@attrs.frozen(kw_only=True)
class QuantSpec(NamedFields):
    """Format, scheme, granularity and observer of one quantization point.

    `qscheme=None` stands for: symmetric if `dtype` is signed, asymmetric if it is not.
    `on_nonfinite` says whether NaN and infinity in the data are an error, or are left out and counted.
    `granularity=None` stands for what `qscheme` says, else for the point's own: weights per output
    channel, activations per tensor. A `dtype` of blocks, such as `MXFP4()`, fixes it: each run of as many
    values along an axis, the last one unless `granularity` names another. The class of a floating-point
    format stands for its default. A `NoQuant` observer leaves the other fields unused, so
    these must keep their defaults: equal meanings are equal values.

    Raises:
        ConfigError: a field has the wrong type, or two fields contradict each other.

    >>> from tico_config import DType
    >>> affine(DType.uint(8)).is_symmetric
    False
    """

    dtype: NumberFormat = attrs.field(default=UINT8, converter=as_number_format)
    qscheme: QScheme | None = None
    granularity: Granularity | None = None
    observer: ObserverSpec = attrs.field(factory=MinMaxSpec)
    on_nonfinite: Literal["error", "ignore"] = "error"

    def __attrs_post_init__(self) -> None:
        """Validate every field, then what they say together."""
        kinds = (
            check_instance("dtype", self.dtype, NumberFormat, _FORMAT),
            check_instance("qscheme", self.qscheme, QScheme | None, "a QScheme or None"),
            check_instance("granularity", self.granularity, Granularity | None, "a Granularity or None"),
            check_instance("observer", self.observer, ObserverSpec, "an observer spec such as MinMaxSpec()"),
            check_choice("on_nonfinite", self.on_nonfinite, ("error", "ignore")),
        )
        refuse(*kinds)
        refuse(*self._contradictions())

    def _contradictions(self) -> list[Problem]:
        if isinstance(self.observer, NoQuant):
            return self._unused_fields()
        if isinstance(self.dtype, FloatFormat):
            return list(self._float_contradictions(self.dtype))
        found = []
        if self.qscheme is not None and self.qscheme.is_symmetric and not self.dtype.signed:
            remedy = "take a signed dtype or an asymmetric qscheme"
            expected = f"asymmetric for the unsigned {self.dtype}"
            found.append(Problem(field="qscheme", value=self.qscheme, expected=expected, remedy=remedy))
        if self._scheme_disagrees():
            found.append(Problem(field="granularity", value=self.granularity, expected=self._agreeing()))
        return found

    def _scheme_disagrees(self) -> bool:
        if self.qscheme is None or self.granularity is None:
            return False
        return isinstance(self.granularity, PerChannel | PerGroup) != self.qscheme.is_per_channel

    def _agreeing(self) -> str:
        return f"one that agrees with qscheme {'' if self.qscheme is None else self.qscheme.value}"

    def _float_contradictions(self, dtype: FloatFormat) -> Iterator[Problem]:
        size, found = dtype.block_size, self.granularity
        if self.qscheme is not None and not self.qscheme.is_symmetric:
            expected = f"symmetric for {dtype}, which has no zero point"
            yield Problem(field="qscheme", value=self.qscheme, expected=expected)
        elif self.qscheme is not None and size is not None and not self.qscheme.is_per_channel:
            expected = f"left out, since each block of {size} values of {dtype} has a scale"
            yield Problem(field="qscheme", value=self.qscheme, expected=expected)
        elif self._scheme_disagrees():
            yield Problem(field="granularity", value=found, expected=self._agreeing())
        is_block = isinstance(found, PerGroup) and found.size == size
        if size is not None and found is not None and not is_block:
            expected = f"left out or PerGroup(axis, {size}), the blocks of {dtype}"
            yield Problem(field="granularity", value=found, expected=expected)
        if size is not None and not isinstance(self.observer, MinMaxSpec | MSESpec):
            expected = f"MinMaxSpec() or MSESpec(), from which the scales of {dtype} follow"
            yield Problem(field="observer", value=self.observer, expected=expected)
        elif isinstance(self.observer, EntropySpec):
            expected = f"another than EntropySpec with {dtype}, since it compares integer grids"
            yield Problem(field="observer", value=self.observer, expected=expected)

    def _unused_fields(self) -> list[Problem]:
        kind = type(self.observer).__name__
        defaults = {"dtype": UINT8, "qscheme": None, "granularity": None, "on_nonfinite": "error"}
        given = attrs.asdict(self, recurse=False, filter=lambda a, _: a.name in defaults)
        return [
            Problem(field=name, value=value, expected=f"left out with {kind}, which does not use it")
            for name, value in given.items()
            if value != defaults[name]
        ]

    @property
    def is_quantized(self) -> bool:
        """Whether the point is quantized at all."""
        return not isinstance(self.observer, NoQuant)

    @property
    def is_symmetric(self) -> bool:
        """Whether the zero point is fixed at 0."""
        return self.dtype.signed if self.qscheme is None else self.qscheme.is_symmetric

    def granularity_or(self, default: Granularity) -> Granularity:
        """Return the granularity asked for, or what `default` makes of the scheme."""
        if self.granularity is not None:
            return self.granularity
        if isinstance(self.dtype, FloatFormat) and self.dtype.block_size is not None:
            return PerGroup(axis=-1, size=self.dtype.block_size)
        if self.qscheme is None:
            return default
        if not self.qscheme.is_per_channel:
            return PerTensor()
        return default if isinstance(default, PerChannel | PerGroup) else PerChannel(axis=0)

    def __str__(self) -> str:
        """Return a short name, for example ``uint8 asymmetric``."""
        match self.observer:
            case NoQuant():
                return "float"
            case _:
                grid = "" if self.granularity is None else f" {_granularity_name(self.granularity)}"
                if isinstance(self.dtype, FloatFormat):
                    return f"{self.dtype}{'' if self.dtype.block_size else grid}"
                return f"{self.dtype} {'symmetric' if self.is_symmetric else 'asymmetric'}{grid}"


def _granularity_name(granularity: Granularity) -> str:
    match granularity:
        case PerTensor():
            return "per tensor"
        case PerChannel(axis=axis):
            return f"per channel {axis}"
        case PerGroup(size=size):
            return f"group {size}"
        case PerToken():
            return "per token"


def affine(
    dtype: NumberFormat | type[FloatFormat],
    qscheme: QScheme | None = None,
    *,
    granularity: Granularity | None = None,
    observer: ObserverSpec | None = None,
    on_nonfinite: Literal["error", "ignore"] = "error",
) -> QuantSpec:
    """Return the spec of a grid of integers or floats, with a min/max observer unless another is named.

    >>> from tico_config import FP8, DType
    >>> str(affine(DType.int(8))), str(affine(FP8("e4m3"), granularity=PerToken()))
    ('int8 symmetric', 'fp8_e4m3 per token')
    """
    return QuantSpec(
        dtype=dtype() if isinstance(dtype, type) else dtype,
        qscheme=qscheme,
        granularity=granularity,
        observer=MinMaxSpec() if observer is None else observer,
        on_nonfinite=on_nonfinite,
    )


def no_quant() -> QuantSpec:
    """Return the spec of a point that stays in floating point.

    >>> no_quant().is_quantized
    False
    """
    return QuantSpec(observer=NoQuant())


def is_left_out(change: object) -> bool:
    """Return whether the value `change` of an override is `no_quant()`.

    >>> is_left_out(no_quant()), is_left_out({"bits": 8})
    (True, False)
    """
    return isinstance(change, QuantSpec) and not change.is_quantized
