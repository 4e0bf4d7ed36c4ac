"""What a model is exported to, as frozen values."""

from __future__ import annotations

from typing import ClassVar

import attrs


@attrs.frozen(kw_only=True)
class ExportTarget:
    """A format with its options. A subclass is frozen too, has a `name`, and its options are its fields.

    Attributes:
        name: what results and errors call the format.
        is_folder: whether an export is a folder, and not a file with what may have to stand beside it.
        needs_example: whether writing needs example inputs, as exporting a graph does; verifying always does.
    """

    name: ClassVar[str]
    is_folder: ClassVar[bool] = False
    needs_example: ClassVar[bool] = False
