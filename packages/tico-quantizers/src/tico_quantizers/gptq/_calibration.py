"""What GPTQ learns during the user's own passes."""

from __future__ import annotations

from typing import final

from tico_observers import GramStatistic
from tico_quantizers._block_calls import BlockCalls
from tico_quantizers._forward_watch import Calibration, require_watched
from tico_quantizers._input_grams import InputGrams
from tico_quantizers._reached_layers import ReachedLayers
from tico_quantizers.gptq._plan import Plan, Target, layers_of


@final
class GPTQCalibration(Calibration):
    """The calls of every block, and the Gram matrices of what layers have read outside of their block."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.calls = BlockCalls(plan.blocks)
        self.reached = ReachedLayers({target.path: target.layer for target in plan.targets})
        self.outside = InputGrams(layers_of(plan.of_block(None)))
        self.strays = InputGrams(layers_of(tuple(t for t in plan.targets if t.block is not None)))
        super().__init__(self.calls, self.reached, self.outside, self.strays)
        self.handles += self.calls.watch(self) + self.reached.watch(self) + self.outside.watch(self)
        self.handles += self.strays.watch(self, except_within=self.calls)

    def accept_unless_in_forward(self) -> None:
        """Count at once what a block or layer that was called by itself has shown."""
        if not self.calls.is_running:
            super().accept_unless_in_forward()

    def statistics(self, targets: tuple[Target, ...], *sources: InputGrams) -> dict[str, GramStatistic]:
        """Return what each of `targets` has read, as the `sources` tell.

        Raises:
            CalibrationError: with every one of them that has read nothing.
        """
        found: dict[str, GramStatistic] = {}
        for target in targets:
            for gram in (source.gram(target.path) for source in sources):
                if gram is not None:
                    known = found.get(target.path)
                    found[target.path] = gram if known is None else known.merge(gram)
        seen = {path for path, gram in found.items() if not gram.is_empty}
        require_watched(seen, tuple(target.path for target in targets))
        return found
