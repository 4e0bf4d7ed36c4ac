"""The dtypes of floats by their names in files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from tico_modules._storage.layout import Layout

FLOAT_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype.

    >>> name_of(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def parse_float_dtype(layout: Layout, name: str) -> torch.dtype:
    """Return the dtype of floats that the value of `name` names; float32 where there is none.

    Raises:
        ArtifactError: there is no such dtype.
    """
    dtype = FLOAT_DTYPES.get(layout.text(name) if name in layout.values else "float32")
    if dtype is None:
        raise layout.make_error(name, f"one of {', '.join(FLOAT_DTYPES)}")
    return dtype
