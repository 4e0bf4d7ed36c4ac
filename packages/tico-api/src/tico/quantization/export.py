"""The public name of `tico_export`, where that package is installed.

Raises:
    MissingExtraError: on import, if it is not.
"""

from tico_config import Found, MissingExtraError, Problem

try:
    from tico_export import *  # noqa: F403  # all of its public names, and no others
except ModuleNotFoundError as error:
    if error.name != "tico_export":
        raise
    raise MissingExtraError(
        Problem(
            field="tico-export",
            value=Found("not installed"),
            expected="installed",
            remedy="pip install 'tico-api[export]'",
        )
    ) from error
