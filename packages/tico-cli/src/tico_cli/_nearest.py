"""Names that were misspelt, answered with the one that is meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tico_config import ConfigError, Found, Problem


def unknown(where: str | None, what: str, name: object, names: Iterable[str]) -> ConfigError:
    """Return the error that `where` has `name` for `what`, which is none of `names`.

    >>> print(unknown("mine.toml", "algorithm", "gtpq", ("gptq", "ptq")))
    mine.toml: there is no algorithm 'gtpq'; the nearest is 'gptq'.
    """
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else []
    choices = f"one of {', '.join(known)}" if known else "left out"
    return ConfigError(
        Problem(
            module=where,
            field=what,
            value=Found(repr(name)),
            expected=choices,
            sentence=f"there is no {what} {name!r}",
            remedy=f"the nearest is {near[0]!r}" if near else f"take {choices}",
        )
    )
