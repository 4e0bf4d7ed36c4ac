"""What reads an exported file and runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import attrs
from torch import Tensor

from tico_export.protocol._example import Example

Run: TypeAlias = Callable[[Path, Example], Sequence[Tensor]]


@attrs.frozen(eq=False, kw_only=True)
class Consumer:
    """The runtime that an export is for, and how near it has to come to the model.

    Attributes:
        name: the runtime with its version, for example ``onnxruntime 1.32.0``.
        run: loads the export at a path, runs it on the example inputs, and returns its outputs: tensors of
            floats in the order in which the model has them. Those that a runtime leaves out come last.
        smallest_sqnr: the least signal-to-noise ratio, in dB, of these outputs against the model's.
        why: what that bound follows from, for the error where it is missed.
        steps: the scales of grids that outputs may be on. Outputs that are on one may be a step of it off,
            whatever that is in dB.
        beside: further ways to run it, by name; how near they come is told in the result's notes.
    """

    name: str
    run: Run
    smallest_sqnr: float
    why: str
    steps: Sequence[float] = ()
    beside: Mapping[str, Run] = attrs.field(factory=dict)
