"""What configs that speak of bits and groups make of a format of floating-point elements."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import attrs

from tico_config._float_format import FloatFormat, as_number_format
from tico_config._problem import Problem


def as_float_format(value: FloatFormat | type[FloatFormat] | None) -> FloatFormat | None:
    """Convert the class of a format to its default; return anything else for the check of the field."""
    return as_number_format(value)  # type: ignore[return-value]  # the check refuses anything else


def dtype_problems(
    config: attrs.AttrsInstance, dtype: object, of_codes: Collection[str], of_blocks: Collection[str]
) -> Iterator[Problem]:
    """Yield which fields of `config` say again what its `dtype` says.

    These are fields without their default: those `of_codes` with any format of floating-point elements, and
    those `of_blocks` with one that has blocks.
    """
    if not isinstance(dtype, FloatFormat):
        return
    fixed = {*of_codes, *(of_blocks if dtype.block_size is not None else ())}
    for field in attrs.fields(type(config)):
        if field.name in fixed and getattr(config, field.name) != field.default:
            expected = f"left out, since the dtype {dtype} says it"
            yield Problem(field=field.name, value=getattr(config, field.name), expected=expected)
