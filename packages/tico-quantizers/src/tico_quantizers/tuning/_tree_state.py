"""What a model was before a part of it was replaced, and is again for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import attrs
from torch import nn

from tico_modules import named_modules

_HELD = ("_modules", "_parameters", "_buffers")
_Content: TypeAlias = tuple[tuple[dict[str, object], dict[str, object]], ...]


@attrs.frozen(eq=False)
class TreeState:
    """What the modules below `root` held, by reference: an `Edit` keeps it in memory anyway.

    >>> model: nn.Module = nn.Sequential(nn.ReLU())
    >>> state = TreeState.of(model)
    >>> model.add_module("0", nn.Identity())
    >>> with state.again():
    ...     model
    Sequential(
      (0): ReLU()
    )
    >>> model.get_submodule("0")
    Identity()
    """

    root: nn.Module
    content: _Content

    @classmethod
    def of(cls, root: nn.Module) -> TreeState:
        """Remember the children, parameters, buffers and attributes of each module."""
        places: list[dict[str, object]] = []
        for _, module in named_modules(root):
            attributes: dict[str, object] = vars(module)
            held = (attributes[name] for name in _HELD)
            places += [attributes, *(each for each in held if isinstance(each, dict))]
        return cls(root, _content_of(places))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Let the modules hold what they held, and then what they hold now."""
        now = _content_of([place for place, _ in self.content])
        try:
            _fill(self.content)
            yield
        finally:
            _fill(now)


def _content_of(places: list[dict[str, object]]) -> _Content:
    return tuple((place, dict(place)) for place in places)


def _fill(content: _Content) -> None:
    for place, held in content:
        place.clear()
        place.update(held)
