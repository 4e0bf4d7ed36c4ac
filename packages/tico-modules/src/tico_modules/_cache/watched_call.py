"""Calls of a language model whose keys and values are seen, and that compute what they always did."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import attrs
from torch import Tensor, nn

from tico_modules._cache.key_value_cache import CACHE_ARGUMENT, caching_is_on, given_arguments, with_cache

Note: TypeAlias = Callable[[int, Tensor, Tensor], object]
"""Is told the number of a layer, and the keys and values (samples, heads, tokens, channels) that it adds."""


@attrs.frozen(eq=False)
class WatchedCall:
    """A call of a model.

    Attributes:
        args: its arguments by position.
        kwargs: and those by name.
        made: the cache that was made for it alone, or None.
        asked: whether the model would have made a cache.
    """

    args: tuple[object, ...]
    kwargs: dict[str, object]
    made: object = None
    asked: bool = True

    def is_own(self, value: object) -> bool:
        """Tell whether `value` is the cache that was made for the call."""
        return self.made is not None and value is self.made

    def output(self, output: object) -> object:
        """Return what the model would have returned: without a cache that it would not have made."""
        if self.asked or self.made is None:
            return output
        if isinstance(output, tuple):
            return tuple(each for each in output if not self.is_own(each))
        if isinstance(output, Mapping):
            return type(output)(**{name: each for name, each in output.items() if not self.is_own(each)})
        return output


def watched_call(
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    layers: Collection[int],
    note: Note,
) -> WatchedCall:
    """Return a call of `model` that tells `note` of the keys and values of `layers`.

    Raises:
        CalibrationError: the cache among the arguments holds tokens that were not seen, or is of another
            kind than those that grow with the text.
    """
    from tico_modules._cache._transformers import record_in, recording_cache

    given, config = given_arguments(model, args, kwargs), getattr(model, "config", None)
    cache = given.get(CACHE_ARGUMENT)
    if cache is not None:
        record_in(cache, config, layers, note)
        return WatchedCall(args, kwargs)
    made = recording_cache(config, layers, note)
    return WatchedCall(*with_cache(model, args, kwargs, made), made, caching_is_on(model, given))
