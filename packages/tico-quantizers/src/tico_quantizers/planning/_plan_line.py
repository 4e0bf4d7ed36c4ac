"""One module in a plan."""

from __future__ import annotations

from typing import final

import attrs
from typing_extensions import Self

from tico_modules import LayerReport


@final
@attrs.frozen(kw_only=True)
class PlanLine:
    """One module: what the report will say about it, which rule decided, and its bytes.

    Attributes:
        path: the full path of the module.
        module: the name of its class.
        algorithm: the name of the algorithm; empty where none changes the module.
        weight: a description of the grid of the weight, or ``float``.
        activation: a description of the grids of its activations, or ``float``.
        bits: the bits of the weight's codes, where the algorithm makes codes.
        group_size: the number of columns that share a scale; None where whole rows do, or without codes.
        rule: the field or override of the config that decided; empty where no rule did.
        reason: the reason why the module, or a part of it, stays float.
        undecided: what the data decide.
        bytes_before: of all tensors of the module that no other line has: weights, biases, buffers.
        bytes_after: of the same afterwards, with codes, scales and zero points; None if the data decide it.
    """

    path: str
    module: str
    algorithm: str
    weight: str = "float"
    activation: str = "float"
    bits: int | None = None
    group_size: int | None = None
    rule: str = ""
    reason: str = ""
    undecided: str = ""
    bytes_before: int = 0
    bytes_after: int | None = None

    @classmethod
    def of(
        cls, line: LayerReport, *, before: int, after: int | None, rule: str = "", undecided: str = ""
    ) -> Self:
        """Return what `line` will say, besides what it says of the data.

        >>> line = LayerReport(path="fc", module="Linear", algorithm="gptq", weight="uint4 per row", bits=4)
        >>> PlanLine.of(line, before=64, after=12).bits
        4
        """
        return cls(
            path=line.path,
            module=line.module,
            algorithm=line.algorithm,
            weight=line.weight,
            activation=line.activation,
            bits=line.bits,
            group_size=line.group_size,
            rule=rule,
            reason=line.reason,
            undecided=undecided,
            bytes_before=before,
            bytes_after=after,
        )
