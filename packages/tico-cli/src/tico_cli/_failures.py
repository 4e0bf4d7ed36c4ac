"""How a command ends that cannot do its work: one message, and an exit code for scripts."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import typer

from tico_cli._output import tell
from tico_config import ConfigError, TicoError

FAILED: Final = 1
WRONG: Final = 2
INTERRUPTED: Final = 130
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def _nothing_lost() -> str:
    return "nothing was changed"


@contextmanager
def told_failures(kept: Callable[[], str] = _nothing_lost) -> Iterator[None]:
    """Turn an error into a message on standard error and an exit code.

    What was asked for cannot be meant (a path, a recipe, an option): 2. The work failed: 1. Interrupted: 130,
    with what `kept` says then.

    Raises:
        typer.Exit: with the code.
    """
    try:
        yield
    except (TicoError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:  # whoever reads has enough
            raise
        is_full = isinstance(error, OSError) and error.errno in _FULL and not isinstance(error, TicoError)
        tell(f"error: {error}" if not is_full else f"error: the disk is full ({error}); make room; {kept()}")
        raise typer.Exit(WRONG if isinstance(error, ConfigError) else FAILED) from None
    except KeyboardInterrupt:
        tell(f"interrupted: {kept()}")
        raise typer.Exit(INTERRUPTED) from None
