"""How the weights that a module owns are read in calibration, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

import attrs
import torch
from torch import nn

from tico_config import QuantSpec
from tico_modules import parameter
from tico_wrapq.base import WeightCodes
from tico_wrapq.steps._owned_weight import OwnedWeight
from tico_wrapq.steps._weight_uses import WeightUse

_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


Uses: TypeAlias = Mapping[str, frozenset[WeightUse]]


@attrs.frozen(eq=False)
class WeightWatch:
    """The weights of the module `served`, the spec of each, and how steps with data have read them.

    A weight gets a grid where a step with data reads it: one for each row, that is for what the step does not
    sum over, or one in all if it is a vector. Others stay float, each with a reason.
    """

    path: str
    served: nn.Module
    specs: Mapping[str, QuantSpec]

    def names_of(self, weight: nn.Parameter) -> list[str]:
        """Return the names of `weight`; none where it is not of the module's own."""
        return [name for name in self.specs if parameter(self.served, name) is weight]

    def left_float(self, uses: Uses) -> Mapping[str, str]:
        """Return the weights that are to stay float although a grid is asked for, each with the reason.

        `uses` tell how steps with data read the weights, by their names.
        """
        asked = (name for name, spec in self.specs.items() if spec.is_quantized)
        found = ((name, self._why_float(name, uses.get(name, frozenset()))) for name in asked)
        return {name: why for name, why in found if why}

    def _why_float(self, name: str, uses: frozenset[WeightUse]) -> str:
        weight = parameter(self.served, name)
        if weight is None:
            return "it is gone"
        if weight.is_meta or weight.layout is not torch.strided or weight.dtype not in _FLOATS:
            return f"it is {weight.dtype} on {weight.device}"
        if not uses:
            return "no step with data reads it as it is"
        return "biases do" if weight.ndim < 2 and all(use.is_added for use in uses) else ""

    def packed(self, codes: WeightCodes, uses: Uses) -> dict[str, OwnedWeight]:
        """Return the integers that take the place of weights.

        Raises:
            NumericsError: a weight holds NaN or infinity.
            UnsupportedError: a spec is none that integer weights can have.
        """
        left = self.left_float(uses)
        made: dict[str, OwnedWeight] = {}
        known: dict[tuple[int, QuantSpec], OwnedWeight] = {}  # a parameter may have several names
        for name, spec in self.specs.items():
            if spec.is_quantized and name not in left:
                key = id(parameter(self.served, name)), spec
                known[key] = made[name] = known.get(key) or self._pack(name, spec, codes, uses[name])
        return made

    def _pack(
        self, name: str, spec: QuantSpec, codes: WeightCodes, uses: frozenset[WeightUse]
    ) -> OwnedWeight:
        weight = self.served.get_parameter(name)
        axes = {use.axes for use in uses}
        # A grid along an axis that one of two uses sums over is none for the other: one grid serves both.
        summed = axes.pop() if len(axes) == 1 else tuple(range(weight.ndim))
        if weight.ndim != 2 or summed != (1,):
            return OwnedWeight.pack(weight, spec, self.path, name, summed)

        def pack() -> OwnedWeight:
            return OwnedWeight.pack(weight, spec, self.path, name, summed)

        # What is tied to the weight of a layer stays tied to its codes.
        packed = codes.get(weight, spec, lambda: pack().packed[0])
        return OwnedWeight((packed,), tuple(weight.shape), summed)
