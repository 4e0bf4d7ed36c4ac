"""What GPTQ learns during the user's own passes."""

from __future__ import annotations

from typing import final

from tico_config import GPTQConfig
from tico_quantizers.algorithms.gptq._plan import Plan, Target, layers_of, weights_of
from tico_quantizers.calibration import (
    ActivationStore,
    BlockCalls,
    Calibration,
    CalledOnce,
    EarlyEnd,
    GroupedGram,
    InputGrams,
    ReachedLayers,
    require_watched,
)
from tico_quantizers.layers import less_read


@final
class GPTQCalibration(Calibration):
    """The calls of every block, and the Gram matrices of what layers have read outside of their block."""

    def __init__(self, plan: Plan, config: GPTQConfig) -> None:
        self.plan = plan
        offload, narrow = config.offload is not None, config.activation_dtype is not None
        self.calls = BlockCalls(plan.blocks, ActivationStore(offload=offload, narrow=narrow))
        self.reached = ReachedLayers({target.path: target.layer for target in plan.targets})
        outside = plan.of_block(None)
        inside = tuple(target for target in plan.targets if target.block is not None)
        self.outside = InputGrams(layers_of(outside), weights_of(outside))
        self.strays = InputGrams(layers_of(inside), weights_of(inside), asymmetric=config.asymmetric > 0)
        self.called_once = CalledOnce([layers_of(plan.of_block(n)) for n in range(len(plan.blocks))])
        self.early_end = EarlyEnd(self.calls) if config.stop_after_capture else None
        recorders = (self.calls, self.reached, self.outside, self.strays)
        super().__init__(*recorders, *([self.early_end] if self.early_end else []))
        self.handles += self.calls.watch(self) + self.reached.watch(self) + self.outside.watch(self)
        self.handles += self.strays.watch(self, except_within=self.calls)
        self.handles += self.called_once.watch(plan.blocks, self)
        if self.early_end:
            captured = (*plan.blocks, *layers_of(outside).values())
            self.handles += self.early_end.watch(captured, self, counts=_always)
            strays = tuple(layers_of(inside).values())
            self.handles += self.early_end.watch(strays, self, counts=self._is_outside)

    def _is_outside(self) -> bool:
        return not self.calls.is_running

    def accept_unless_in_forward(self) -> None:
        """Count at once what a block or layer that was called by itself has shown."""
        if not self.calls.is_running:
            super().accept_unless_in_forward()

    def require_data(self) -> None:
        """Refuse to convert a layer that no data have reached, unless it is an expert.

        Raises:
            CalibrationError: with every one of them.
        """
        paths = tuple(target.path for target in self.plan.targets if target.path not in self.experts())
        require_watched(self.reached.paths, paths)

    def experts(self) -> frozenset[str]:
        """Return the layers that read less than one of their peers in a list."""
        chained = self.calls.are_chained
        peers = {
            target.path: target.peers
            for target in self.plan.targets
            if target.peers and not (chained and target.in_chain)
        }
        return less_read(self.reached.rows, peers)

    def statistics(self, targets: tuple[Target, ...], *sources: InputGrams) -> dict[str, GroupedGram | int]:
        """Return what each of `targets` has read, as the `sources` tell.

        Of an expert that read too little this is only the number of tokens.

        Raises:
            CalibrationError: with every other one that has read nothing.
        """
        found: dict[str, GroupedGram] = {}
        for target in targets:
            for gram in (source.gram(target.path) for source in sources):
                if gram is not None:
                    known = found.get(target.path)
                    found[target.path] = gram if known is None else known.merge(gram)
        rows = {target.path: found[target.path].rows if target.path in found else 0 for target in targets}
        experts = self.experts()
        starved = {
            target.path: rows[target.path]
            for target in targets
            if target.path in experts and rows[target.path] < target.config.min_expert_tokens
        }
        read = {path for path, count in rows.items() if count}
        require_watched(read, tuple(path for path in rows if path not in starved))
        return found | starved


def _always() -> bool:
    return True
