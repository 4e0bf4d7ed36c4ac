"""Versions of packages that are known not to do what exports need."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import attrs

from tico_config import ConfigError, Found, Problem


@attrs.frozen(kw_only=True)
class Unfit:
    """Versions of a package that do not work.

    Attributes:
        package: the name of the distribution.
        below: the first version that works.
        why: what the earlier ones do, as the end of a sentence about them.
    """

    package: str
    below: str
    why: str


UNFIT: Final[tuple[Unfit, ...]] = (
    Unfit(
        package="onnxruntime",
        below="1.19",
        why="is built for NumPy 1, and is not imported beside a later one",
    ),
)
"""What was seen to fail; versions that an extra does not ask for may work all the same."""


def require_fit(package: str, extra: str) -> None:
    """Refuse an installed `package`, which comes with `extra`, in a version that is known not to work.

    Raises:
        ConfigError: it is one of `UNFIT`; the error says why, and what to install.
    """
    for each in UNFIT:
        if each.package != package:
            continue
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if release(found) < release(each.below):
            raise ConfigError(
                Problem(
                    field=package,
                    value=Found(found),
                    expected=f"version {each.below} or later",
                    sentence=f"{package} {found} {each.why}",
                    remedy=f"pip install --upgrade 'tico-export[{extra}]', which takes {each.below} or later",
                )
            )


def release(text: str) -> tuple[int, ...]:
    """Return the numbers of a version, up to what marks a build or a pre-release.

    >>> release("1.32.0+cpu") < release("1.32.1"), release("2026.4.1-1")
    (True, (2026, 4, 1))
    """
    found = re.match(r"[0-9]+(\.[0-9]+)*", text)
    return () if found is None else tuple(map(int, found[0].split(".")))
