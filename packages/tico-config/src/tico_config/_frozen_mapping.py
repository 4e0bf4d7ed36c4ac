"""An immutable mapping that can be hashed, compared, pickled and copied."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Iterator, Mapping
from typing import TypeVar

import attrs

V_co = TypeVar("V_co", covariant=True)


@attrs.frozen(repr=False)
class FrozenMapping(Mapping[str, V_co]):
    """A mapping from strings, kept as pairs sorted by key, so that equal contents are equal values.

    >>> FrozenMapping.of({"b": 1, "a": 2})
    {'a': 2, 'b': 1}
    """

    pairs: tuple[tuple[str, V_co], ...] = ()

    @classmethod
    def of(cls, mapping: Mapping[str, V_co]) -> FrozenMapping[V_co]:
        """Return `mapping` frozen."""
        return FrozenMapping(tuple(sorted(mapping.items(), key=lambda pair: pair[0])))

    def __getitem__(self, key: object) -> V_co:
        """Return the value for `key`."""
        index = bisect.bisect_left(self.pairs, key, key=_name) if isinstance(key, str) else len(self.pairs)
        if index < len(self.pairs) and self.pairs[index][0] == key:
            return self.pairs[index][1]
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in sorted order."""
        return (name for name, _ in self.pairs)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self.pairs)

    def __repr__(self) -> str:
        """Return the text of the equal dict."""
        return repr(dict(self.pairs))


def _name(pair: tuple[str, object]) -> str:
    return pair[0]


_DEEPEST = 32
"""As deep as JSON is written and read."""


def freeze(value: object) -> object:
    """Return `value` with every mapping in it frozen and every list a tuple; other values unchanged.

    As the converter of a field it keeps a config hashable whose caller passes a dict or a list. What is
    nested more than 32 deep, or in itself, stays as it is below that, and so is not hashable.

    >>> freeze({"a": [1, 2]})
    {'a': (1, 2)}
    """
    return _freeze(value, 0)


def _freeze(value: object, depth: int) -> object:
    if depth > _DEEPEST:
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return FrozenMapping.of({key: _freeze(item, depth + 1) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_freeze(item, depth + 1) for item in value)
    return value


def is_hashable(value: object) -> bool:
    """Return whether `value`, with everything in it, can be hashed."""
    try:
        hash(value)
    except Exception:  # noqa: BLE001  # a foreign __hash__ may fail in any way
        return False
    return isinstance(value, Hashable)
