"""What runtimes take of a program, and how a program becomes that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import attrs
from torch.export import ExportedProgram

from tico_config import (
    INT8,
    INT16,
    UINT4,
    UINT8,
    UINT16,
    DType,
    Found,
    PerGroup,
    PerTensor,
    PerToken,
    Problem,
)
from tico_export.program._constants import fold_codes
from tico_export.program._exported import exported
from tico_export.program._found_grids import FoundGrid, grids_in
from tico_export.program._passes import (
    with_float_biases,
    with_own_grids,
    with_unfolded_weights,
    without_repeated_grids,
)
from tico_export.program._rewriting import Pass, rewritten, without_copies
from tico_export.protocol import Example
from tico_export.source import Source

_COMMON: Final[tuple[Pass, ...]] = (without_copies, fold_codes, without_repeated_grids)


@attrs.frozen(kw_only=True)
class Dialect:
    """The programs that a runtime takes.

    Attributes:
        name: the name of the runtime.
        passes: what makes such a program of one that torch exported.
        activations: the formats that activations may have; None for any.
        weights: the formats that weights may have; None for any.
        symmetric: whether zero points of weights have to be in the middle.
        groups: whether weights may have a scale a group of columns.
        tokens: whether activations may have a grid a token.
        alone: whether a weight may be of integers where its input is in float.
    """

    name: str
    passes: tuple[Pass, ...] = _COMMON
    activations: tuple[DType, ...] | None = None
    weights: tuple[DType, ...] | None = None
    symmetric: bool = False
    groups: bool = True
    tokens: bool = True
    alone: bool = True


DIALECTS: Final[Mapping[str, Dialect]] = {
    each.name: each
    for each in (
        Dialect(name="onnx"),
        Dialect(
            name="xnnpack",
            passes=(*_COMMON, with_float_biases, with_own_grids),
            activations=(INT8,),
            weights=(INT8,),
            symmetric=True,
            groups=False,
            tokens=False,
            alone=False,
        ),
        Dialect(
            name="openvino",
            passes=(*_COMMON, with_float_biases, with_unfolded_weights),
            activations=(INT8, UINT8),
            weights=(INT8, UINT8),
            groups=False,
        ),
        Dialect(
            name="circle",
            passes=(*_COMMON, with_float_biases),
            activations=(UINT8, INT8, INT16, UINT16),
            weights=(UINT8, INT8, INT16, UINT4),
            groups=False,
            tokens=False,
        ),
    )
}


def program_in(dialect: Dialect, source: Source, example: Example) -> ExportedProgram:
    """Return the program of a model in a dialect, with the bits of the reference.

    Raises:
        UnsupportedError: torch.export cannot trace the model.
    """
    return rewritten(exported(source, example), example, dialect.passes)


def dialect_problems(dialect: Dialect, source: Source) -> Iterator[Problem]:
    """Yield every grid of `source` that a program of the dialect cannot have, with what is legal."""
    for grid in grids_in(source):
        for field, found, expected, remedy in _misfits(dialect, grid):
            yield Problem(
                module=grid.path or None,
                field=field,
                value=Found(found),
                expected=expected,
                sentence=f"{dialect.name} takes {expected}, and the {grid.role} is {found}",
                remedy=remedy,
            )


def _misfits(dialect: Dialect, grid: FoundGrid) -> Iterator[tuple[str, str, str, str]]:
    """Yield field, what was found, what is legal, and a way out."""
    unit, role = grid.granularity, grid.role
    legal = {"activation": dialect.activations, "weight": dialect.weights}.get(role)
    if legal is not None and grid.dtype not in legal:
        yield "dtype", str(grid.dtype), f"{role}s of {_names(legal)}", f"quantize it to {legal[0]}"
    if isinstance(unit, PerToken) and not dialect.tokens:
        yield "granularity", "on a grid a token", "fixed grids", "calibrate fixed grids"
    if role == "weight":
        yield from _weight_misfits(dialect, grid)
    elif role == "activation" and not isinstance(unit, PerToken | PerTensor) and legal is not None:
        yield "granularity", f"on grids {unit}", "activations on one grid a tensor", "use PerTensor()"


def _weight_misfits(dialect: Dialect, grid: FoundGrid) -> Iterator[tuple[str, str, str, str]]:
    if isinstance(grid.granularity, PerGroup) and not dialect.groups:
        found = f"in groups of {grid.granularity.size} columns"
        yield "group_size", found, "weights with a scale a row", "use group_size=None"
    if grid.symmetric is False and dialect.symmetric:
        yield "zero_point", "asymmetric", "symmetric weights", "quantize it with a symmetric scheme"
    if grid.alone and not dialect.alone:
        found, expected = "the only part of its layer on a grid", "layers whose inputs are on a grid too"
        yield "act_in", found, expected, "quantize activations too, as PTQConfig does"


def _names(formats: Iterable[DType]) -> str:
    *others, last = map(str, formats)
    return f"{', '.join(others)} or {last}" if others else last
