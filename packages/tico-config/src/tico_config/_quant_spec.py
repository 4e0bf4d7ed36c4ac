"""What is asked for at one quantization point."""

from __future__ import annotations

from typing import Literal

import attrs

from tico_config._dtype import UINT8, DType, MXFormat
from tico_config._grid import Granularity, PerChannel, PerGroup, PerTensor, PerToken, QScheme
from tico_config._named_fields import NamedFields
from tico_config._observer_specs import MinMaxSpec, MXSpec, NoQuant, ObserverSpec
from tico_config._problem import Problem
from tico_config.validation import check_choice, check_instance, refuse


@attrs.frozen(kw_only=True)
class QuantSpec(NamedFields):
    """Format, scheme, granularity and observer of one quantization point.

    `qscheme=None` stands for: symmetric if `dtype` is signed, asymmetric if it is not.
    `on_nonfinite` says whether NaN and infinity in the data are an error, or are left out and counted.
    `granularity=None` stands for what `qscheme` says, else for the point's own: weights per output
    channel, activations per tensor. `MXSpec` and `NoQuant` observers leave the other fields unused, so
    these must keep their defaults: equal meanings are equal values.

    Raises:
        ConfigError: a field has the wrong type, or two fields contradict each other.

    >>> affine(DType.uint(8)).is_symmetric
    False
    """

    dtype: DType = UINT8
    qscheme: QScheme | None = None
    granularity: Granularity | None = None
    observer: ObserverSpec = attrs.field(factory=MinMaxSpec)
    on_nonfinite: Literal["error", "ignore"] = "error"

    def __attrs_post_init__(self) -> None:
        """Validate every field, then what they say together."""
        kinds = (
            check_instance("dtype", self.dtype, DType, "a DType such as DType.uint(8)"),
            check_instance("qscheme", self.qscheme, QScheme | None, "a QScheme or None"),
            check_instance("granularity", self.granularity, Granularity | None, "a Granularity or None"),
            check_instance("observer", self.observer, ObserverSpec, "an observer spec such as MinMaxSpec()"),
            check_choice("on_nonfinite", self.on_nonfinite, ("error", "ignore")),
        )
        refuse(*kinds)
        refuse(*self._contradictions())

    def _contradictions(self) -> list[Problem]:
        if isinstance(self.observer, MXSpec | NoQuant):
            return self._unused_fields()
        found = []
        if self.qscheme is not None and self.qscheme.is_symmetric and not self.dtype.signed:
            remedy = "take a signed dtype or an asymmetric qscheme"
            expected = f"asymmetric for the unsigned {self.dtype}"
            found.append(Problem(field="qscheme", value=self.qscheme, expected=expected, remedy=remedy))
        if self.qscheme is not None and self.granularity is not None:
            per_channel = isinstance(self.granularity, PerChannel | PerGroup)
            if per_channel != self.qscheme.is_per_channel:
                expected = f"one that agrees with qscheme {self.qscheme.value}"
                found.append(Problem(field="granularity", value=self.granularity, expected=expected))
        return found

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
            case MXSpec(format=element):
                return element.value
            case _:
                grid = "" if self.granularity is None else f" {_granularity_name(self.granularity)}"
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
    dtype: DType,
    qscheme: QScheme | None = None,
    *,
    granularity: Granularity | None = None,
    observer: ObserverSpec | None = None,
    on_nonfinite: Literal["error", "ignore"] = "error",
) -> QuantSpec:
    """Return the spec of an integer grid, with a min/max observer unless another is named.

    >>> str(affine(DType.int(8)))
    'int8 symmetric'
    """
    return QuantSpec(
        dtype=dtype,
        qscheme=qscheme,
        granularity=granularity,
        observer=MinMaxSpec() if observer is None else observer,
        on_nonfinite=on_nonfinite,
    )


def mx(format: MXFormat = MXFormat.MXFP8_E4M3, *, axis: int = -1) -> QuantSpec:  # noqa: A002  # MX's word
    """Return the spec of a Microscaling format along `axis`.

    >>> str(mx(MXFormat.MXINT8))
    'mxint8'
    """
    return QuantSpec(observer=MXSpec(format, axis))


def no_quant() -> QuantSpec:
    """Return the spec of a point that stays in floating point.

    >>> no_quant().is_quantized
    False
    """
    return QuantSpec(observer=NoQuant())
