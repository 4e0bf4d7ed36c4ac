"""Packages that a format needs and that nothing else does."""

from __future__ import annotations

import importlib
from types import ModuleType

from tico_config import Found, MissingExtraError, Problem


def require_extra(module: str, extra: str) -> ModuleType:
    """Return a module of a package that comes with an extra of tico-export.

    Raises:
        MissingExtraError: it is not installed; the error names the extra.

    >>> require_extra("json", "onnx").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            Problem(
                field=package,
                value=Found("not installed"),
                expected="installed",
                sentence=f"{package} is not installed",
                remedy=f"pip install 'tico-export[{extra}]'",
            )
        ) from error
