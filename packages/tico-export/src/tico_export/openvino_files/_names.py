"""Names of operations that follow from the model alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Protocol

_COUNTED: Final = re.compile(r"[A-Z][A-Za-z]*_\d+")
"""How the runtime names operations without a name, and constants that it has computed from such ones."""


class Named(Protocol):
    """An operation, which has a name."""

    def get_friendly_name(self) -> str:
        """Return the name that the file will have."""

    def set_friendly_name(self, name: str, /) -> None:
        """Give it one."""

    def get_type_name(self) -> str:
        """Return its type."""


class Ordered(Protocol):
    """A model whose operations have an order."""

    def get_ordered_ops(self) -> Iterable[Named]:
        """Return them, each behind what it reads."""


def name_by_place(model: Ordered) -> None:
    """Name operations that have only a type and a number by their places in `model`.

    The runtime counts them through all models of a process, so that files would depend on what it has made
    before.
    """
    operations = list(model.get_ordered_ops())
    counted = [each for each in operations if _COUNTED.fullmatch(each.get_friendly_name())]
    for place, each in enumerate(counted):
        each.set_friendly_name(f"{each.get_type_name()}_{place}")
