"""What layers have read in the float model, here or where a file comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import attrs

from tico_quantizers.calibration._block_driver import Step, replay_blocks
from tico_quantizers.calibration._block_inputs import BlockInputs
from tico_quantizers.calibration._block_runs import Finish
from tico_quantizers.calibration._checkpoint import Checkpoint
from tico_quantizers.calibration._grouped_gram import GroupedGram
from tico_quantizers.layers import QuantizedWeight


def run_blocks(inputs: BlockInputs, step: Step, checkpoint: Checkpoint, finish: Finish | None = None) -> None:
    """Run every block again and call `step` for each, then for the layers outside of blocks.

    If there is a `finish`, which needs options with `compared`, what the step returns for a block goes
    through it.

    Call it within `unchanged_process`, while the model is as it was recorded. Where statistics of the float
    model were adopted, the step is given these, for all layers at once; then only float blocks are run, on
    the data that this process has seen itself.

    Raises:
        CalibrationError: a layer that is no expert has read nothing.
        ArtifactError: a file of the checkpoint was changed.
    """
    if inputs.adopted:
        inputs.begin_notes()
        paths = tuple(inputs.layers)
        step.put_all(paths, step.learn(paths, inputs.statistics(paths, _Known(float_grams(inputs)))))
    else:
        replay_blocks(inputs, step, checkpoint, finish)


def float_grams(inputs: BlockInputs) -> dict[str, GroupedGram]:
    """Return what each layer has read in the float model, tokens all alike, with what was adopted.

    Layers that have read nothing are left out. Call it as `run_blocks`; the model is not changed.
    """
    collected = _Collected()
    own = inputs.of_float_model()
    if own.layers:
        replay_blocks(own, collected, Checkpoint(None))
    read = collected.grams
    for path, adopted in inputs.adopted.items():
        if adopted.rows:
            read[path] = adopted.merge(read[path]) if path in read else adopted
    return read


@final
@attrs.frozen(eq=False)
class _Known:
    """What layers have read, by path."""

    grams: Mapping[str, GroupedGram]

    def gram(self, path: str) -> GroupedGram | None:
        return self.grams.get(path)


@final
class _Collected:
    """A step that keeps what it is told, and changes nothing."""

    def __init__(self) -> None:
        self.grams: dict[str, GroupedGram] = {}

    def learn(
        self, paths: tuple[str, ...], statistics: Mapping[str, GroupedGram | int]
    ) -> list[QuantizedWeight]:
        self.grams |= {path: read for path, read in statistics.items() if isinstance(read, GroupedGram)}
        return []

    def put_all(self, paths: tuple[str, ...], weights: list[QuantizedWeight]) -> None:
        """Do nothing: no weight is kept of it."""
