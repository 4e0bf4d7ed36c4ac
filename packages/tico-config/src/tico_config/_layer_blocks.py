"""Layers that are the same ones in every block of a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

import attrs
from typing_extensions import Self

_LAYER: Final = re.compile(r"(?P<blocks>.+?)\.(?P<number>[0-9]+)\.(?P<name>.+)")


@attrs.frozen(kw_only=True)
class LayerBlocks:
    """A list of blocks, and the names that the integer layers of a block have in it.

    Attributes:
        path: of the list, for example ``model.layers``.
        names: of the layers in a block, such as ``mlp.up_proj``, in alphabetical order.
    """

    path: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, members: Iterable[str], others: Collection[str]) -> Self | None:
        """Return what names the paths `members`, and none of `others`; None if nothing does.

        A reader takes each layer of a block whose path ends with one of the names.

        >>> LayerBlocks.of(["h.0.up", "h.1.up"], ["h.0.down"])
        LayerBlocks(path='h', names=('up',))
        >>> LayerBlocks.of(["h.0.up"], ["h.1.up"]) is None
        True
        """
        found = [_LAYER.fullmatch(path) for path in members]
        lists = {None if each is None else each["blocks"] for each in found}
        if len(lists) != 1 or None in lists:
            return None
        [path] = lists
        names = tuple(sorted({each["name"] for each in found if each is not None}))
        inside = (each for each in others if each.startswith(f"{path}."))
        return (
            None
            if path is None or any(each.endswith(names) for each in inside)
            else cls(path=path, names=names)
        )
