"""Packages that a format needs and that nothing else does."""

from __future__ import annotations

import importlib
from types import ModuleType

from tico_config import Found, MissingExtraError, Problem
from tico_export.protocol._versions import require_fit


def require_extra(module: str, extra: str) -> ModuleType:
    """Return a module of a package that comes with an extra of tico-export.

    Raises:
        MissingExtraError: it is not installed; the error names the extra.
        ConfigError: it is installed in a version that is known not to work.

    >>> require_extra("json", "onnx").__name__
    'json'
    """
    package = module.partition(".")[0]
    require_fit(package.replace("_", "-"), extra)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            Problem(
                field=package,
                value=Found("not installed"),
                expected="installed",
                sentence=f"{package} is not installed",
                remedy=f"pip install 'tico-export[{extra}]'",
            )
        ) from error
