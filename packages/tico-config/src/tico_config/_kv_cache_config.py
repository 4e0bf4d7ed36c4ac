"""The config of the keys and values that a language model keeps while it reads and writes text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Final

import attrs

from tico_config._dtype import UINT4, DType
from tico_config._float_format import FP8
from tico_config._grid import Granularity, PerChannel, PerGroup, PerTensor, PerToken, QScheme
from tico_config._module_config import ModuleConfig
from tico_config._observer_specs import MinMaxSpec
from tico_config._problem import Found, Problem
from tico_config._quant_spec import QuantSpec, affine
from tico_config._registry import register_config
from tico_config.validation import check_integer

_LARGEST: Final = 8
_HEADS, _TOKENS, _CHANNELS = -3, -2, -1
_AXES: Final = 4
_STATIC: Final = "PerTensor(), PerChannel(axis=1) for each head, or PerChannel(axis=-1) for each channel"
_DYNAMIC: Final = (
    "PerToken(), PerGroup(axis=-1, size=…) for channels of a token, or PerGroup(axis=-2, size=…) for tokens"
)


def _four_bits() -> QuantSpec:
    return affine(UINT4)


@register_config
@attrs.frozen(kw_only=True)
class KVCacheConfig(ModuleConfig):
    """Keys and values of attention kept as integers or as FP8, in a cache of transformers' own kind.

    Keys and values are tensors (batch, heads, tokens, channels). They are quantized as the cache gets them:
    keys after the rotation by positions, as all models of transformers hand them over, and as runtimes
    store them. Before the rotation keys have grids that fit better (KVQuant, Hooper et al. 2024,
    arXiv 2401.18079, section 3.2), but every one would have to be rotated again at every step. Keys have a
    few large channels, and values have none: so keys get a grid for each channel of some tokens, and values
    one for some channels of each token (KIVI, Liu et al. 2024, arXiv 2402.02750, section 3).

    The granularity of `key` and `value` is over these four axes:

    ==========================  ======================================================  ==========
    granularity                 one grid for                                            `static`
    ==========================  ======================================================  ==========
    ``PerToken()``              each token of each head                                 no
    ``PerGroup(-1, size)``      `size` channels of each token of each head              no
    ``PerGroup(-2, size)``      each channel of each head, for `size` tokens            no
    ``PerTensor()``             the keys (values) of a layer                            yes
    ``PerChannel(1)``           each head                                               yes
    ``PerChannel(-1)``          each channel of each head                               yes
    ==========================  ======================================================  ==========

    `FP8` keeps small values and large ones with the same relative precision, so that one scale is enough:
    runtimes that have such a cache have one for each layer, its `k_scale` and `v_scale`.

    Attention reads what the cache holds, also of the tokens that are being read: the values that codes
    stand for, and floats of the most recent tokens. So a text that is read at once meets nearly all of its
    tokens as codes; read token by token, it meets those just before as floats.

    A dynamic grid comes from the values that it is for; its scale is rounded up to bfloat16. A static one
    comes from the smallest and the largest value in all calibration data; what is beyond saturates.

    Where PTQ has given the points ``key`` and ``value`` of attention grids too, values lie on these first;
    leave the points out by
    ``PTQConfig(overrides={"*.key": no_quant(), "*.value": no_quant()})`` to round once.

    An override has the path of an attention module, such as ``"model.layers.0.self_attn"``: it changes
    fields for that layer, or leaves its cache in float by `no_quant()`.

    Attributes:
        key: integers of 2 to 8 bits, `FP8`, or `no_quant()`. Without a granularity, grids of integers are per
            channel, in groups of `group_size` tokens or static, and those of FP8 per token, or static per
            tensor.
        value: the same, but that without a granularity there is one grid of integers for `group_size`
            channels of each token, or a static one for each head.
        static: grids come from calibration data, not from the text that is read.
        group_size: see `key` and `value`.
        residual_length: so many of the most recent tokens at least stay as floats. Tokens become codes
            in whole groups, so that with groups of tokens up to ``size - 1`` more do.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> config = KVCacheConfig(key=affine(DType.int(8)), value=affine(DType.int(8)))
    >>> config.key_spec().granularity, config.value_spec().granularity
    (PerGroup(axis=-2, size=32), PerGroup(axis=-1, size=32))
    >>> KVCacheConfig(key=affine(FP8()), value=affine(FP8()), static=True).key_spec().granularity
    PerTensor()
    """

    name: ClassVar[str] = "kv_cache"
    fixed_fields: ClassVar[frozenset[str]] = frozenset({"overrides"})

    key: QuantSpec = attrs.field(factory=_four_bits)
    value: QuantSpec = attrs.field(factory=_four_bits)
    static: bool = False
    group_size: int = 32
    residual_length: int = 128

    def field_problems(self) -> Sequence[Problem | None]:
        """Return what no cache can hold, and which numbers are out of range."""
        neither = None
        if not (self.key.is_quantized or self.value.is_quantized):
            neither = Problem(field="value", value=self.value, expected="quantized where key is not")
        return [
            *self._spec_problems("key", self.key),
            *self._spec_problems("value", self.value),
            neither,
            check_integer("group_size", self.group_size, 1, 2**16),
            check_integer("residual_length", self.residual_length, 0),
        ]

    def key_spec(self) -> QuantSpec:
        """Return `key` with the granularity that it gets."""
        return self._resolved(self.key, PerChannel(axis=_CHANNELS), _TOKENS)

    def value_spec(self) -> QuantSpec:
        """Return `value` with the granularity that it gets."""
        return self._resolved(self.value, PerChannel(axis=_HEADS), _CHANNELS)

    def _resolved(self, spec: QuantSpec, static: Granularity, axis: int) -> QuantSpec:
        """Return `spec` with a granularity: its own with axes from the last one, else the usual one.

        For integers that is `static`, or one for groups along `axis`.
        """
        if not spec.is_quantized:
            return spec
        if isinstance(spec.dtype, FP8):
            usual: Granularity = PerTensor() if self.static else PerToken()
        else:
            usual = static if self.static else PerGroup(axis=axis, size=self.group_size)
        found = spec.granularity or usual
        if isinstance(found, PerChannel | PerGroup) and found.axis >= 0:
            found = attrs.evolve(found, axis=found.axis - _AXES)
        return _at(found, spec)

    def _spec_problems(self, name: str, spec: QuantSpec) -> Iterator[Problem]:
        if not spec.is_quantized:
            return
        if not isinstance(spec.dtype, DType | FP8):
            sentence = f"the cache holds integers or FP8, and {name} asks for {spec}"
            expected = "integers of 2 to 8 bits, or FP8"
            remedy = f"give {name}=affine(FP8()), or affine(DType.int(8)) or fewer bits"
            found = Found(str(spec))
            yield Problem(field=name, value=found, expected=expected, sentence=sentence, remedy=remedy)
            return
        if spec.dtype.bits > _LARGEST:
            yield Problem(field=f"{name}.dtype", value=Found(str(spec.dtype)), expected="of 2 to 8 bits")
        if not isinstance(spec.observer, MinMaxSpec):
            yield Problem(field=f"{name}.observer", value=spec.observer, expected="MinMaxSpec()")
        if spec.on_nonfinite != "error":
            yield Problem(field=f"{name}.on_nonfinite", value=spec.on_nonfinite, expected="'error'")
        if spec.granularity is not None and not self._fits(spec.granularity):
            kind = "static" if self.static else "dynamic"
            expected = f"{_STATIC if self.static else _DYNAMIC}, as grids are {kind}"
            yield Problem(field=f"{name}.granularity", value=spec.granularity, expected=expected)

    def _fits(self, granularity: Granularity) -> bool:
        match granularity:
            case PerTensor():
                return self.static
            case PerToken():
                return not self.static
            case PerChannel(axis=axis):
                return self.static and axis in (1, _HEADS, 3, _CHANNELS)
            case PerGroup(axis=axis):
                return not self.static and axis in (2, _TOKENS, 3, _CHANNELS)


def _at(granularity: Granularity, spec: QuantSpec) -> QuantSpec:
    """Return `spec` at `granularity`, symmetric or not as before."""
    if isinstance(granularity, PerChannel | PerGroup):
        scheme = QScheme.PER_CHANNEL_SYMM if spec.is_symmetric else QScheme.PER_CHANNEL_ASYMM
    else:
        scheme = QScheme.PER_TENSOR_SYMM if spec.is_symmetric else QScheme.PER_TENSOR_ASYMM
    return affine(spec.dtype, scheme, granularity=granularity)
