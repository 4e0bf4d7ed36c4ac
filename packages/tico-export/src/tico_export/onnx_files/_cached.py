"""Language models with their keys and values as inputs and outputs, so that a runtime can generate."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Final, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import attrs
import torch
from torch import Tensor, nn
from typing_extensions import Self

from tico_config import Found, Problem
from tico_config.validation import check_choice, refuse
from tico_export.protocol import Example, require_extra
from tico_export.source import Source

_BATCH, _TOKENS, _PAST = 2, 3, 4  # of what a program is traced with; 0 and 1 would be taken for constants
_PARTS: Final = ("key", "value")
_PLAIN: Final = "DynamicLayer"
_KEPT: Final = "logits_to_keep"

Logits: TypeAlias = Literal["last", "all"]
"""Of which tokens of a call a file gives the logits."""


@runtime_checkable
class _Layer(Protocol):
    """The keys and values of one layer in a cache of transformers, each (batch, heads, tokens, features)."""

    keys: Tensor
    values: Tensor


class _Cache(Protocol):
    """A cache of transformers."""

    layers: Sequence[_Layer]

    def update(self, keys: Tensor, values: Tensor, layer: int, /) -> object:
        """Append keys and values to those of a layer."""


@attrs.frozen(kw_only=True)
class CacheShape:
    """What a model keeps of each token.

    Attributes:
        layers: how many layers keep keys and values.
        heads: how many heads each of them has.
        features: how many features a head has.
    """

    layers: int
    heads: int
    features: int

    @classmethod
    def of(cls, source: Source) -> Self:
        """Return that of a model that has no `cache_problems`."""
        config = source.config
        heads: int = getattr(config, "num_attention_heads")  # noqa: B009
        hidden: int = getattr(config, "hidden_size")  # noqa: B009
        return cls(
            layers=len(_layers(config)),
            heads=getattr(config, "num_key_value_heads", None) or heads,
            features=getattr(config, "head_dim", None) or hidden // heads,
        )

    def input_names(self) -> list[str]:
        """Return the names of the inputs, as optimum gives them: those of a call, and keys and values."""
        return ["input_ids", "attention_mask", "position_ids", *self._names("past_key_values")]

    def output_names(self) -> list[str]:
        """Return the names of the outputs: logits, and keys and values with those of the call."""
        return ["logits", *self._names("present")]

    def kept(self) -> dict[str, str]:
        """Return the names of keys and values that go in, with those that they have as they come out."""
        return dict(zip(self._names("past_key_values"), self._names("present"), strict=True))

    def _names(self, prefix: str) -> list[str]:
        return [f"{prefix}.{layer}.{part}" for layer in range(self.layers) for part in _PARTS]

    def empty(self, batch: int, tokens: int = 0) -> list[Tensor]:
        """Return keys and values of `tokens` tokens, zeros (batch, heads, tokens, features)."""
        return [torch.zeros(batch, self.heads, tokens, self.features) for _ in self._names("")]

    def example(self) -> Example:
        """Return inputs that a program can be traced with; batch, tokens and earlier tokens vary.

        The batch of all inputs is one, so that the number of heads follows from no quotient of several.
        """
        auto, batch, seen = torch.export.Dim.AUTO, torch.export.Dim("batch"), torch.export.Dim("past")
        tokens_axis = torch.export.Dim("tokens")
        tokens = torch.ones(_BATCH, _TOKENS, dtype=torch.int64)
        mask = torch.ones(_BATCH, _PAST + _TOKENS, dtype=torch.int64)
        places = torch.arange(_PAST, _PAST + _TOKENS).expand(_BATCH, -1)
        past = self.empty(_BATCH, _PAST)
        read, kept = {0: batch, 1: tokens_axis}, {0: batch, 2: seen}
        axes = (read, {0: batch, 1: auto}, read, [kept] * len(past))
        return Example(args=(tokens, mask, places, past), dynamic_shapes=axes)


class WithCache(nn.Module):
    """A language model that is given keys and values as tensors, and gives them back with its own.

    Args:
        model: the language model.
        logits: those of the ``last`` token, before which the head computes nothing, or of ``all``.
    """

    def __init__(self, model: nn.Module, logits: Logits) -> None:
        super().__init__()
        self.model = model
        self.last = logits == "last"
        self.keeps = self.last and _KEPT in inspect.signature(model.forward).parameters
        self.cache_name = _cache_name(model)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> list[Tensor]:
        """Return logits (batch, tokens, words), and keys and values (batch, heads, all tokens, features)."""
        cache: _Cache = require_extra("transformers", "onnx").DynamicCache()
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(keys, values, layer)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=True,
            **{self.cache_name: cache},
            **{_KEPT: 1} if self.keeps else {},
        )
        logits: Tensor = output.logits[:, -1:] if self.last else output.logits
        return [logits, *(each for layer in cache.layers for each in (layer.keys, layer.values))]


def check_logits(logits: object) -> None:
    """Refuse what is none of `Logits`.

    Raises:
        ConfigError: it is another value.
    """
    refuse(check_choice("logits", logits, get_args(Logits)))


def cache_problems(source: Source) -> Iterator[Problem]:
    """Yield why keys and values of a model cannot be inputs and outputs: not all layers have them."""
    config = source.config
    layers = [] if config is None or not _cache_name(source.model) else _layers(config)
    if not layers or any(each != _PLAIN for each in layers):
        kinds = ", ".join(sorted(set(layers))) or "none"
        yield Problem(
            field="cache",
            value=Found(kinds),
            expected="a language model whose layers all keep the keys and values of all tokens",
            sentence=f"the layers of the model keep {kinds}, and a file has keys and values of all tokens",
            remedy="use cache=False",
        )


def _cache_name(model: nn.Module) -> str:
    """Return by which name a model takes its cache, `cache` since transformers 5.24; "" if it takes none."""
    named = inspect.signature(model.forward).parameters
    return next((each for each in ("cache", "past_key_values") if each in named), "")


def _layers(config: object) -> list[str]:
    """Return the classes of what each layer keeps, by the cache that transformers makes for a config."""
    cache: _Cache = require_extra("transformers", "onnx").DynamicCache(config=config)
    return [type(each).__name__ for each in cache.layers]
