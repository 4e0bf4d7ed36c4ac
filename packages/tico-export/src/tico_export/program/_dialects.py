"""What runtimes take of a program, and how a program becomes that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import attrs
from torch.export import ExportedProgram

from tico_config import DeploymentProfile, Problem, profiles
from tico_export.program._constants import fold_codes
from tico_export.program._exported import exported
from tico_export.program._found_grids import formats_in
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
        profile: the formats that it takes; None for any.
    """

    name: str
    passes: tuple[Pass, ...] = _COMMON
    profile: DeploymentProfile | None = None


# What OpenVINO takes of an ONNX file, without weights in groups, of which a program can tell nothing.
_OPENVINO: Final = attrs.evolve(
    profiles.OPENVINO, layers=tuple(each for each in profiles.OPENVINO.layers if each.name == "8 bits")
)

DIALECTS: Final[Mapping[str, Dialect]] = {
    each.name: each
    for each in (
        Dialect(name="onnx"),
        Dialect(
            name="xnnpack",
            passes=(*_COMMON, with_float_biases, with_own_grids),
            profile=profiles.XNNPACK,
        ),
        Dialect(
            name="openvino",
            passes=(*_COMMON, with_float_biases, with_unfolded_weights),
            profile=_OPENVINO,
        ),
        Dialect(name="circle", passes=(*_COMMON, with_float_biases), profile=profiles.CIRCLE),
    )
}

_REMEDY: Final = "quantize it so; prepare checks it before where the config has target=profiles.{}"


def program_in(dialect: Dialect, source: Source, example: Example) -> ExportedProgram:
    """Return the program of a model in a dialect, with the bits of the reference.

    Raises:
        UnsupportedError: torch.export cannot trace the model.
    """
    return rewritten(exported(source, example), example, dialect.passes)


def dialect_problems(dialect: Dialect, source: Source) -> Iterator[Problem]:
    """Yield every grid of `source` that a program of the dialect cannot have, with what is legal."""
    if dialect.profile is not None:
        remedy = _REMEDY.format(dialect.profile.name.upper())
        yield from dialect.profile.problems(*formats_in(source), remedy)
